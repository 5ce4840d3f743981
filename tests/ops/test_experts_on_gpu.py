"""The CUDA extension on a device; nothing here has run where there is none."""

from __future__ import annotations

import pytest
import torch
from random_logits import make
from torch import Tensor

from fastgrow import _native
from fastgrow.ops import logit_mean, mean_argmax, mean_cross_entropy, mean_log_softmax_gather

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not _native.CUDA.loaded, reason=_native.CUDA.reason),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 65_536), (3, 1001), (70_000, 8), (16, 50_257)]


def on_gpu(k: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [x.cuda() for x in make(k, shape, dtype)]


CASES = [(k, shape, dtype) for k in (1, 2, 3, 4, 7, 64) for shape in SHAPES for dtype in DTYPES]
FIRST = (3, (3, 1001), torch.bfloat16)  # rows of no whole vectors, several experts


@pytest.mark.parametrize(
    ("k", "shape", "dtype"),
    [pytest.param(*FIRST, marks=pytest.mark.gpu_smoke), *(c for c in CASES if c != FIRST)],
)
def test_logit_mean_cross_entropy_and_argmax(
    k: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    logits = on_gpu(k, shape, dtype) if k < 64 else on_gpu(1, shape, dtype) * 64
    exact = logit_mean([x.double() for x in logits], impl="eager")
    mean = logit_mean(logits, dtype=torch.float32, impl="native")
    torch.testing.assert_close(mean.double(), exact, rtol=1e-5, atol=1e-5)
    targets = torch.arange(shape[0], device="cuda") % shape[1]
    targets[0] = -100
    loss = mean_cross_entropy(logits, targets, reduction="none", impl="native")
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    best = mean_argmax(logits, impl="native")
    torch.testing.assert_close(exact.gather(1, best[:, None])[:, 0], exact.max(1).values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_start_anywhere_and_experts_left_out(dtype: torch.dtype) -> None:
    stored = [x[:, 1:1000] for x in on_gpu(3, (5, 1003), dtype)]
    stored[1][2] = float("nan")
    weights = torch.rand(5, 3, device="cuda")
    weights[2, 1] = 0
    exact = logit_mean([x.double() for x in stored], weights, impl="eager")
    mean = logit_mean(stored, weights, dtype=torch.float32, impl="native")
    torch.testing.assert_close(mean.double(), exact, rtol=1e-5, atol=1e-5)
    assert mean.isfinite().all()
    targets = torch.arange(5, device="cuda")
    result = mean_log_softmax_gather(stored, targets, weights, impl="native")
    assert result.isfinite().all()
    stored[1][:] = float("inf")
    for shared in ([0.5, 0.0, 0.25], torch.tensor([0.5, 0.0, 0.25], device="cuda")):
        others = logit_mean([stored[0].double(), stored[2].double()], [0.5, 0.25], impl="eager")
        for impl in ("native", "eager"):
            mean = logit_mean(stored, shared, dtype=torch.float32, impl=impl)
            torch.testing.assert_close(mean.double(), others, rtol=1e-5, atol=1e-5)
            result = mean_log_softmax_gather(stored, targets, shared, impl=impl)
            expected = others.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
            best = mean_argmax(stored, shared, impl=impl)
            torch.testing.assert_close(others.gather(1, best[:, None])[:, 0], others.max(1).values)


def test_special_values_are_as_on_the_cpu() -> None:
    logits = torch.zeros(5, 9000)
    logits[0, 4000], logits[1, 3] = float("nan"), float("inf")
    logits[2] = -float("inf")
    logits[3, 1:] = -float("inf")
    targets = torch.zeros(5, dtype=torch.int64)
    for operation in (mean_log_softmax_gather,):
        expected = operation([logits], targets, impl="eager")
        result = operation([logits.cuda()], targets.cuda(), impl="native")
        torch.testing.assert_close(result.cpu(), expected, equal_nan=True)
    assert mean_argmax([logits.cuda()], impl="native").tolist() == [4000, 3, 0, 0, 0]


def test_is_deterministic_and_captured_in_a_graph() -> None:
    logits = on_gpu(4, (8, 50_257), torch.bfloat16)
    targets = torch.arange(8, device="cuda")

    def run() -> tuple[Tensor, Tensor, Tensor]:
        return (
            logit_mean(logits, impl="native"),
            mean_log_softmax_gather(logits, targets, impl="native"),
            mean_argmax(logits, impl="native"),
        )

    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, expected))
