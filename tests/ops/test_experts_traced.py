"""Trace the extension's operations for a GPU without having one; nothing is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgrow import _native, ops
from fastgrow.ops.core import extension

V = 300
Run = Callable[[list[Tensor], Tensor], Tensor | tuple[Tensor, Tensor]]
FORCED = {"impl": "native"}
CHOICES: dict[str, Run] = {
    "logit_mean": lambda x, _: ops.logit_mean(x, **FORCED),
    "mean_argmax": lambda x, _: ops.mean_argmax(x, **FORCED),
    "mean_top_k": lambda x, _: ops.mean_top_k(x, 5, **FORCED),
    "mean_sample": lambda x, _: ops.mean_sample(x, **FORCED),
    "mean_sample, cut": lambda x, _: ops.mean_sample(x, top_k=7, top_p=0.9, **FORCED),
    "mean_sample, nucleus": lambda x, _: ops.mean_sample(x, top_p=0.9, **FORCED),
    "probability_mean": lambda x, _: ops.probability_mean(x, **FORCED),
}
LOSSES: dict[str, Run] = {
    "mean_cross_entropy": lambda x, t: ops.mean_cross_entropy(x, t, **FORCED),
    "mean_log_softmax_gather": lambda x, t: ops.mean_log_softmax_gather(x, t, **FORCED).sum(),
    "probability_mean_gather": lambda x, t: ops.probability_mean_gather(x, t, **FORCED).sum(),
}


@pytest.fixture(autouse=True)
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the extension for a GPU is loaded; `meta` tensors count as a GPU's."""
    monkeypatch.setattr(extension, "GPU", "meta")
    monkeypatch.setattr(_native, "CUDA", dataclasses.replace(_native.CUDA, loaded=True))


def arguments(device: str) -> tuple[list[Tensor], Tensor]:
    logits = [torch.empty(2, 3, V, dtype=torch.bfloat16, device=device) for _ in range(3)]
    return logits, torch.zeros(2, 3, dtype=torch.int64, device=device)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_compile_to_one_graph(name: str) -> None:
    logits, targets = arguments("meta")
    expected = CHOICES[name](logits, targets)
    compiled = torch.compile(CHOICES[name], fullgraph=True, backend="aot_eager")
    found = compiled(logits, targets)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for a, b in pairs:
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_compile_to_one_graph(name: str) -> None:
    logits, targets = arguments("meta")
    for x in logits:
        x.requires_grad_()
    loss = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")(logits, targets)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, logits)
    assert [(g.shape, g.dtype) for g in gradients] == [(x.shape, x.dtype) for x in logits]


def test_linear_kl_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors count as a GPU's, because `meta` has no autocast; the trace is not run."""
    monkeypatch.setattr(extension, "GPU", "cpu")
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
        graphs.append(graph)
        return lambda *values: [torch.zeros((), requires_grad=True)]

    h, weight = torch.zeros(2, 16, requires_grad=True), torch.zeros(V, 16, requires_grad=True)

    def run(h: Tensor, weight: Tensor) -> Tensor:
        return ops.linear_kl(h, weight, [(h, weight, None)], **FORCED)

    torch.compile(run, fullgraph=True, backend=backend)(h, weight)
    assert len(graphs) == 1


def test_results_are_where_the_logits_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "GPU", "cuda")
    with FakeTensorMode():
        logits, targets = arguments("cuda")
        for run in (*CHOICES.values(), *LOSSES.values()):
            found = run(logits, targets)
            for x in found if isinstance(found, tuple) else (found,):
                assert x.device.type == "cuda"
