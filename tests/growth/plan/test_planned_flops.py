"""Counted FLOPs are those that torch's counter finds in a real step."""

from __future__ import annotations

import pytest
import torch
from steps import KINDS, Step, make_step
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from fastgrow.growth import GrowthSchedule, Stage
from fastgrow.growth.flops import stack_flops
from fastgrow.growth.roles import roles

aten = torch.ops.aten


def _attention(q, k, v, *_, **__) -> int:
    return flop_counter.sdpa_flop_count(q, *_with_heads_of(q, k, v))


def _attention_backward(dy, q, k, v, *_, **__) -> int:
    return flop_counter.sdpa_backward_flop_count(dy, q, *_with_heads_of(q, k, v))


def _with_heads_of(q, k, v) -> list[tuple[int, ...]]:
    """A head of keys serves several of queries; the counter of torch 2.11 ignores that."""
    return [(shape[0], q[1], *shape[2:]) for shape in (k, v)]


def _added_product(total, a, b, *_, **__) -> int:
    return flop_counter.addmm_flop(total, a, b)


# The counter supports the GPU's fused attention but not the CPU's, nor in-place added products.
ON_CPU = {
    aten.addmm_: _added_product,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counted(step: Step) -> tuple[int, int]:
    """Forward and backward as torch counts them."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as forward:
        loss = step.loss()
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def planned(step: Step) -> tuple[int, int]:
    stack = roles(step.shape, step.stage.lora, step.config)
    flops = stack_flops(step.config, step.ids.shape[1], stack, head=step.shape.head)
    tokens = step.ids.numel()
    return flops.forward * tokens, flops.backward * tokens


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_stage(kind: str) -> None:
    step = make_step(KINDS[kind])
    assert planned(step) == pytest.approx(counted(step), rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "swiglu", "norm": "rms_norm", "n_kv_head": 2},
        {"activation": "relu2", "mlp_ratio": 2.0},
        {"d": 48, "heads": 6, "seq_len": 40, "batch": 3},
        {"vocabulary": 3000, "batch": 1},
        {"embedding": "trainable"},
    ],
    ids=str,
)
def test_other_models(options: dict) -> None:
    for kind in ("first", "new and LoRA below"):
        step = make_step(KINDS[kind], **options)
        assert planned(step) == pytest.approx(counted(step), rel=1e-3)


def test_a_loss_that_the_counter_does_not_count() -> None:
    """Many logits are made some rows at a time, by an operation that is one call to the counter."""
    step = make_step([Stage(1), Stage(1)], vocabulary=40_000, batch=2)
    head = 2 * step.config.d_model * step.config.vocab_size * step.ids.numel()
    assert sum(planned(step)) == pytest.approx(sum(counted(step)) + 3 * head, rel=1e-3)


def test_an_active_table_needs_the_gradient_of_all_blocks() -> None:
    stages = GrowthSchedule([Stage(1)])
    frozen, trainable = (
        make_step(list(stages.stages), embedding=e) for e in ("frozen", "trainable")
    )
    flows = [roles(step.shape, None, step.config)[0].input_grad for step in (frozen, trainable)]
    assert flows == [False, True]
