"""Launchers of the norms' kernels, and how they distribute rows over programs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgrow.kernels.calls import NormCall
from fastgrow.kernels.common import (
    INTERPRETED,
    as_rows,
    cdiv,
    contiguous_like,
    next_power_of_2,
    on_device_of,
)
from fastgrow.kernels.norm_backward import backward_kernel, sum_kernel, wide_backward_kernel
from fastgrow.kernels.norm_forward import forward_kernel, wide_forward_kernel
from fastgrow.kernels.tuned import NAMES, chosen_once, measured, multiprocessors

# Most features of a row that fit a program's registers: two tensors in the forward pass, three in
# the backward pass, and three with the sums of two parameters.
WIDEST_FORWARD = 16384
WIDEST_BACKWARD = 8192
WIDEST_WITH_PARAMETERS = 4096
# Features of a wider row that are processed at a time.
CHUNK = 4096 if not INTERPRETED else 32768
# Assumed number of multiprocessors if there is no GPU.
WITHOUT_GPU = 3 if INTERPRETED else 132


@dataclass(frozen=True)
class Rows:
    """How rows are distributed over programs."""

    rows: int  # rows of a tile
    num_warps: int
    num_stages: int  # tiles in flight, in programs that process many tiles
    programs: int  # programs per multiprocessor, if they process many tiles


def forward_rows(dim: int) -> Rows:
    """Return the default of the forward kernel.

    A warp has 1,024 elements: in bf16, 64 bytes in flight for each thread and tensor. A row of up
    to 1,024 features belongs to one warp, which sums it without shared memory or barriers.
    """
    block = next_power_of_2(dim)
    if INTERPRETED:
        return Rows(max(1, 32768 // block), 4, 1, 1)
    return Rows(max(1, 1024 // block), max(1, block // 1024), 1, 1)


def backward_rows(dim: int) -> Rows:
    """Return the default of the backward kernel.

    Each thread has one 16-byte vector of bf16 for each tensor of a tile, and the next two tiles are
    in flight. Few elements per thread leave registers for the sums of its columns. 16 warps per
    multiprocessor have 48 KiB in flight, while about 25 KiB hide the memory's latency, and the sums
    of all programs are 4 MiB on 132 multiprocessors for any number of features.
    """
    block = next_power_of_2(dim)
    if INTERPRETED:
        return Rows(max(1, 8192 // block), 4, 1, 1)
    warps = min(max(1, block // 256), 16)
    return Rows(max(1, 256 // block), warps, 3 if block <= 4096 else 2, 16 // warps)


RULES = {"norm_forward": forward_rows, "norm_backward": backward_rows}


def bucket(dtype: torch.dtype, dim: int) -> str:
    """Return the key of measured configurations, such as `bf16/D=1024`."""
    return f"{NAMES[dtype]}/D={next_power_of_2(dim)}"


def inference(call: NormCall) -> tuple[Tensor, Tensor | None]:
    """Return y and total of `forward`, without writing statistics."""
    return forward(call, with_statistics=False)[:2]


@chosen_once
def _rows(kernel: str, dtype: torch.dtype, dim: int, device: torch.device) -> Rows:
    return measured(kernel, bucket(dtype, dim), device, Rows) or RULES[kernel](dim)


def forward(
    call: NormCall, *, with_statistics: bool = True, rows: Rows | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Normalise the last axis of x [..., d] (+ residual), d ≥ 1, of float32, bfloat16 or float16.

    Args:
        with_statistics: whether to return mean and rstd, which `backward` needs.
        rows: how rows are distributed over programs, for tuning.

    Returns:
        y and total = x + residual (None without a residual), contiguous, of x's shape; mean (None
        if not centred) and rstd, one float32 per row, None without `with_statistics`.
    """
    x, residual, weight, bias, eps, centred, dtype = call
    dim = x.shape[-1]
    count = x.numel() // dim
    y = contiguous_like(x, dtype)
    promoted = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    total = None if residual is None else contiguous_like(x, promoted)
    rstd = x.new_empty(count, dtype=torch.float32) if with_statistics else None
    mean = torch.empty_like(rstd) if rstd is not None and centred else None
    if count == 0:
        return y, total, mean, rstd
    x, x_stride = as_rows(x)
    residual, residual_stride = (None, 0) if residual is None else as_rows(residual)
    block = next_power_of_2(dim)
    wide = block > WIDEST_FORWARD
    rows = rows or (Rows(1, 8, 1, 1) if wide else _rows("norm_forward", x.dtype, dim, x.device))
    kernel = wide_forward_kernel if wide else forward_kernel
    with on_device_of(x):
        kernel[(cdiv(count, rows.rows),)](
            x, residual, _flat(weight), _flat(bias), y, total, mean, rstd,
            x_stride, residual_stride, count, eps,
            D=dim, CENTRED=centred, BLOCK_M=rows.rows, BLOCK_D=CHUNK if wide else block,
            num_warps=rows.num_warps,
        )  # fmt: skip
    return y, total, mean, rstd


