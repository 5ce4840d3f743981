"""Launchers of the feed-forward layer's three products that can be fused with other steps.

The configuration of a product selects one of two ways to compute it: one kernel with the remaining
steps in its epilogue, or the library's product followed by one pass over its result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import MlpHidden, MlpHiddenGradient, MlpOutput
from fastgrow.kernels.common import INTERPRETED, cdiv, measured_size, on_device_of
from fastgrow.kernels.matmul import MatmulTiles
from fastgrow.kernels.mlp_backward import d_hidden_kernel
from fastgrow.kernels.mlp_elementwise import activate_kernel, d_activate_kernel
from fastgrow.kernels.mlp_forward import hidden_kernel, output_kernel
from fastgrow.kernels.tuned import NAMES, capability_of, chosen_once, measured


@dataclass(frozen=True)
class ProductChoice(MatmulTiles):
    """How a product is computed: `fused` is 2 for our kernel with these tiles, 1 for a library."""

    fused: int = 2


# Numbers of rows whose configurations are measured.
ROWS = (2048, 16384)
# Rows and columns of a tile of the backward pass over elements, and rows of a program.
PASS_M, PASS_N, PASS_ROWS = 16, 256, 128
PASS_BLOCK = 2048
# Columns of a hidden gradient's tile that are processed at a time, unless that would be more than
# four parts.
PART_N = 32


def bucket(dtype: torch.dtype, epilogue: str, K: int, N: int, rows: int) -> str:
    """Return the key of measured configurations, such as `bf16/gelu/K=1024/N=4096/M=16384`.

    `epilogue` is the activation, or for the second product `plain` or `residual`.
    """
    return f"{NAMES[dtype]}/{epilogue}/K={K}/N={N}/M={measured_size(rows, ROWS)}"


def default_product(
    kernel: str, dtype: torch.dtype, epilogue: str, *, evenly: bool = True, capability: int = 90
) -> ProductChoice:
    """Return the default configuration of a product.

    Args:
        kernel: `mlp_hidden`, `mlp_hidden_kept`, `mlp_output` or `mlp_d_hidden`.
        evenly: whether rows are whole vectors. Other loads, together with an epilogue, spill.
    """
    if INTERPRETED:
        return ProductChoice(128, 128, 64, 8, 4, 1)
    if kernel == "mlp_output":
        return ProductChoice(128, 128, 64, 8, 4, 3, fused=1)
    fused = 1 if kernel == "mlp_hidden_kept" or dtype == torch.float32 or not evenly else 2
    if kernel == "mlp_d_hidden":
        return ProductChoice(128, 128, 64, 8, 8, 3, fused)
    # Before Hopper the operands are in registers, so tiles are smaller.
    block_n = 256 if capability >= 90 else 128
    return ProductChoice(128, block_n // 2 if epilogue == "swiglu" else block_n, 64, 8, 8, 3, fused)


@chosen_once
def _choice(
    kernel: str, dtype: torch.dtype, epilogue: str, K: int, N: int, rows: int, device: torch.device
) -> ProductChoice:
    found = measured(kernel, bucket(dtype, epilogue, K, N, rows), device, ProductChoice)
    return found or default_product(
        kernel, dtype, epilogue, evenly=K % 16 == N % 16 == 0, capability=capability_of(device)
    )


def hidden(
    step: MlpHidden, *, product: ProductChoice | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute f(x · upᵀ + bias), or silu(x · gateᵀ) ∘ (x · upᵀ + bias).

    x is [M, K], up and gate are [N, K].

    Returns:
        hidden [M, N] and, with `kept`, the pre-activations x · upᵀ + bias and, with a gate,
        x · gateᵀ. All are contiguous and have x's dtype.
    """
    x, up, gate, up_bias, activation, kept = step
    (M, K), N = x.shape, up.shape[0]
    kernel = "mlp_hidden_kept" if kept else "mlp_hidden"
    product = product or _choice(
        kernel, x.dtype, activation, K, N, measured_size(M, ROWS), x.device
    )
    fused = product.fused == 2
    if fused:
        out = x.new_empty(M, N)
        pre = x.new_empty(M, N) if kept else None
        pre_gate = x.new_empty(M, N) if kept and gate is not None else None
        up_bias = None if up_bias is None else up_bias.contiguous()
    else:
        pre = F.linear(x, up, up_bias)
        pre_gate = None if gate is None else F.linear(x, gate)
        out = torch.empty_like(pre) if kept else pre
    if out.numel() > 0:
        with on_device_of(x):
            if fused:
                hidden_kernel[product.grid(M, N)](
                    x, up, gate, up_bias, out, pre, pre_gate,
                    *x.stride(), *up.stride(), *(up if gate is None else gate).stride(), N, M, N, K,
                    ACTIVATION=activation, **product.constants(x, K),
                )  # fmt: skip
            else:
                activate_kernel[(cdiv(out.numel(), PASS_BLOCK),)](
                    pre, pre_gate, out, out.numel(),
                    ACTIVATION=activation, BLOCK=PASS_BLOCK, INTERPRETED=INTERPRETED, num_warps=8,
                )  # fmt: skip
    return (out, pre, pre_gate) if kept else (out, None, None)


