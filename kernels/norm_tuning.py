"""Candidate configurations of the norms' kernels (benchmarks/tuning.py measures them).

The inputs are bf16 rows with a residual; in the backward pass the parameters are trainable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from fastgrow.kernels.calls import NormCall
from fastgrow.kernels.norm import RULES, Rows, backward, bucket, forward
from fastgrow.kernels.tunable import Tunable

DTYPE = torch.bfloat16
ELEMENTS = 2**26  # elements of each tensor of a launch, 128 MiB: more than any cache
DIMS = (256, 512, 1024, 2048, 4096)
HEADLINE_DIMS = (1024, 2048)


def _forward_candidates(dim: int) -> list[Rows]:
    """Return candidates with 512 to 2,048 elements per warp."""
    return [
        Rows(rows, warps, 1, 1)
        for rows in (1, 2, 4, 8)
        for warps in (1, 2, 4, 8, 16)
        if 512 <= rows * dim // warps <= 2048
    ]


def _backward_candidates(dim: int) -> list[Rows]:
    """Return candidates with 8 elements per thread and various tiles in flight, and with 16."""
    warps = max(1, dim // 256)
    full = [Rows(1, warps, stages, 16 // warps) for stages in (1, 2, 3, 4)]
    half = [Rows(rows, warps, 2, 8 // warps) for rows in (1, 2) if warps <= 8]
    half += [Rows(1, warps // 2, stages, 16 // warps) for stages in (2, 3) if warps >= 2]
    return full + half


CANDIDATES = {"norm_forward": _forward_candidates, "norm_backward": _backward_candidates}


def tunables(capability: int) -> list[Tunable[Rows]]:
    """Return a tunable for both kernels at every width that may have an entry in a table."""
    return [
        Tunable(
            kernel=kernel,
            bucket=bucket(DTYPE, dim),
            default=RULES[kernel](dim),
            others=candidates(dim),
            function=f"{kernel.removeprefix('norm_')}_kernel",
            prepare=functools.partial(_prepare, kernel, dim),
            capability=capability,
            rank=0 if dim in HEADLINE_DIMS else 2,
        )
        for kernel, candidates in CANDIDATES.items()
        for dim in DIMS
    ]


def _prepare(kernel: str, dim: int, device: str) -> Callable[[Rows], object]:
    """Prepare layer norm of random rows."""
    shape = (ELEMENTS // dim, dim)
    x, residual, d_y, d_total = (torch.randn(shape, dtype=DTYPE, device=device) for _ in range(4))
    weight, bias = (torch.randn(dim, dtype=DTYPE, device=device) for _ in range(2))

    def layer_norm(rows: Rows) -> tuple[torch.Tensor | None, ...]:
        call = NormCall(x, residual, weight, bias, 1e-5, True, DTYPE)
        return forward(call, rows=rows)

    if kernel == "norm_forward":
        return layer_norm
    _, total, mean, rstd = layer_norm(RULES["norm_forward"](dim))
    assert total is not None
    assert rstd is not None
    return lambda rows: backward(
        *(d_y, d_total, total, mean, rstd, weight),
        for_input=True, for_weight=True, for_bias=True, parameter_dtype=DTYPE, rows=rows,
    )  # fmt: skip
