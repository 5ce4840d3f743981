"""What the attention launchers share: rules and rotation as arguments of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastgrow.kernels.common import as_strided_rows, next_power_of_2
from fastgrow.kernels.rotation import rotate
from fastgrow.kernels.tuned import NAMES


# These two are made at every call, which takes a dataclass three times as long.
class Rules(NamedTuple):
    """Which keys a query sees (fastgrow.ops.attention says how the rules combine)."""

    causal: bool = True
    window: int | None = None
    cu_seqlens: Tensor | None = None
    lengths: Tensor | None = None
    starts: Tensor | None = None


class Rope(NamedTuple):
    """Cosines and sines [positions, R/2] float32, and the keys' positions (0 … Tk − 1 without)."""

    cos: Tensor
    sin: Tensor
    position_ids: Tensor | None = None
    k_rotated: bool = False


@dataclass(frozen=True)
class Tiles:
    """Queries and keys a program handles at a time, and how it is compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# Lengths whose tiles are measured. A key that follows the length more closely would compile a
# kernel for every few sequences.
LENGTHS = (1024, 8192)


def bucket(dtype: torch.dtype, dim: int, keys: int) -> str:
    """The key of attention's measured tiles, such as `bf16/D=32/T=1024`."""
    return f"{NAMES[dtype]}/D={dim}/T={length_of(keys)}"


def length_of(keys: int) -> int:
    """The length that stands for this number of keys."""
    return LENGTHS[0] if keys <= 2 * LENGTHS[0] else LENGTHS[1]


def block_of(dim: int) -> int:
    """Width of a tile that holds `dim` features."""
    return max(16, next_power_of_2(dim))


def documents(cu_seqlens: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Where the document of each of `keys` tokens begins and ends, int32 [keys] each."""
    # What cu_seqlens holds is not checked on the host: nothing may point outside of the tokens.
    bounds = torch.nn.functional.pad(cu_seqlens.to(torch.int32).clamp(0, keys), (1, 0))
    bounds = torch.nn.functional.pad(bounds, (0, 1), value=keys)
    tokens = torch.arange(keys, device=cu_seqlens.device, dtype=torch.int32)
    inner = torch.searchsorted(bounds[1:-1].contiguous(), tokens, right=True)
    return bounds[inner].contiguous(), bounds[inner + 1].contiguous()


def rules_as_arguments(rules: Rules, keys: int) -> tuple[Tensor | None, ...]:
    """LENGTHS, STARTS, FIRSTS and ENDS of the kernels."""
    if rules.cu_seqlens is None:
        return rules.lengths, rules.starts, None, None
    return rules.lengths, rules.starts, *documents(rules.cu_seqlens, keys)


def rotated_keys(k: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor | None]:
    """The keys as the kernels want them, and their norms [B · H_kv, blocks] where those are known.

    Keys that have to be rotated are so in a transient workspace.
    """
    k = as_strided_rows(k)
    if rope is None or rope.k_rotated:
        return k, None
    return rotate(k, rope.cos, rope.sin, rope.position_ids)


def rope_as_arguments(rope: Rope | None) -> tuple[tuple[Tensor | None, ...], tuple[int, ...], int]:
    """(COS, SIN, POSITIONS), (table_stride, positions_b, n_positions) and the rotated width."""
    if rope is None:
        return (None, None, None), (0, 0, 0), 0
    cos, sin, ids, _ = rope
    of_rows = 0 if ids is None or ids.dim() == 1 else ids.stride(0)
    positions, half = cos.shape
    return (cos, sin, ids), (cos.stride(0), of_rows, positions), 2 * half


def empty_output(q: Tensor) -> Tensor:
    """[B, H, T, D] laid out as [B, T, H, D], which the output projection reads without a copy."""
    batch, heads, length, dim = q.shape
    # As torch counts them in tensors without elements, too.
    of_token = max(heads, 1) * dim
    strides = (max(length, 1) * of_token, dim, of_token, 1)
    return q.new_empty_strided((batch, heads, length, dim), strides)
