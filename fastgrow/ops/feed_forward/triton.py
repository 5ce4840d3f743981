"""The feed-forward layer with Triton kernels: when the automatic choice uses them; operators."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import MlpCall, MlpHidden, MlpHiddenGradient, MlpOutput
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import compute_dtype
from fastgrow.ops.core.registration import launched_by
from fastgrow.ops.feed_forward.blas import is_in_epilogue
from fastgrow.ops.feed_forward.layer import Steps, layer_of

# Elements of the hidden layer: 16 MB in half precision; fewer stay in a GPU's L2 cache.
MIN_ELEMENTS = 1 << 23


def pays(call: MlpCall) -> Answer:
    """True for large layers in half precision: estimated, not measured.

    Fusing can avoid memory traffic of the hidden layer. With d = 1,024, m = 4,096 and 16,384 rows
    in bf16 on an H200 each product takes about 0.19 ms in cuBLAS (137 GFLOP at 720 TFLOP/s), and
    each read or write of the hidden layer, 134 MB, 0.034 ms (at 4 TB/s). The Triton product has
    tiles of 128 × 256, one per SM at a time: 16,400 cycles of the tensor cores at their peak,
    19,000 as in other Triton kernels, and 5,000 to 7,000 cycles of epilogue: 0.23 ms. Therefore

    - forward, nothing saved: fused, 0.23 ms, compared with product, read and write, 0.26 ms (for
      SwiGLU 0.46 ms compared with two products and three reads or writes, 0.48 ms);
    - forward, saved for backward: the library's product and one pass, 0.26 ms; fusing would avoid
      only a read and have a longer epilogue, which takes about the same time, so the library's
      product is used;
    - the hidden gradient: fused, 0.25 ms (128 × 128, two tiles per SM, one of which multiplies
      while the other is in its epilogue), compared with a product and four reads or writes, 0.32
      ms; both recompute the activation instead of saving it, and sum the bias's gradient;
    - the second product and all weights' gradients: the library's, since fusing the addition of a
      bias, which cuBLAS has too, or of a residual, 0.02 ms, does not make up for a slower product.

    These choices are made in `fastgrow.kernels.mlp`, and a measured table overrides each. For
    GELU's tanh form with nothing saved, cuBLASLt is used, whose epilogue has it. Small layers stay
    in the cache, so fusing saves nothing, and in fp32 the products take much longer than the memory
    traffic.
    """
    if compute_dtype(call.x) == torch.float32:
        return False, "in float32 the products take nearly all of the time"
    if call.x.numel() // max(call.x.shape[-1], 1) * call.up.shape[0] < MIN_ELEMENTS:
        return False, "the hidden layer is small enough for the GPU's cache"
    if is_in_epilogue(call):
        return False, "cuBLASLt has this activation in its epilogue"
    return True, "the hidden layer is read and written fewer times"


# Functions decorated with `launched_by` only make empty results, for torch.compile; the launchers
# in fastgrow.kernels compute them.
@launched_by("mlp.hidden")
def mlp_hidden(step: MlpHidden) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the activation, its input, and the gate's product."""
    out = step.x.new_empty(step.x.shape[0], step.up.shape[0])
    pre = torch.empty_like(out) if step.kept else None
    return out, pre, torch.empty_like(out) if step.kept and step.gate is not None else None


@launched_by("mlp.output")
def mlp_output(step: MlpOutput) -> Tensor:
    """Return the layer's result."""
    shape, dtype = (step.hidden.shape[0], step.down.shape[0]), step.hidden.dtype
    if step.residual is not None:
        dtype = torch.promote_types(dtype, step.residual.dtype)
    return step.hidden.new_empty(shape, dtype=dtype)


@launched_by("mlp.d_hidden")
def mlp_d_hidden(
    step: MlpHiddenGradient,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the activation's inputs, the activation, and the bias's gradient."""
    d_pre = torch.empty_like(step.pre)
    return (
        d_pre,
        None if step.pre_gate is None else torch.empty_like(d_pre),
        torch.empty_like(d_pre) if step.with_hidden else None,
        d_pre.new_empty(d_pre.shape[1], dtype=torch.float32) if step.with_sums else None,
    )


run = layer_of(Steps(mlp_hidden, mlp_output, mlp_d_hidden))