def output(step: MlpOutput, *, product: ProductChoice | None = None) -> Tensor:
    """Compute hidden · downᵀ + bias + residual, of hidden [M, K], down [N, K], residual [M, N].

    Returns:
        [M, N], contiguous, in the dtype that hidden's and the residual's promote to.
    """
    hidden, down, down_bias, residual = step
    (M, K), N = hidden.shape, down.shape[0]
    added = "plain" if residual is None else "residual"
    product = product or _choice(
        "mlp_output", hidden.dtype, added, K, N, measured_size(M, ROWS), hidden.device
    )
    if product.fused == 1:
        y = F.linear(hidden, down, down_bias)
        return y if residual is None else y + residual
    of = hidden if residual is None else residual
    y = hidden.new_empty(M, N, dtype=torch.promote_types(hidden.dtype, of.dtype))
    if y.numel() > 0:
        down_bias = None if down_bias is None else down_bias.contiguous()
        with on_device_of(hidden):
            output_kernel[product.grid(M, N)](
                hidden, down, down_bias, residual, y,
                *hidden.stride(), *down.stride(),
                *((0, 0) if residual is None else residual.stride()), N, M, N, K,
                **product.constants(hidden, K),
            )  # fmt: skip
    return y


def d_hidden(
    step: MlpHiddenGradient, *, product: ProductChoice | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Compute (dy · down) ∘ f'(pre), of dy [M, K], down [K, N] and `hidden`'s pre [M, N].

    Returns:
        d_pre [M, N]; the gate's gradient [M, N] with a gate; f(pre) [M, N] with `with_hidden`;
        d_pre's column sums [N] in fp32 with `with_sums`. The others are None.
    """
    dy, down, pre, pre_gate, activation, with_hidden, with_sums = step
    (M, K), N = dy.shape, down.shape[1]
    product = product or _choice(
        "mlp_d_hidden", dy.dtype, activation, K, N, measured_size(M, ROWS), dy.device
    )
    fused = product.fused == 2
    d_pre = torch.empty_like(pre) if fused else torch.mm(dy, down)
    d_gate = None if pre_gate is None else torch.empty_like(pre)
    out = torch.empty_like(pre) if with_hidden else None
    height = product.block_m if fused else PASS_ROWS
    sums = dy.new_empty(cdiv(M, height), N, dtype=torch.float32) if with_sums else None
    if d_pre.numel() > 0:
        with on_device_of(dy):
            if fused:
                d_hidden_kernel[product.grid(M, N)](
                    dy, down, pre, pre_gate, d_pre, d_gate, out, sums,
                    *dy.stride(), *down.stride(), N, M, N, K,
                    ACTIVATION=activation, PART_N=PART_N, **product.constants(dy, K),
                )  # fmt: skip
            else:
                d_activate_kernel[(cdiv(M, PASS_ROWS), cdiv(N, PASS_N))](
                    d_pre, pre, pre_gate, d_pre, d_gate, out, sums, M, N,
                    ACTIVATION=activation, BLOCK_M=PASS_M, BLOCK_N=PASS_N, ROWS=PASS_ROWS,
                    INTERPRETED=INTERPRETED, num_warps=8,
                )  # fmt: skip
    return d_pre, d_gate, out, None if sums is None else sums.sum(0)
