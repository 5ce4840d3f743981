"""Rotary position embedding (RoPE), rotate-half pairing.

With R rotated features out of D, position p and i < R/2:

    angle(p, i) = p · base^(−2i/R)
    y_i         = x_i · cos − x_{i+R/2} · sin
    y_{i+R/2}   = x_{i+R/2} · cos + x_i · sin

and features from R on pass unchanged. The product of a rotated query and a rotated key depends on
the difference of their positions alone (Su et al., arXiv 2104.09864).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops import _rope_triton
from fastgrow.ops.core.checks import check_float, check_ids, check_range
from fastgrow.ops.core.legacy import Operation

# Cosines and sines, each [positions, R/2] float32.
RopeTable = tuple[Tensor, Tensor]


def rope_table(
    positions: int, dim: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> RopeTable:
    """Cosines and sines for positions 0 … positions − 1, each [positions, dim/2] float32.

    The angles are formed in float64: in float32 those of position 100,000 are off by 0.004.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
    steps = torch.arange(positions, dtype=torch.float64, device="cpu")
    angles = torch.outer(steps, base**-exponents)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rope(
    x: Tensor,
    table: RopeTable,
    position_ids: Tensor | None = None,
    *,
    offset: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Rotate queries or keys by their positions.

    Args:
        x: [B, H, T, D] float.
        table: cosines and sines [positions, R/2] with R ≤ D (`rope_table`).
        position_ids: [T] or [B, T] integers; without them the positions are offset … offset+T−1.
        offset: the first token's position.
        impl: force an implementation.

    Returns:
        [B, H, T, D], dtype of `x`.

    Raises:
        ArgumentError: shapes, dtypes or devices do not go together, or the table is too short;
            under FASTGROW_DEBUG=1 also a position outside the table.
    """
    check_rope("rope", "x", x, table, position_ids, offset)
    return _OPERATION(x, *table, position_ids, offset, impl=impl)


def check_rope(
    operation: str,
    argument: str,
    x: Tensor,
    table: RopeTable,
    position_ids: Tensor | None,
    offset: int,
) -> None:
    """The checks of `rope`, for operations that rotate inside."""
    cos, sin = table
    if x.dim() != 4:
        raise argument_error(operation, argument, "of shape [B, H, T, D]", describe(x))
    check_float(operation, argument, x)
    shape, of_table = x.shape, cos.shape
    if len(of_table) != 2 or of_table != sin.shape or 2 * of_table[1] > shape[3]:
        expected = f"two tensors [positions, R/2] with R ≤ {shape[3]}"
        raise argument_error(
            operation, "the rope table", expected, f"{describe(cos)}, {describe(sin)}"
        )
    device = x.device
    for table_of in (cos, sin):
        if table_of.device != device:
            raise argument_error(operation, "the rope table", f"on {device}", describe(table_of))
    length = shape[2]
    if position_ids is None:
        if offset + length > of_table[0]:
            expected = f"of at least {offset + length} positions"
            raise argument_error(operation, "the rope table", expected, describe(cos))
        return
    check_ids(operation, "position_ids", position_ids)
    shapes = ((length,), (1, length), (x.shape[0], length))
    if tuple(position_ids.shape) not in shapes or position_ids.device != x.device:
        expected = f"of shape [{length}] or [{x.shape[0]}, {length}] on {x.device}"
        raise argument_error(operation, "position_ids", expected, describe(position_ids))
    check_range(operation, "position_ids", position_ids, 0, cos.shape[0])


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = torch.zeros(1, 2, 4, 32, device=device)
    return (x, *rope_table(4, 32, device=device), None, 0), {}


_OPERATION = Operation("rope", example=_example)


@_OPERATION.implementation("eager")
def rope_eager(
    x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None, offset: int
) -> Tensor:
    """The formula, as it stands."""
    if position_ids is None:
        cos, sin = cos[offset : offset + x.shape[2]], sin[offset : offset + x.shape[2]]
    else:
        # [B, T, R/2] gets an axis for the heads, [T, R/2] needs none.
        cos, sin = cos[position_ids], sin[position_ids]
        if position_ids.dim() == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*rotated, rest) if rest.shape[-1] else rotated, dim=-1)


_OPERATION.implementation("triton", verify=_rope_triton.can_serve, pays=_rope_triton.pays)(
    _rope_triton.rope_triton
)


def rotated(x: Tensor, table: RopeTable, position_ids: Tensor | None, offset: int) -> Tensor:
    """`rope` without its checks, for operations that rotate inside and have made them."""
    y: Tensor = _OPERATION(x, *table, position_ids, offset)
    return y