def backward(
    d_y: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    for_input: bool,
    for_weight: bool,
    for_bias: bool,
    parameter_dtype: torch.dtype,
    *,
    rows: Rows | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients of `forward`; None for those that are not requested.

    Args:
        d_y: gradient of y [..., d].
        d_total: gradient of total that does not come through y.
        total: x + residual, or x without a residual.
        mean, rstd: results of `forward`.
        weight: [d].
        for_input, for_weight, for_bias: which gradients to compute.
        parameter_dtype: dtype of the gradients of weight and bias; they are summed in float32.
        rows: how rows are distributed over programs, for tuning.

    Returns:
        The gradient of x and of residual, in the dtype of total; of weight; of bias.
    """
    dim = total.shape[-1]
    count = total.numel() // dim
    dx = contiguous_like(total) if for_input else None
    # Sums over zero rows are zero.
    new = total.new_empty if count > 0 else total.new_zeros
    d_weight = new(dim, dtype=parameter_dtype) if for_weight else None
    d_bias = new(dim, dtype=parameter_dtype) if for_bias else None
    if count == 0:
        return dx, d_weight, d_bias
    d_y, dy_stride = as_rows(d_y)
    d_total, d_total_stride = (None, 0) if d_total is None else as_rows(d_total)
    total, total_stride = as_rows(total)
    tensors = (d_y, d_total, total, mean, rstd, _flat(weight))
    numbers = (dy_stride, d_total_stride, total_stride, count)
    block = next_power_of_2(dim)
    parameters = for_weight or for_bias
    with on_device_of(total):
        if block <= (WIDEST_WITH_PARAMETERS if parameters else WIDEST_BACKWARD):
            _launch_tiles(tensors, numbers, rows, dim, block, dx, d_weight, d_bias)
            return dx, d_weight, d_bias
        if dx is not None and block <= WIDEST_BACKWARD:
            _launch_tiles(tensors, numbers, rows, dim, block, dx, None, None)
        elif dx is not None:
            wide_backward_kernel[(count,)](
                *tensors, dx, *numbers, D=dim, BLOCK_M=1, BLOCK_D=CHUNK, num_warps=8
            )
        if parameters:
            # Sums over rows do not need whole rows in a tile.
            _launch_tiles(tensors, numbers, rows, dim, CHUNK, None, d_weight, d_bias)
    return dx, d_weight, d_bias


def _launch_tiles(
    tensors: tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None],
    numbers: tuple[int, int, int, int],
    rows: Rows | None,
    dim: int,
    block: int,
    dx: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """Fill the given gradients, in tiles of `block` features, which are whole rows for dx."""
    total, count = tensors[2], numbers[3]
    device = total.device
    rows = rows or _rows("norm_backward", total.dtype, block, device)
    programs = min(cdiv(count, rows.rows), multiprocessors(device, WITHOUT_GPU) * rows.programs)
    of_weight = None if d_weight is None else total.new_empty(programs, dim, dtype=torch.float32)
    of_bias = None if d_bias is None else total.new_empty(programs, dim, dtype=torch.float32)
    backward_kernel[(programs, cdiv(dim, block))](
        *tensors, dx, of_weight, of_bias, *numbers,
        D=dim, BLOCK_M=rows.rows, BLOCK_D=block, STAGES=rows.num_stages,
        # Without a limit the compiler may spill to make room for more programs than are launched.
        num_warps=rows.num_warps, maxnreg=min(2048 // (rows.num_warps * rows.programs), 255) & -8,
    )  # fmt: skip
    if d_weight is not None or d_bias is not None:
        # Few long columns, with 8 vectors in flight for each thread.
        block_m, block_d = (4, 4096) if INTERPRETED else (256, 32)
        sum_kernel[(cdiv(dim, block_d), 2)](
            of_weight, of_bias, d_weight, d_bias, programs,
            D=dim, BLOCK_M=block_m, BLOCK_D=block_d, num_warps=8,
        )  # fmt: skip


def _flat(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()
