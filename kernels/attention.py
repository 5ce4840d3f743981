"""Launchers of the attention kernels: shapes in, tensors out, and the choice of tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from fastgrow.kernels.attention_arguments import (
    Rope,
    Rules,
    Tiles,
    block_of,
    bucket,
    empty_output,
    length_of,
    rope_as_arguments,
    rotated_keys,
    rules_as_arguments,
)
from fastgrow.kernels.attention_backward import d_key_kernel, d_query_kernel, prepare_kernel
from fastgrow.kernels.attention_decode import can_decode, decode
from fastgrow.kernels.attention_forward import forward_kernel
from fastgrow.kernels.common import (
    INTERPRETED,
    LOG2_E,
    as_strided_rows,
    cdiv,
    contiguous_like,
    dot_precision,
    on_device_of,
)
from fastgrow.kernels.gpu import capability_of
from fastgrow.kernels.tuned import chosen_once, measured

__all__ = ["Rope", "Rules", "backward", "forward"]


# Three programs of the reference's head dimension share a processor of sm_90 where a thread takes
# at most 168 registers. Triton 3.6 takes five more unless told; 3.7 stays within them by itself,
# and told so makes the loop 2 % longer. For sm_80 and sm_100 the code needs more, and would spill.
_TAKES_MORE = triton.__version__.startswith("3.6.") and torch.version.hip is None
_THREE_PROGRAMS = {"maxnreg": 168}


def forward_tiles(dim: int, dtype: torch.dtype, capability: int = 90) -> Tiles:
    """Tiles of the forward pass, by head dimension and compute capability (90 for 9.0)."""
    if INTERPRETED:
        return Tiles(64, 64, 4, 1)
    if dtype == torch.float32:
        # Products outside the matrix units: the operands live in registers.
        if dim <= 64:
            return Tiles(64, 32, 4 if dim <= 32 else 8, 2)
        return Tiles(32, 32, 8, 2) if dim <= 128 else Tiles(16, 32, 8, 2)
    if dim <= 32:
        # Masks of features and of keys together need the registers of half of the keys.
        return Tiles(64, 128 if dim == block_of(dim) else 64, 4, 3)
    if dim <= 64:
        # Without Hopper's matrix units the operands lie in registers, which 64 keys do not leave.
        return Tiles(128, 64 if capability >= 90 else 32, 4, 3)
    return Tiles(128, 64, 8, 3) if dim <= 128 else Tiles(64, 32, 8, 2)


def d_query_tiles(dim: int, dtype: torch.dtype, capability: int = 90) -> Tiles:
    """Tiles of the kernel for dq."""
    if INTERPRETED:
        return Tiles(64, 64, 4, 1)
    if dtype == torch.float32:
        if dim <= 32:
            return Tiles(32, 32, 4, 2)
        return Tiles(32, 32, 8, 1) if dim <= 128 else Tiles(16, 16, 8, 2)
    if dim <= 64:
        # As in the forward pass; at head dimension 32 the operands are half as large.
        return Tiles(64, 64 if capability >= 90 or dim <= 32 else 32, 4, 3)
    return Tiles(64, 64, 8, 2) if dim <= 128 else Tiles(32, 32, 8, 1)


def d_key_tiles(dim: int, dtype: torch.dtype, capability: int = 90) -> Tiles:
    """Tiles of the kernel for dk and dv; block_m queries at a time meet block_n keys."""
    if INTERPRETED:
        return Tiles(64, 64, 4, 1)
    if dtype == torch.float32:
        if dim <= 64:
            return Tiles(32, 32, 4 if dim <= 32 else 8, 1)
        return Tiles(16, 32, 8, 1) if dim <= 128 else Tiles(16, 16, 8, 1)
    if dim <= 32:
        # Blackwell's code for four warps needs more registers than they have.
        return Tiles(64, 64, 4 if capability < 100 else 8, 2)
    if dim <= 64:
        return Tiles(32, 64, 4, 2)
    return Tiles(64, 64, 8, 2) if dim <= 128 else Tiles(32, 32, 8, 1)


# By head dimension, dtype and compute capability.
OWN_RULES: dict[str, Callable[[int, torch.dtype, int], Tiles]] = {
    "attention_forward": forward_tiles,
    "attention_d_query": d_query_tiles,
    "attention_d_key": d_key_tiles,
}


@chosen_once
def _tiles(
    kernel: str, dtype: torch.dtype, dim: int, length: int | None, device: torch.device
) -> Tiles:
    """The table's tiles of this GPU for `length`, where it holds, or else those of the rule."""
    found = None
    if length is not None:
        found = measured(kernel, bucket(dtype, dim, length), device, Tiles)
    return found or OWN_RULES[kernel](dim, dtype, capability_of(device))


