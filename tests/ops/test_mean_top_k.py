"""The most likely tokens under averaged logits."""

from __future__ import annotations

import math

import pytest
import torch
from expert_logits import DTYPES, IMPLEMENTATIONS, Experts, experts, make, needs_native
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.ops import logit_mean, mean_argmax, mean_top_k


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=100)
@given(given_experts=experts(), data=st.data())
def test_agrees_with_fp64(impl: str, given_experts: Experts, data: st.DataObject) -> None:
    """The values are the largest, and the ids are their indices."""
    e = given_experts
    k = data.draw(st.integers(1, min(e.logits[0].shape[-1], 1024)))
    settings = {"temperatures": e.temperatures, "impl": impl}
    values, ids = mean_top_k(e.logits, k, e.weights, **settings)
    exact = logit_mean(e.exact, e.weights, temperatures=e.temperatures, impl="eager")
    tolerance = {"rtol": e.rounding, "atol": e.rounding, "equal_nan": True}
    torch.testing.assert_close(values.double(), exact.topk(k, dim=-1).values, **tolerance)
    torch.testing.assert_close(values.double(), exact.gather(-1, ids), **tolerance)
    assert (ids.sort(-1).values.diff(dim=-1) > 0).all()
    best = exact.gather(-1, mean_argmax(e.logits, e.weights, **settings)[..., None])
    torch.testing.assert_close(best, exact.gather(-1, ids[..., :1]), **tolerance)


@needs_native
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_numbers_agree_with_a_stable_sort(rows: int, dtype: torch.dtype) -> None:
    """The result is the same for few rows, which are split into parts, and for many."""
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randint(0, 40, (rows, 40_000), generator=generator).to(dtype) for _ in range(2)]
    logits[0][0, 17_000] = math.nan
    mean = logit_mean(logits, dtype=torch.promote_types(dtype, torch.float32), impl="eager")
    expected = mean.sort(dim=-1, descending=True, stable=True)
    values, ids = mean_top_k(logits, 700, impl="native")
    assert torch.equal(ids, expected.indices[:, :700])
    torch.testing.assert_close(values, expected.values[:, :700], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(mean_argmax(logits, impl="native"), ids[:, 0])


@needs_native
def test_rising_numbers_agree_native() -> None:
    """Every column displaces an earlier one."""
    x = torch.arange(50_000, dtype=torch.float32).expand(3, -1)
    values, ids = mean_top_k([x, x], 5, impl="native")
    assert ids.tolist() == [[49_999, 49_998, 49_997, 49_996, 49_995]] * 3
    assert torch.equal(values, ids.float())


@needs_native
def test_result_does_not_depend_on_the_number_of_threads() -> None:
    logits = make(3, (3, 50_001), torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(mean_top_k(logits, 50, impl="native"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][1], other[1]) for other in results)


@pytest.mark.slow
@needs_native
def test_more_than_two_to_the_31_elements() -> None:
    rows, columns = 32_769, 65_536
    values = torch.randn(2, columns).to(torch.bfloat16)
    logits = [values[0].expand(rows, columns), values[1].expand(rows, columns)]
    best = mean_argmax(logits, impl="native")
    assert (best == values.float().mean(0).argmax()).all()


def test_logits_that_require_a_gradient_get_one() -> None:
    logits = [x.requires_grad_() for x in make(2, (3, 20), torch.float32)]
    values, _ = mean_top_k(logits, 4)
    values.sum().backward()
    assert (logits[0].grad.sum(-1) == 2).all()
    assert torch.equal(mean_argmax(logits), logit_mean(logits).argmax(-1))


@needs_native
def test_registration_passes_opcheck() -> None:
    for scale in (torch.tensor([0.5, 0.5]), torch.rand(3, 2)):
        arguments = (make(2, (3, 33), torch.float32), scale, 4)
        opcheck(torch.ops.fastgrow.native_top_k.default, arguments)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length(impl: str) -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(
        lambda logits: (mean_argmax(logits, impl=impl), *mean_top_k(logits, 3, impl=impl)),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for rows in (3, 5):
        logits = make(2, (rows, 33), torch.float32)
        best, values, ids = compiled(logits)
        assert torch.equal(best, mean_argmax(logits, impl=impl))
        assert torch.equal(ids, mean_top_k(logits, 3, impl=impl)[1])
        assert values.shape == (rows, 3)
    assert graphs == 1


def test_errors_name_what_was_expected() -> None:
    a = torch.zeros(2, 5)
    for k in (0, 6):
        with pytest.raises(ArgumentError, match=rf"mean_top_k: k must be in \[1, 5\], got {k}"):
            mean_top_k([a], k)
    with pytest.raises(ArgumentError, match=r"mean_argmax: logits\[1\] must be"):
        mean_argmax([a, a.half()])
    with pytest.raises(ArgumentError, match=r"logits\[0\] must be of shape .* with V > 0"):
        mean_argmax([a[:, :0]])
    with pytest.raises(ConfigError, match=r"at most 1024 candidates, not 1025|is not there"):
        mean_top_k([torch.zeros(1, 2000)], 1025, impl="native")
    assert mean_top_k([torch.zeros(1, 2000)], 1025)[0].shape == (1, 1025)
    assert mean_argmax([a[:0]]).shape == (0,)
