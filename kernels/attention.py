"""Launchers of the attention kernels and of the rotation."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastgrow.kernels.attention_backward import d_key_kernel, d_query_kernel, prepare_kernel
from fastgrow.kernels.attention_decode import decode_kernel, join_kernel
from fastgrow.kernels.attention_forward import forward_kernel
from fastgrow.kernels.attention_tiles import (
    FEW_RUNS,
    MAX_RUNS,
    TILES,
    AttentionTiles,
    Split,
    can_decode,
    own_tiles,
    runs_of_keys,
    split_of,
)
from fastgrow.kernels.calls import AttentionCall, RopeCall
from fastgrow.kernels.common import (
    INTERPRETED,
    LOG2_E,
    as_strided_rows,
    block_of,
    cdiv,
    contiguous_like,
    dot_precision,
    measured_size,
    next_power_of_2,
    on_device_of,
)
from fastgrow.kernels.key_ranges import documents
from fastgrow.kernels.rotation import rotate_kernel
from fastgrow.kernels.tuned import NAMES, capability_of, chosen_once, measured

# Lengths whose tiles are measured. With more lengths, a new kernel would be compiled for every few
# sequences.
LENGTHS = (1024, 8192)
FEW, MANY = 32, 256  # sequences times key heads for which decoding is measured
MIN_ROWS = 16  # rows of a tile, at least

# The kernels' arguments COS, SIN, POSITIONS, table_stride, positions_b, n_positions and R.
Rotation = tuple[Tensor | None, Tensor | None, Tensor | None, int, int, int, int]
NO_ROTATION: Rotation = (None, None, None, 0, 0, 0, 0)
# Three programs at head dimension 32 share a multiprocessor of sm_90 if a thread uses at most 168
# registers. Triton 3.6 uses five more without a limit; 3.7 stays within 168, and an explicit limit
# makes its loop 2 % longer. On sm_80 and sm_100 the code needs more registers and would spill.
_NEEDS_REGISTER_LIMIT = triton.__version__.startswith("3.6.") and torch.version.hip is None


def number_of(batch_heads: int) -> int:
    """Return the measured number that is used for this number of sequences times key heads."""
    return FEW if batch_heads <= 4 * FEW else MANY


def bucket(dtype: torch.dtype, dim: int, keys: int) -> str:
    """Return the key of attention's measured tiles, such as `bf16/D=32/T=1024`."""
    return f"{NAMES[dtype]}/D={dim}/T={measured_size(keys, LENGTHS)}"


def decode_bucket(dtype: torch.dtype, dim: int, keys: int, batch_heads: int) -> str:
    """Return the key of decoding's measured configurations, such as `bf16/D=32/T=8192/N=256`.

    N is the number of sequences times key heads. If it is small, multiprocessors are idle unless
    the keys are split.
    """
    return f"{bucket(dtype, dim, keys)}/N={number_of(batch_heads)}"


@chosen_once
def _tiles(
    kernel: str, dtype: torch.dtype, dim: int, length: int | None, device: torch.device
) -> AttentionTiles:
    """Return this GPU's measured tiles for `length`, or else those of the rule."""
    key = None if length is None else bucket(dtype, dim, length)
    found = measured(kernel, key, device, AttentionTiles)
    return found or own_tiles(kernel, dim, dtype, capability_of(device))


@chosen_once
def _split(
    dtype: torch.dtype, dim: int, length: int | None, batch_heads: int, device: torch.device
) -> Split:
    key = None if length is None else decode_bucket(dtype, dim, length, batch_heads)
    return measured("attention_decode", key, device, Split) or split_of(dim, dtype)


def _length(call: AttentionCall) -> int | None:
    """Return the length of the measured tiles, or None for anything but plain causal attention."""
    others = call.window is call.cu_seqlens is call.lengths is call.starts is None
    return measured_size(call.k.shape[2], LENGTHS) if call.causal and others else None