def _length(keys: int, rules: Rules) -> int | None:
    """Under what length a table has tiles: only for causal attention without any other rule."""
    _, window, cu_seqlens, lengths, starts = rules
    if rules.causal and window is cu_seqlens is lengths is starts is None:
        return length_of(keys)
    return None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Rope | None,
    scale: float,
    rules: Rules,
    *,
    with_lse: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of q [B, H, Tq, D] over k, v [B, H_kv, Tk, D].

    `tiles` are those of the kernel, to try some out.

    Returns:
        out [B, H, Tq, D], contiguous as [B, Tq, H, D], and lse [B, H, Tq] float32 in units of log2
        (None without `with_lse`, as for inference).
    """
    batch, heads, queries, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    out = empty_output(q)
    lse = q.new_empty((batch, heads, queries), dtype=torch.float32) if with_lse else None
    if q.numel() == 0:
        return out, lse
    if not with_lse and can_decode(q, k):
        decode(q, k, v, rope, scale, rules, out)
        return out, None
    q, v = as_strided_rows(q), as_strided_rows(v)
    k, norms = rotated_keys(k, rope)
    dtype, block_d = q.dtype, block_of(dim)
    if dtype != torch.bfloat16 or dim > 32 or dim != block_d:
        # Without a pivot weights may pass the range of fp16; fp32 products and larger heads cost
        # more than the pivot does; and masked features leave no registers for a second loop.
        norms = None
    tensors, numbers, rotated = rope_as_arguments(rope)
    length = _length(keys, rules)
    tiles = tiles or _tiles("attention_forward", dtype, dim, length, q.device)
    told = _TAKES_MORE and norms is not None and tiles == forward_tiles(dim, dtype)
    limit = _THREE_PROGRAMS if told and capability_of(q.device) == 90 else {}
    grid = (cdiv(queries, tiles.block_m) * batch * heads,)
    with on_device_of(q):
        forward_kernel[grid](
            q, k, v, out, lse, norms, *tensors, *rules_as_arguments(rules, keys),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *numbers,
            heads, heads // kv_heads, queries, keys, 0 if norms is None else norms.shape[1],
            scale * LOG2_E, rules.window, D=dim, R=rotated, BLOCK_D=block_d,
            BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, CAUSAL=rules.causal,
            PRECISION=dot_precision(dtype), INTERPRETED=INTERPRETED,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **limit,
        )  # fmt: skip
    return out, lse


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rope: Rope | None,
    scale: float,
    rules: Rules,
    *,
    for_query: bool = True,
    for_key: bool = True,
    tiles: Tiles | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dq, and dk with dv, of what `forward` computed; None for what is not asked for.

    dq [B, H, Tq, D] is laid out as [B, Tq, H, D], dk and dv likewise. `tiles` are those of the
    kernels that are asked for, to try some out.
    """
    batch, heads, queries, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    dq = empty_output(q) if for_query else None
    dk, dv = (empty_output(k), empty_output(v)) if for_key else (None, None)
    if q.numel() == 0 or k.numel() == 0:
        return dq, None if dk is None else dk.zero_(), None if dv is None else dv.zero_()
    q, v, d_out = as_strided_rows(q), as_strided_rows(v), as_strided_rows(d_out)
    k, _ = rotated_keys(k, rope)
    tensors, numbers, rotated = rope_as_arguments(rope)
    bounds = rules_as_arguments(rules, keys)
    scaled = contiguous_like(q)
    delta = torch.empty_like(lse)
    length, dtype, device = _length(keys, rules), q.dtype, q.device
    block_d = block_of(dim)
    rows = max(16, 4096 // block_d)
    of_k, of_v, of_d_out = k.stride()[:3], v.stride()[:3], d_out.stride()[:3]
    group = heads // kv_heads
    common = {
        "CAUSAL": rules.causal,
        "PRECISION": dot_precision(dtype),
        "INTERPRETED": INTERPRETED,
    }
    with on_device_of(q):
        prepare_kernel[(cdiv(queries, rows) * batch * heads,)](
            q, out, d_out, scaled, delta, *tensors, rules.lengths,
            *q.stride()[:3], *out.stride()[:3], *of_d_out, *numbers,
            heads, queries, keys, scale * LOG2_E,
            D=dim, R=rotated, BLOCK_D=block_d, BLOCK_M=rows, num_warps=4,
        )  # fmt: skip
        if dq is not None:
            chosen = tiles or _tiles("attention_d_query", dtype, dim, length, device)
            d_query_kernel[(cdiv(queries, chosen.block_m) * batch * heads,)](
                scaled, k, v, d_out, lse, delta, dq, *tensors, *bounds,
                *of_k, *of_v, *of_d_out, *dq.stride()[:3], *numbers,
                heads, group, queries, keys, scale, rules.window,
                D=dim, R=rotated, BLOCK_D=block_d, BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
                **common, num_warps=chosen.num_warps, num_stages=chosen.num_stages,
            )  # fmt: skip
        if dk is not None and dv is not None:
            chosen = tiles or _tiles("attention_d_key", dtype, dim, length, device)
            # Keys that came rotated get the gradient of what they are.
            cos, sin, positions = (None, None, None) if rope and rope.k_rotated else tensors
            d_key_kernel[(cdiv(keys, chosen.block_n) * batch * kv_heads,)](
                scaled, k, v, d_out, lse, delta, dk, dv, cos, sin, positions, *bounds,
                *of_k, *of_v, *of_d_out, *dk.stride()[:3], *numbers,
                kv_heads, group, queries, keys, rules.window,
                D=dim, R=rotated, BLOCK_D=block_d, BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
                **common, num_warps=chosen.num_warps, num_stages=chosen.num_stages,
            )  # fmt: skip
    return dq, dk, dv
