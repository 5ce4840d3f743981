"""Rotary position embedding (RoPE) with rotate-half pairing.

With R rotated features out of D, position p and i < R/2:

    angle(p, i) = p · base^(−2i/R)
    y_i         = x_i · cos − x_{i+R/2} · sin
    y_{i+R/2}   = x_{i+R/2} · cos + x_i · sin

and features from R on are unchanged. The product of a rotated query and a rotated key depends only
on the difference of their positions (Su et al., arXiv 2104.09864).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import RopeCall
from fastgrow.ops.core.checks import check_rope
from fastgrow.ops.core.dispatch import Implementation, Operation, triton_kernels
from fastgrow.ops.rotary import reference, triton

RopeTable = tuple[Tensor, Tensor]
"""Cosines and sines, each [positions, R/2] float32."""


def rope_table(
    positions: int, dim: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> RopeTable:
    """Return cosines and sines for positions 0 … positions − 1, each [positions, dim/2] float32.

    The angles are computed in float64: in float32 the error at position 100,000 would be 0.004.
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
        position_ids: [T] or [B, T] integers; None for positions offset … offset + T − 1.
        offset: position of the first token.
        impl: force an implementation.

    Returns:
        [B, H, T, D], dtype of `x`.

    Raises:
        ArgumentError: shapes, dtypes or devices do not match, or the table is too short. A position
            outside the table raises only under FASTGROW_DEBUG=1.
    """
    cos, sin = table
    call = RopeCall(x, cos, sin, position_ids, offset)
    check_rope("rope", "x", call)
    return ROPE(call, impl)


def _example(device: torch.device) -> RopeCall:
    return RopeCall(torch.zeros(1, 2, 4, 32, device=device), *rope_table(4, 32, device=device))


ROPE = Operation(
    "rope",
    (
        triton_kernels(triton.run, triton.can_serve, triton.pays),
        Implementation("eager", reference.run),
    ),
    _example,
)