def rotation_arguments(cos: Tensor, sin: Tensor, position_ids: Tensor | None) -> Rotation:
    """Return the kernels' arguments for cos, sin [positions, R/2] and `position_ids`.

    Args:
        position_ids: [T], [1, T] or [B, T].
    """
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        cos, sin = cos.float(), sin.float()
    cos, sin, of_rows = cos.contiguous(), sin.contiguous(), 0
    if position_ids is not None:
        # One row for all sequences is read without a stride.
        shared = position_ids.dim() == 2 and position_ids.shape[0] == 1
        position_ids = (position_ids[0] if shared else position_ids).contiguous()
        of_rows = position_ids.stride(0) if position_ids.dim() == 2 else 0
    positions, half = cos.shape
    return cos, sin, position_ids, cos.stride(0), of_rows, positions, 2 * half


def rope(call: RopeCall) -> Tensor:
    """Return x [B, H, T, D] rotated, contiguous as [B, T, H, D]."""
    out = empty_by_token(call.x)
    rotate(
        *(call.x, rotation_arguments(call.cos, call.sin, call.position_ids), out),
        offset=call.offset,
        inverse=call.inverse,
    )
    return out


def rotate(
    x: Tensor,
    rotation: Rotation,
    out: Tensor,
    *,
    offset: int = 0,
    inverse: bool = False,
    with_norms: bool = False,
) -> Tensor | None:
    """Write x [B, H, T, D] to `out`, with each token rotated by its position.

    Args:
        rotation: result of `rotation_arguments`. Without position ids the positions are
            offset … offset + T − 1.
        inverse: whether to rotate back.
        with_norms: whether to return norms.

    Returns:
        The largest norm of a rotated row in each block of rows, [B · H, blocks] float32, which
        bounds attention's scores; None without `with_norms`.
    """
    batch, heads, length, dim = x.shape
    block_d = block_of(dim)
    # Attention's keys always use the same tile height, so that few keys compile no other kernel.
    few = length <= MIN_ROWS and not with_norms
    block_t = MIN_ROWS if few else max(MIN_ROWS, 4096 // block_d)
    n_blocks = cdiv(length, block_t)
    norms = x.new_empty((batch * heads, n_blocks), dtype=torch.float32) if with_norms else None
    if x.numel() == 0:
        return norms
    x = as_strided_rows(x)
    with on_device_of(x):
        rotate_kernel[(n_blocks * batch * heads,)](
            x, out, norms, *rotation, *x.stride()[:3], *out.stride()[:3], heads, length, offset,
            D=dim, BLOCK_D=block_d, BLOCK_T=block_t, INVERSE=inverse,
            # For larger heads a tile needs more registers than four warps have on Blackwell.
            num_warps=4 if block_d <= 128 else 8,
        )  # fmt: skip
    return norms


def empty_by_token(x: Tensor) -> Tensor:
    """Return an empty [B, H, T, D] laid out as [B, T, H, D], the layout of projections."""
    _, heads, length, dim = x.shape
    # The strides are those of torch, also for tensors without elements.
    of_token = max(heads, 1) * dim
    return x.new_empty_strided(x.shape, (max(length, 1) * of_token, dim, of_token, 1))


def _operands(
    call: AttentionCall,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Rotation, tuple[Tensor | None, ...]]:
    """Return the kernels' arguments for a call.

    Returns:
        q, k and v as rows; the keys are rotated, in a temporary workspace unless they were already.
        The norms of the keys, if they were rotated here. The arguments of the rotation. LENGTHS,
        STARTS, FIRSTS and ENDS.
    """
    q, k, v, cos, sin, position_ids, cu_seqlens, lengths, starts, *_ = call
    q, k, v = as_strided_rows(q), as_strided_rows(k), as_strided_rows(v)
    rotation, norms = NO_ROTATION, None
    if cos is not None and sin is not None:
        rotation = rotation_arguments(cos, sin, position_ids)
        if not call.k_rotated:
            given, k = k, contiguous_like(k)
            norms = rotate(given, rotation, k, with_norms=True)
    # The kernels read these without strides.
    lengths = None if lengths is None else lengths.contiguous()
    starts = None if starts is None else starts.contiguous()
    bounds = (None, None) if cu_seqlens is None else documents(cu_seqlens, k.shape[2])
    return q, k, v, norms, rotation, (lengths, starts, *bounds)


def inference(call: AttentionCall) -> Tensor:
    """Return the first result of `forward`; for few queries the keys are split over programs."""
    if call.q.numel() > 0 and can_decode(call.q, call.k):
        return decode(call)
    return forward(call, with_lse=False)[0]


def forward(
    call: AttentionCall, *, with_lse: bool = True, tiles: AttentionTiles | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute attention of q [B, H, Tq, D] over k, v [B, H_kv, Tk, D].

    Args:
        with_lse: whether to return lse, which `backward` needs.
        tiles: tiles of the kernel, for tuning.

    Returns:
        out [B, H, Tq, D], contiguous as [B, Tq, H, D], and lse [B, H, Tq] float32 in units of log2
        (None without `with_lse`).
    """
    q = call.q
    batch, heads, queries, dim = q.shape
    kv_heads, keys = call.k.shape[1:3]
    out = empty_by_token(q)
    lse = q.new_empty((batch, heads, queries), dtype=torch.float32) if with_lse else None
    if q.numel() == 0:
        return out, lse
    q, k, v, norms, rotation, ranges = _operands(call)
    dtype, block_d = q.dtype, block_of(dim)
    if dtype != torch.bfloat16 or dim > 32 or dim != block_d:
        # The running maximum (pivot) is never omitted here: without it weights may exceed the range
        # of fp16; in fp32 and for larger heads the products cost more than the pivot; and masked
        # features leave no registers for a second loop.
        norms = None
    tiles = tiles or _tiles("attention_forward", dtype, dim, _length(call), q.device)
    at_32 = norms is not None and tiles == TILES["attention_forward", "half", 32]
    limited = _NEEDS_REGISTER_LIMIT and at_32 and capability_of(q.device) == 90
    limit = {"maxnreg": 168} if limited else {}
    with on_device_of(q):
        forward_kernel[(cdiv(queries, tiles.block_m) * batch * heads,)](
            q, k, v, out, lse, norms, *rotation, *ranges,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            heads, heads // kv_heads, queries, keys, 0 if norms is None else norms.shape[1],
            call.scale * LOG2_E, call.window, D=dim, BLOCK_D=block_d,
            BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, CAUSAL=call.causal,
            PRECISION=dot_precision(dtype), INTERPRETED=INTERPRETED,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **limit,
        )  # fmt: skip
    return out, lse


def backward(
    call: AttentionCall,
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    for_query: bool = True,
    for_key: bool = True,
    *,
    tiles: AttentionTiles | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute dq, dk and dv of `forward`; None for those that are not requested.

    Args:
        for_query, for_key: whether to compute dq, and dk and dv.
        tiles: tiles of the requested kernels, for tuning.

    Returns:
        dq [B, H, Tq, D], laid out as [B, Tq, H, D]; dk and dv likewise.
    """
    batch, heads, queries, dim = call.q.shape
    kv_heads, keys = call.k.shape[1:3]
    dq = empty_by_token(call.q) if for_query else None
    dk, dv = (empty_by_token(call.k), empty_by_token(call.v)) if for_key else (None, None)
    if call.q.numel() == 0 or call.k.numel() == 0:
        return dq, None if dk is None else dk.zero_(), None if dv is None else dv.zero_()
    q, k, v, _, rotation, ranges = _operands(call)
    d_out = as_strided_rows(d_out)
    scaled = contiguous_like(q)
    delta = torch.empty_like(lse)
    length, dtype, device = _length(call), q.dtype, q.device
    block_d = block_of(dim)
    rows = max(MIN_ROWS, 4096 // block_d)
    of_k, of_v, of_d_out = k.stride()[:3], v.stride()[:3], d_out.stride()[:3]
    group = heads // kv_heads
    common = {
        "D": dim,
        "BLOCK_D": block_d,
        "CAUSAL": call.causal,
        "PRECISION": dot_precision(dtype),
        "INTERPRETED": INTERPRETED,
    }
    with on_device_of(q):
        prepare_kernel[(cdiv(queries, rows) * batch * heads,)](
            q, out, d_out, scaled, delta, *rotation, ranges[0],
            *q.stride()[:3], *out.stride()[:3], *of_d_out,
            heads, queries, keys, call.scale * LOG2_E,
            D=dim, BLOCK_D=block_d, BLOCK_M=rows, num_warps=4,
        )  # fmt: skip
        if dq is not None:
            chosen = tiles or _tiles("attention_d_query", dtype, dim, length, device)
            d_query_kernel[(cdiv(queries, chosen.block_m) * batch * heads,)](
                scaled, k, v, d_out, lse, delta, dq, *rotation, *ranges,
                *of_k, *of_v, *of_d_out, *dq.stride()[:3],
                heads, group, queries, keys, call.scale, call.window,
                **common, BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
                num_warps=chosen.num_warps, num_stages=chosen.num_stages,
            )  # fmt: skip
        if dk is not None and dv is not None:
            chosen = tiles or _tiles("attention_d_key", dtype, dim, length, device)
            # Keys that were passed rotated get the gradient of the rotated keys.
            of_keys = NO_ROTATION if call.k_rotated else rotation
            d_key_kernel[(cdiv(keys, chosen.block_n) * batch * kv_heads,)](
                scaled, k, v, d_out, lse, delta, dk, dv, *of_keys, *ranges,
                *of_k, *of_v, *of_d_out, *dk.stride()[:3],
                kv_heads, group, queries, keys, call.window,
                **common, BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
                num_warps=chosen.num_warps, num_stages=chosen.num_stages,
            )  # fmt: skip
    return dq, dk, dv


def decode(call: AttentionCall, *, split: Split | None = None) -> Tensor:
    """Return the first result of `forward`, with the keys split over programs.

    Args:
        split: configuration of the kernel, for tuning.
    """
    batch, heads, queries, dim = call.q.shape
    kv_heads, keys = call.k.shape[1:3]
    group, batch_heads = heads // kv_heads, batch * kv_heads
    rows = group * queries
    q, k, v, _, rotation, ranges = _operands(call)
    if split is None:
        # A table's entries are measured for caches that are read from their first key on.
        measured_so = rows <= MIN_ROWS and call.window is call.cu_seqlens is call.starts is None
        length = measured_size(keys, LENGTHS) if measured_so else None
        split = _split(q.dtype, dim, length, number_of(batch_heads), q.device)
    runs, run = runs_of_keys(batch_heads, keys, split, q.device)
    out = empty_by_token(q)
    parts = q.new_empty(batch_heads * runs * rows * (dim + 2), dtype=torch.float32)
    block_d = block_of(dim)
    with on_device_of(q):
        decode_kernel[(batch_heads, runs)](
            q, k, v, parts, *rotation, *ranges,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            kv_heads, group, queries, keys, run, call.scale * LOG2_E, call.window,
            D=dim, BLOCK_D=block_d,
            BLOCK_M=max(MIN_ROWS, next_power_of_2(rows)), BLOCK_N=split.block_n,
            CAUSAL=call.causal, PRECISION=dot_precision(q.dtype), INTERPRETED=INTERPRETED,
            num_warps=split.num_warps, num_stages=split.num_stages,
        )  # fmt: skip
        join_kernel[(batch_heads, rows)](
            parts, out, *out.stride()[:3], kv_heads, group, queries, runs,
            D=dim, BLOCK_D=block_d, RUNS=FEW_RUNS if runs <= FEW_RUNS else MAX_RUNS, num_warps=4,
        )  # fmt: skip
    return out
