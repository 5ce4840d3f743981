"""The lookup with a Triton kernel. It has no gradient: the table must be frozen."""

from __future__ import annotations

from torch import Tensor

from fastgrow.kernels.calls import EmbeddingCall
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import launched_by, needs_gradient


def can_serve(call: EmbeddingCall) -> Answer:
    """Whether the kernel can run."""
    ok, reason = dispatch.triton_can_run(call.ids, call.dtype)
    if ok and needs_gradient(call.table):
        return False, "the table requires a gradient, which only eager supports"
    return ok, reason


def pays(call: EmbeddingCall) -> Answer:
    """True if features are repeated or bits unpacked: estimated, not measured."""
    ok, reason = dispatch.triton_pays_on(call.ids)
    if ok and call.bits is None and call.repeat == 1:
        return False, "torch's lookup copies rows as fast"
    return ok, reason or "features are repeated or bits unpacked in the lookup"


# A function decorated with `launched_by` only makes empty results, for torch.compile; the launcher
# in fastgrow.kernels computes them.
@launched_by("embedding.lookup")
def embedding_lookup(call: EmbeddingCall) -> Tensor:
    """Return the rows of the ids, with features repeated."""
    return call.ids.new_empty(*call.ids.shape, call.width, dtype=call.dtype)


def run(call: EmbeddingCall) -> Tensor:
    """Run the kernel of fastgrow.kernels.embedding."""
    return embedding_lookup(*call)
