"""The feed-forward layer by Triton kernels: when they serve, when they pay, the operators."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import MlpCall, MlpHidden, MlpHiddenGradient, MlpOutput
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import compute_dtype
from fastgrow.ops.core.registration import launched_by
from fastgrow.ops.feed_forward.blas import is_in_epilogue
from fastgrow.ops.feed_forward.layer import Steps, layer_of

# Elements of the hidden layer: 16 MB in half precision, which pass a GPU's L2 cache unnoticed.
ENOUGH = 1 << 23


def pays(call: MlpCall) -> Answer:
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
    if compute_dtype(call.x) == torch.float32:
        return False, "products in float32 leave little to save around them"
    if call.x.numel() // max(call.x.shape[-1], 1) * call.up.shape[0] < ENOUGH:
        return False, "so small a layer stays in the GPU's cache between its products"
    if is_in_epilogue(call):
        return False, "cuBLASLt has this activation in its epilogue"
    return True, "the hidden layer passes through memory fewer times"


@launched_by("mlp.hidden")
def mlp_hidden(step: MlpHidden) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The activation, and what it is of."""
    out = step.x.new_empty(step.x.shape[0], step.up.shape[0])
    pre = torch.empty_like(out) if step.kept else None
    return out, pre, torch.empty_like(out) if step.kept and step.gate is not None else None


@launched_by("mlp.output")
def mlp_output(step: MlpOutput) -> Tensor:
    """The layer's result."""
    shape, dtype = (step.hidden.shape[0], step.down.shape[0]), step.hidden.dtype
    if step.residual is not None:
        dtype = torch.promote_types(dtype, step.residual.dtype)
    return step.hidden.new_empty(shape, dtype=dtype)


@launched_by("mlp.d_hidden")
def mlp_d_hidden(
    step: MlpHiddenGradient,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of what the activation is of, the activation again, and its bias's gradient."""
    d_pre = torch.empty_like(step.pre)
    return (
        d_pre,
        None if step.pre_gate is None else torch.empty_like(d_pre),
        torch.empty_like(d_pre) if step.with_hidden else None,
        d_pre.new_empty(d_pre.shape[1], dtype=torch.float32) if step.with_sums else None,
    )


run = layer_of(Steps(mlp_hidden, mlp_output, mlp_d_hidden))
