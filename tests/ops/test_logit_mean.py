"""The mean of logits compared with fp64, in every available implementation."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from fastgrow import _native
from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.ops import logit_mean

IMPLEMENTATIONS = ["eager", "native"] if _native.CPU.loaded else ["eager"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
needs_native = pytest.mark.skipif(not _native.CPU.loaded, reason=_native.CPU.reason)


def make(k: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(k)]


def truth(logits: list[Tensor], weights: list[float]) -> Tensor:
    return sum(w * x.double() for w, x in zip(weights, logits, strict=True))  # type: ignore[return-value]


def assert_within_bound(result: Tensor, logits: list[Tensor], weights: list[float]) -> None:
    """Error bound: two roundings per expert in the accumulator and one of the result."""
    accumulator = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    size = truth([x.abs() for x in logits], [abs(w) for w in weights])
    bound = torch.zeros_like(size)
    for dtype, roundings in ((accumulator, 2 * len(weights)), (result.dtype, 1)):
        number = torch.finfo(dtype)
        # Half a unit in the last place each, which stops shrinking at the subnormal numbers.
        bound += roundings * (size * number.eps + number.smallest_normal * number.eps) / 2
    error = (result.double() - truth(logits, weights)).abs()
    assert (error <= bound).all(), f"error {error.max()} above the bound"


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=60)
@given(
    k=st.integers(1, 6),
    rows=st.integers(0, 4),
    columns=st.integers(1, 300),
    gap=st.integers(0, 3),
    offset=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    wide=st.booleans(),
    data=st.data(),
)
def test_agrees_with_fp64(
    impl: str,
    k: int,
    rows: int,
    columns: int,
    gap: int,
    offset: int,
    dtype: torch.dtype,
    wide: bool,
    data: st.DataObject,
) -> None:
    weights = data.draw(st.lists(st.floats(-2, 2, width=32), min_size=k, max_size=k))
    # Rows with gaps and an odd start: nothing is aligned, and the experts differ.
    wanted = [x[:, offset : offset + columns] for x in make(k, (rows, columns + 6), dtype)]
    stored = [torch.empty(rows, columns + gap + i, dtype=dtype)[:, :columns] for i in range(k)]
    for to, x in zip(stored, wanted, strict=True):
        to.copy_(x)
    result_dtype = torch.float32 if wide and dtype != torch.float64 else dtype
    out = torch.full((rows, columns + gap), float("nan"), dtype=result_dtype)[:, :columns]
    result = logit_mean(stored, weights, out=out, impl=impl)
    assert result is out
    assert_within_bound(result, stored, weights)
    assert torch.equal(logit_mean(stored, weights, dtype=result_dtype, impl=impl), result)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_default_is_the_arithmetic_mean_and_temperatures_divide(
    impl: str, dtype: torch.dtype
) -> None:
    logits = make(3, (2, 3, 65), dtype)
    assert_within_bound(logit_mean(logits, impl=impl), logits, [1 / 3] * 3)
    scaled = logit_mean(logits, [0.5, 1.0, -1.0], temperatures=[2.0, 4.0, 0.5], impl=impl)
    assert_within_bound(scaled, logits, [0.25, 0.25, -2.0])


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan_follow_the_formula(dtype: torch.dtype) -> None:
    special = [0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), 3e38, -3e38]
    pairs = torch.tensor([[a, b] for a in special for b in special]).to(dtype)
    # 64 pairs go through whole vectors, the 7 more at the end one by one.
    first, second = torch.cat([pairs, pairs[:7]]).mT
    for weights in ([0.5, 0.5], [0.0, 1.0], [1.0, -1.0], [-2.0, 0.0]):
        eager = logit_mean([first, second], weights, impl="eager")
        native = logit_mean([first.contiguous(), second.contiguous()], weights, impl="native")
        torch.testing.assert_close(native, eager, rtol=0, atol=0, equal_nan=True)


@needs_native
def test_rounds_to_bf16_and_fp16_as_torch_does() -> None:
    """Around every bf16 and fp16 number: ties, subnormals, overflow."""
    bits = torch.arange(0, 2**32, 65537 * 7, dtype=torch.int64)
    edges = torch.arange(2**16, dtype=torch.int64)[:, None] * 65536 + torch.tensor([0x7FFF, 0x8000])
    numbers = torch.cat([bits, edges.flatten()]).to(torch.int32).view(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        result = logit_mean([numbers], [1.0], dtype=dtype, impl="native")
        torch.testing.assert_close(result, numbers.to(dtype), rtol=0, atol=0, equal_nan=True)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_outputs_bypass_the_caches_and_agree(dtype: torch.dtype) -> None:
    """From 4 MiB on the stores are non-temporal, for any alignment of the output."""
    columns = (4 << 20) // dtype.itemsize + 77
    logits = make(2, (columns,), dtype)
    reference = torch.cat(
        [logit_mean([x[a : a + 5000] for x in logits], [0.3, 0.7]) for a in range(0, columns, 5000)]
    )
    for shift in (0, 1, 5):
        out = torch.full((columns + shift,), float("nan"), dtype=dtype)[shift:]
        logit_mean(logits, [0.3, 0.7], out=out, impl="native")
        assert torch.equal(out, reference)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1_400_011, 1 << 21])
def test_new_and_given_memory_get_bitwise_equal_results(dtype: torch.dtype, columns: int) -> None:
    """The pages of a new result are populated before they are written, a few blocks at a time."""
    logits = make(3, (2, columns), dtype)
    given = torch.full_like(logits[0], torch.nan)
    logit_mean(logits, out=given)
    torch.testing.assert_close(logit_mean(logits), given, rtol=0, atol=0)


@needs_native
def test_result_does_not_depend_on_the_number_of_threads() -> None:
    logits = make(5, (9, 40_001), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(logit_mean(logits, impl="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_native
def test_environment_limits_the_instruction_set() -> None:
    limit = {"portable": 0, "avx2": 1}.get(os.environ.get("FASTGROW_CPU_CAPABILITY", ""), 2)
    assert torch.ops.fastgrow_native.instruction_set() <= limit


@needs_native
@pytest.mark.parametrize("capability", ["portable", "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    """Run the tests with the instruction set of older CPUs; a process has one instruction set."""
    chosen = "fp64 or infinities or rounds_to or bypass or environment_limits"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen]
    environment = {**os.environ, "FASTGROW_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [*command, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@needs_native
def test_strided_and_expanded_experts_are_read_in_place() -> None:
    # Two leading sizes with a common factor: a row's index cannot be right by accident.
    base = torch.randn(2, 4, 5, 50)
    logits = [base[:, :, 1], base[:, 2:3, 0].expand(2, 4, 50), base.transpose(1, 2)[:, 1]]
    assert_within_bound(logit_mean(logits, [1.0, 2.0, 3.0], impl="native"), logits, [1.0, 2.0, 3.0])


@pytest.mark.slow
@needs_native
def test_more_than_two_to_the_31_elements() -> None:
    rows, columns = 32_769, 65_536
    values = torch.randn(2, columns).to(torch.bfloat16)
    logits = [values[0].expand(rows, columns), values[1].expand(rows, columns)]
    mean = logit_mean(logits, [0.25, 0.5], impl="native")
    expected = logit_mean([values[0], values[1]], [0.25, 0.5], impl="eager")
    for row in (0, 32_767, 32_768):
        torch.testing.assert_close(mean[row], expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_of_logits_and_weights(impl: str) -> None:
    logits = [x.requires_grad_() for x in make(3, (2, 7), torch.float64)]
    weights = torch.tensor([0.3, 0.9, -0.2], dtype=torch.float64, requires_grad=True)
    temperatures = torch.tensor([1.5, 0.5, 1.0], dtype=torch.float64, requires_grad=True)

    def mean(weights: Tensor, temperatures: Tensor, *logits: Tensor) -> Tensor:
        return logit_mean(logits, weights, temperatures=temperatures, impl=impl)

    assert torch.autograd.gradcheck(mean, (weights, temperatures, *logits))
    assert torch.autograd.gradgradcheck(mean, (weights, temperatures, *logits))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_differ_by_row_and_zero_excludes_an_expert(impl: str, dtype: torch.dtype) -> None:
    logits = make(3, (2, 4, 70), dtype)
    weights = torch.rand(2, 4, 3, dtype=torch.float64) - 0.5
    weights[0, 2, 1] = 0
    weights[1, 3] = 0
    exact = sum(weights[..., k, None] * x.double() for k, x in enumerate(logits))
    logits[1][0, 2], logits[0][1, 3] = float("nan"), float("inf")
    result = logit_mean(logits, weights, temperatures=[2.0, 2.0, 2.0], impl=impl)
    unit = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), exact / 2, rtol=unit, atol=unit)
    out = logit_mean(logits, weights, out=torch.empty_like(logits[0]), impl=impl)
    torch.testing.assert_close(out.double(), exact, rtol=unit, atol=unit)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_of_weights_by_row(impl: str) -> None:
    logits = [x.requires_grad_() for x in make(3, (4, 7), torch.float64)]
    weights = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, *z: logit_mean(z, w, impl=impl), (weights, *logits))
    with torch.no_grad():
        weights[1, 2] = 0
        logits[2][1] = float("nan")
    logit_mean(logits, weights, impl=impl).sum().backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()
    assert weights.grad[1, 2] == 0
    assert all(x.grad is not None and x.grad.isfinite().all() for x in logits)
    assert (logits[2].grad[1] == 0).all()  # type: ignore[index]


@needs_native
def test_frozen_inputs_get_no_gradient_and_keep_nothing() -> None:
    logits = make(2, (4, 33), torch.bfloat16)
    logits[1].requires_grad_()
    mean = logit_mean(logits, [0.25, 0.75], dtype=torch.float32, impl="native")
    assert [tuple(t.shape) for t in mean.grad_fn.saved_tensors] == [(2,)]  # type: ignore[union-attr]
    mean.backward(torch.full_like(mean, 2.0))
    assert logits[0].grad is None
    assert logits[1].grad is not None
    assert logits[1].grad.dtype == torch.bfloat16
    assert (logits[1].grad == 1.5).all()


@needs_native
def test_registration_passes_opcheck() -> None:
    logits, scale = make(2, (3, 33), torch.float32), torch.tensor([0.5, 0.5])
    opcheck(torch.ops.fastgrow.native_logit_mean.default, (logits, scale, torch.bfloat16))
    opcheck(torch.ops.fastgrow.native_logit_mean_out.default, (logits, scale, torch.empty(3, 33)))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length(impl: str) -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(
        lambda logits, weights: logit_mean(logits, weights, impl=impl),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    weights = torch.tensor([0.5, 0.25], requires_grad=True)
    for rows in (3, 5):
        logits = [x.requires_grad_() for x in make(2, (rows, 33), torch.float32)]
        mean = compiled(logits, weights)
        assert torch.equal(mean, logit_mean(logits, weights, impl=impl))
        mean.sum().backward()
        assert (logits[1].grad == 0.25).all()
    assert graphs == 1


def test_errors_name_the_expert_and_what_was_expected() -> None:
    a = torch.zeros(2, 5)
    bad: list[tuple[list[object], str]] = [
        ([], "logits must be the tensors of at least one expert"),
        ([a, "x"], r"logits\[1\] must be a tensor, got a str"),
        ([a, a, torch.zeros(2, 6)], r"logits\[2\] must be \[2, 5\] float32 .* got \[2, 6\]"),
        ([a, a.half()], r"logits\[1\] must be \[2, 5\] float32 .* got \[2, 5\] float16"),
        ([a, a.to("meta")], r"logits\[1\] must be .* on cpu as logits\[0\], got .* on meta"),
        ([a.long()], r"logits\[0\] must be a floating-point tensor"),
        ([torch.tensor(1.0)], r"logits\[0\] must be of shape \[\.\.\., V\]"),
    ]
    for logits, message in bad:
        with pytest.raises(ArgumentError, match=message):
            logit_mean(logits)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"weights must be 2 numbers, .* got shape \[3\]"):
        logit_mean([a, a], [1.0, 2.0, 3.0])
    with pytest.raises(ArgumentError, match=r"temperatures must be 2 numbers"):
        logit_mean([a, a], temperatures=torch.ones(2, 5))
    with pytest.raises(ArgumentError, match="dtype must be float32, bfloat16 or float16"):
        logit_mean([a, a], dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"out must be of shape \[2, 5\]"):
        logit_mean([a, a], out=torch.zeros(5, 2))
    with pytest.raises(ArgumentError, match="out must be None"):
        logit_mean([a, a.clone().requires_grad_()], out=torch.zeros(2, 5))


@needs_native
def test_calls_that_native_cannot_run_raise_when_forced_and_else_use_eager() -> None:
    transposed = torch.randn(5, 4).mT
    with pytest.raises(ConfigError, match="last dimension is not contiguous"):
        logit_mean([transposed, transposed], impl="native")
    many = [torch.ones(1, 3)] * 65
    with pytest.raises(ConfigError, match="at most 64 experts"):
        logit_mean(many, impl="native")
    assert torch.equal(logit_mean([transposed, transposed]), transposed)
    torch.testing.assert_close(logit_mean(many), many[0])


@needs_native
def test_output_may_be_an_expert_but_not_overlap_one() -> None:
    a, b = torch.randn(2, 3, 40).unbind()
    expected = logit_mean([a, b], impl="eager")
    assert torch.equal(logit_mean([a, b], out=a, impl="native"), expected)
    line = torch.randn(60)
    with pytest.raises(RuntimeError, match="out overlaps expert 1"):
        logit_mean([line[:40].clone(), line[:40]], out=line[10:50], impl="native")
    with pytest.raises(RuntimeError, match="out must not be expanded"):
        logit_mean([a, b], out=torch.zeros(1, 40).expand(3, 40), impl="native")


def test_equal_weights_are_filled_on_the_device_of_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy from the host synchronises with a GPU, and cannot be captured in a CUDA graph."""
    logits = make(3, (2, 5), torch.float32)
    expected = logit_mean(logits, torch.full((3,), 1 / 3))

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("numbers are copied from the host")

    monkeypatch.setattr(torch, "tensor", fail)
    assert torch.equal(logit_mean(logits), expected)
    assert torch.equal(logit_mean(logits, [1 / 3] * 3), expected)
    with pytest.raises(AssertionError, match="copied from the host"):
        logit_mean(logits, [0.5, 0.25, 0.25])
