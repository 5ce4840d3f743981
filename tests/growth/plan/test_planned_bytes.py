"""Counted bytes are those that a real step allocates."""

from __future__ import annotations

import pytest
import torch
from steps import KINDS, Step, make_step

from benchmarks.memory import peak_bytes
from fastgrow.growth.plan.block_memory import MicroBatch
from fastgrow.growth.plan.memory import StepBytes, step_bytes
from fastgrow.growth.roles import roles
from fastgrow.ops.heads import loss_workspace
from fastgrow.training.activations import block_forwards

# Shapes that nothing was tuned on: one with mostly weights, one with mostly activations, and one
# whose logits are computed in parts.
SHAPES = {
    "weights": {"d": 96, "heads": 6, "vocabulary": 700, "batch": 1, "seq_len": 24},
    "activations": {"d": 48, "heads": 4, "vocabulary": 200, "batch": 8, "seq_len": 80},
    "logits": {"d": 64, "heads": 2, "vocabulary": 20_000, "batch": 3, "seq_len": 56},
}
OTHERS = [
    {"activation": "swiglu", "norm": "rms_norm", "n_kv_head": 2, "batch": 4},
    {"activation": "relu2", "batch": 4},
    {"embedding": "trainable", "vocabulary": 900},
]


def planned(step: Step, accumulate: int = 1, *, recompute: bool = False) -> StepBytes:
    return step_bytes(
        step.config,
        roles(step.shape, step.stage.lora, step.config),
        MicroBatch(step.ids.numel()),
        head=step.shape.head,
        final_norm=step.shape.final_norm,
        table=step.shape.table,
        accumulate=accumulate,
        recompute=recompute,
    )


def kept_bytes(step: Step) -> int:
    """Bytes that autograd saves, each tensor once, without weights and the loss's own."""
    model = step.model
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in own:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss()
    del loss
    tokens, (vocabulary, d) = step.ids.numel(), model.lm_head.weight.shape
    in_loss = 4 * tokens * vocabulary
    workspace = loss_workspace(tokens, d, vocabulary, itemsize=4, device="cpu", head_bytes=0)
    if workspace.implementation != "eager":
        in_loss = 4 * (tokens * d + (vocabulary * (d + 1) if step.shape.head else 0))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - in_loss


def measured_peak(step: Step, accumulate: int = 1) -> int:
    def run() -> None:
        for _ in range(accumulate):
            step.loss().backward()

    run()
    step.model.zero_grad(set_to_none=True)
    return peak_bytes(run, torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_for_the_backward_pass(kind: str) -> None:
    step = make_step(KINDS[kind], batch=4)
    assert planned(step).activations == pytest.approx(kept_bytes(step), rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["on top", "everything", "new and LoRA below", "LoRA alone"])
def test_the_worst_moment(kind: str, shape: str) -> None:
    step = make_step(KINDS[kind], **SHAPES[shape])
    assert planned(step).peak == pytest.approx(measured_peak(step), rel=0.1)


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_other_models(options: dict) -> None:
    for kind in ("LoRA alone", "LoRA on up", "LoRA on down"):
        step = make_step(KINDS[kind], **options)
        assert planned(step).activations == pytest.approx(kept_bytes(step), rel=0.05), kind
    step = make_step(KINDS["first"], **options)
    assert planned(step).activations == pytest.approx(kept_bytes(step), rel=0.05)
    assert planned(step).peak == pytest.approx(measured_peak(step), rel=0.1)


def test_gradients_and_optimizer_are_exact() -> None:
    for kind in KINDS:
        step = make_step(KINDS[kind])
        step.loss().backward()
        gradients = sum(p.grad.nbytes for p in step.active.values() if p.grad is not None)
        assert planned(step).gradients == gradients, kind


def test_gradients_of_earlier_micro_batches_are_counted() -> None:
    step = make_step(KINDS["on top"], d=96, heads=6, batch=1)
    once, twice = (planned(step, n).peak for n in (1, 2))
    assert twice > once
    assert twice == pytest.approx(measured_peak(step, 2), rel=0.1)


def test_depth_below_costs_no_activations() -> None:
    shallow, deep = (make_step([*KINDS["first"] * n, KINDS["first"][0]]) for n in (1, 4))
    assert planned(shallow).peak == planned(deep).peak


@pytest.mark.parametrize("kind", ["on top", "everything", "window", "LoRA alone", "between"])
def test_blocks_that_run_again_keep_their_input(kind: str) -> None:
    step = make_step(KINDS[kind], **SHAPES["activations"])
    with block_forwards(step.model, checkpoint_activations=True):
        step_plan = planned(step, recompute=True)
        assert step_plan.activations == pytest.approx(kept_bytes(step), rel=0.05)
        assert step_plan.peak == pytest.approx(measured_peak(step), rel=0.1)
