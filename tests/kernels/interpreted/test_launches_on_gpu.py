"""Tests of every operation that need a GPU: CUDA graphs, streams, other devices, no waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from harness import INTERPRETED
from layers import LAUNCHES, Layer, batch, gradients, loss_of
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.parametrize("operation", LAUNCHES),
]


@pytest.fixture(autouse=True)
def _forbids_waiting(poisoned_memory: None) -> Iterator[None]:
    """A launch that waits for the device raises; memory stays as it is, as in a graph."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.cuda.set_sync_debug_mode("default")


def step(layer: Layer, x: Tensor) -> Tensor:
    """The loss; gradients, where there are any, are in the parameters afterwards."""
    for parameter in layer.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    loss = loss_of(layer(x))
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


def test_a_step_is_captured_in_a_graph(operation: str) -> None:
    layer, x = Layer(operation), batch()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    # Compiling and the first gradients happen before the capture.
    with torch.cuda.stream(side):
        for _ in range(3):
            step(layer, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(layer, x)
    other = torch.randn_like(x)
    x.copy_(other)
    graph.replay()
    replayed = {name: gradient.clone() for name, gradient in gradients(layer).items()}
    result = loss.clone()
    torch.testing.assert_close(result, step(layer, other), rtol=1e-6, atol=0)
    torch.testing.assert_close(replayed, gradients(layer), rtol=1e-6, atol=1e-9)


def test_nothing_waits_for_the_device(operation: str) -> None:
    layer, x = Layer(operation), batch()
    step(layer, x)
    torch.cuda.set_sync_debug_mode("error")
    step(layer, x)


def test_runs_on_the_current_stream(operation: str) -> None:
    """The stream is kept busy before the input is there: a launch elsewhere would not see it."""
    layer, x = Layer(operation), batch()
    expected = step(layer, x)
    late = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late.copy_(x)
        result = step(layer, late)
    side.synchronize()
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_tensors(operation: str) -> None:
    layer, x = Layer(operation), batch()
    expected = step(layer, x)
    with torch.cuda.device(0):
        elsewhere = step(layer.to("cuda:1"), x.to("cuda:1"))
    assert elsewhere.device.index == 1
    torch.testing.assert_close(elsewhere.to(x.device), expected, rtol=1e-6, atol=0)
