"""The Triton implementation of `mlp`: when it serves, when it pays, its torch.library ops."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.ops._mlp_gradients import (
    IMPLEMENTATIONS,
    Steps,
    compute_dtype,
    needs_gradient,
    run,
)
from fastgrow.ops._mlp_vendor import has_epilogue
from fastgrow.ops.core import triton_support
from fastgrow.ops.core.dispatch import Answer

# Elements of the hidden layer: 16 MB in half precision, which pass a GPU's L2 cache unnoticed.
ENOUGH = 1 << 23


def can_serve(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Answer:
    """The verifier."""
    return triton_support.can_run(x)


def pays(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Answer:
    """By reasoning, not measured: large layers in half precision.

    What there is to save is the activation's traffic. With d = 1,024, m = 4,096 and 16,384 rows in
    bf16 on an H200 each product takes about 0.19 ms in cuBLAS (137 GFLOP at 720 TFLOP/s), and each
    passage of the hidden layer, 134 MB, 0.034 ms (at 4 TB/s). Our product has tiles of 128 × 256,
    of which an SM works on one at a time: 16,400 cycles of the matrix units at their peak, 19,000
    as other Triton kernels do it, and 5,000 to 7,000 of epilogue: 0.23 ms. Therefore

    - forward, nothing kept: fused, 0.23 ms, against product, read and write, 0.26 ms (for SwiGLU
      0.46 ms against two products and three passages, 0.48 ms);
    - forward, kept for backward: the library's product and one pass, 0.26 ms; fused, only a read
      is saved and the epilogue is longer, about the same, and the library's product is the surer;
    - the hidden gradient: fused, 0.25 ms (128 × 128, two on an SM, of which one multiplies while
      the other is in its epilogue), against a product and four passages, 0.32 ms; either way the
      activation is recomputed on the way, not kept, and the bias's gradient summed;
    - the second product and all weights' gradients: the library's, since an epilogue that adds a
      bias, which cuBLAS has too, or a residual, 0.02 ms, does not pay for a slower product.

    `fastgrow.kernels.mlp` holds these choices, and a measured table overrides each. GELU's tanh
    form with nothing kept is left to cuBLASLt, whose epilogue has it. Small layers stay in the
    cache, so nothing is saved, and in fp32 the products take longer by far than all passages.
    """
    ok, reason = triton_support.pays_on(x)
    if not ok:
        return False, reason
    if compute_dtype(x) == torch.float32:
        return False, "products in float32 leave little to save around them"
    if x.numel() // max(x.shape[-1], 1) * up.shape[0] < ENOUGH:
        return False, "so small a layer stays in the GPU's cache between its products"
    if has_epilogue(x, up_bias, activation) and not needs_gradient(x, up, up_bias):
        return False, "cuBLASLt has this activation in its epilogue"
    return True, "the hidden layer passes through memory fewer times"


def mlp_triton(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """The kernels of fastgrow.kernels.mlp."""
    return run("triton", x, up, down, gate, up_bias, down_bias, activation, residual)


# What is not asked for comes as an empty tensor: an op returns as many tensors each time.
_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "mlp_hidden(Tensor x, Tensor up, Tensor? gate, Tensor? up_bias, str activation, bool kept) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define(
    "mlp_output(Tensor hidden, Tensor down, Tensor? down_bias, Tensor? residual) -> Tensor"
)
_library.define(
    "mlp_d_hidden(Tensor dy, Tensor down, Tensor pre, Tensor? pre_gate, str activation, "
    "bool with_hidden, bool with_sums) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _run_hidden(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    kept: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from fastgrow.kernels.mlp import hidden

    out, pre, pre_gate = hidden(x, up, gate, up_bias, activation, kept=kept)
    return out, _or_empty(pre, x), _or_empty(pre_gate, x)


def _run_output(
    hidden: Tensor, down: Tensor, down_bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    from fastgrow.kernels.mlp import output

    return output(hidden, down, down_bias, residual)


def _run_d_hidden(
    dy: Tensor,
    down: Tensor,
    pre: Tensor,
    pre_gate: Tensor | None,
    activation: str,
    with_hidden: bool,
    with_sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastgrow.kernels.mlp import d_hidden

    d_pre, d_gate, out, sums = d_hidden(
        dy, down, pre, pre_gate, activation, with_hidden=with_hidden, with_sums=with_sums
    )
    none = dy.new_empty(0, dtype=torch.float32) if sums is None else sums
    return d_pre, _or_empty(d_gate, dy), _or_empty(out, dy), none


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


for _key in ("CPU", "CUDA"):
    _library.impl("mlp_hidden", _run_hidden, _key)
    _library.impl("mlp_output", _run_output, _key)
    _library.impl("mlp_d_hidden", _run_d_hidden, _key)


@torch.library.register_fake("fastgrow::mlp_hidden", lib=_library)
def _(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    kept: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], up.shape[0])
    return (
        x.new_empty(shape),
        x.new_empty(shape if kept else 0),
        x.new_empty(shape if kept and gate is not None else 0),
    )


@torch.library.register_fake("fastgrow::mlp_output", lib=_library)
def _(hidden: Tensor, down: Tensor, down_bias: Tensor | None, residual: Tensor | None) -> Tensor:
    dtype = hidden.dtype
    if residual is not None:
        dtype = torch.promote_types(dtype, residual.dtype)
    return hidden.new_empty(hidden.shape[0], down.shape[0], dtype=dtype)


@torch.library.register_fake("fastgrow::mlp_d_hidden", lib=_library)
def _(
    dy: Tensor,
    down: Tensor,
    pre: Tensor,
    pre_gate: Tensor | None,
    activation: str,
    with_hidden: bool,
    with_sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        dy.new_empty(pre.shape),
        dy.new_empty(0 if pre_gate is None else pre.shape),
        dy.new_empty(pre.shape if with_hidden else 0),
        dy.new_empty(pre.shape[1] if with_sums else 0, dtype=torch.float32),
    )


def _hidden(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    kept: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    out, pre, pre_gate = torch.ops.fastgrow.mlp_hidden(x, up, gate, up_bias, activation, kept)
    return out, pre if kept else None, None if gate is None or not kept else pre_gate


def _output(
    hidden: Tensor, down: Tensor, down_bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    y: Tensor = torch.ops.fastgrow.mlp_output(hidden, down, down_bias, residual)
    return y


def _d_hidden(
    dy: Tensor,
    down: Tensor,
    pre: Tensor,
    pre_gate: Tensor | None,
    activation: str,
    with_hidden: bool,
    with_sums: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    d_pre, d_gate, hidden, sums = torch.ops.fastgrow.mlp_d_hidden(
        dy, down, pre, pre_gate, activation, with_hidden, with_sums
    )
    return (
        d_pre,
        None if pre_gate is None else d_gate,
        hidden if with_hidden else None,
        sums if with_sums else None,
    )


IMPLEMENTATIONS["triton"] = Steps(_hidden, _output, _d_hidden)
