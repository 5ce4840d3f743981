"""Check whether a contender is correct; no speed-up is reported for one that is not.

The reference is the formula in fp64 (in which fp32 and half-precision inputs are exact). Let e be
the largest deviation from the reference, and u the dtype's unit in the last place of the largest
reference value. A result is correct if, for the output and for every gradient,

    e ≤ 2 · e(formula in the same dtype) + 2 · u · √n + 2 · w · √m

where n is 1, or the number of rows if a parameter's gradient is a sum over the rows (the errors of
n terms add up like a random walk); w is the unit in the last place of the dtype in which sums are
computed, float32 or the case's dtype if that is more precise; and m is the number of terms if an
operation's other results are long sums. In addition, the RMS of the deviations must be at most the
dtype's ceiling times the RMS of the reference. If the formula in the same dtype already reaches
half of this ceiling, as a chain of layers in half precision does, the ceiling is twice the
formula's RMS; otherwise no correct result could pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.case import DTYPES, Case, Inputs, Run, tensors_of
from benchmarks.contenders import formula

CEILINGS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 5e-3,
    torch.float16: 5e-3,
}
TF32_CEILING = 1e-3
CHECK_SEED = 1_000_003


@dataclass(frozen=True)
class Verdict:
    """Result of the check; `error` is the largest RMS deviation relative to the reference's RMS."""

    ok: bool
    error: float
    reason: str = ""


@dataclass(frozen=True)
class Truth:
    """Inputs, reference results, and the formula's largest and RMS errors, by result."""

    inputs: Inputs
    results: dict[str, Tensor]
    formula_errors: dict[str, float]
    formula_rms: dict[str, float]
    gradients: tuple[Tensor, ...]
    terms: dict[str, int]
    sums: int


def truth_of(case: Case) -> Truth:
    """Compute the reference of a case, on its family's shape for checks."""
    inputs = case.inputs(CHECK_SEED, case.family.checked(case.shape))
    wide = {name: _widened(value) for name, value in inputs.items()}
    run = formula(case)
    gradients = random_gradients(run, inputs)
    results = results_of(case, run, wide, gradients)
    formula_results = results_of(case, run, inputs, gradients)
    errors = {name: _largest(formula_results[name], true) for name, true in results.items()}
    rms = {name: _relative_rms(formula_results[name], true) for name, true in results.items()}
    shape = case.family.checked(case.shape)
    terms = {f"d {name}": case.family.rows(shape) for name in case.family.parameters}
    return Truth(inputs, results, errors, rms, gradients, terms, case.family.sums(shape))


def random_gradients(run: Run, inputs: Inputs) -> tuple[Tensor, ...]:
    """Make gradients for the outputs; with zeros or ones a pass would run faster than usual."""
    with torch.no_grad():
        outputs = tensors_of(run(inputs))
    generator = torch.Generator(outputs[0].device).manual_seed(CHECK_SEED)
    return tuple(
        torch.randn(o.shape, dtype=o.dtype, device=o.device, generator=generator) for o in outputs
    )


def results_of(
    case: Case, run: Run, inputs: Inputs, gradients: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the outputs and, unless the pass is forward, the gradients of Σ output · gradient."""
    with torch.set_grad_enabled(case.pass_ != "forward"):
        outputs = tensors_of(run(inputs))
    results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    if case.pass_ != "forward":
        wanted = case.family.differentiated(inputs)
        given = [g.to(o.dtype) for g, o in zip(gradients, outputs, strict=True)]
        found = torch.autograd.grad(outputs, list(wanted.values()), given)
        results |= {f"d {name}": g for name, g in zip(wanted, found, strict=True)}
    return results


def judge(case: Case, run: Run, truth: Truth) -> Verdict:
    """Compare a contender's results with the reference."""
    for name in case.family.written:
        # Otherwise another contender's result in this tensor could be taken for this one's.
        truth.inputs[name].fill_(float("nan"))
    results = results_of(case, run, truth.inputs, truth.gradients)
    return compare(results, truth, DTYPES[case.dtype])


def _tf32_is_permitted() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        # torch raises an error here if the newer setting was used.
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def compare(results: Mapping[str, Tensor], truth: Truth, dtype: torch.dtype) -> Verdict:
    """Apply the module's rule to all results."""
    ceiling = CEILINGS[dtype]
    if dtype == torch.float32 and _tf32_is_permitted():
        ceiling = TF32_CEILING
    worst, reasons = 0.0, []
    for name, true in truth.results.items():
        got = results[name].double()
        if not bool(got.isfinite().all()):
            return Verdict(False, float("inf"), f"{name} is not finite")
        relative = _relative_rms(got, true)
        worst = max(worst, relative)
        units = torch.finfo(dtype).eps * truth.terms.get(name, 1) ** 0.5
        units += torch.finfo(torch.promote_types(dtype, torch.float32)).eps * truth.sums**0.5
        limit = 2 * truth.formula_errors[name] + 2 * units * float(true.abs().max())
        error = _largest(got, true)
        if error > limit:
            reasons.append(f"{name} is off by {error:.2g}, allowed {limit:.2g}")
        allowed = max(ceiling, 2 * truth.formula_rms[name])
        if relative > allowed:
            reasons.append(f"{name}'s relative RMS error is {relative:.2g}, allowed {allowed:.2g}")
    return Verdict(not reasons, worst, "; ".join(reasons))


def _largest(result: Tensor, true: Tensor) -> float:
    return float((result.double() - true).abs().max())


def _relative_rms(result: Tensor, true: Tensor) -> float:
    """Return the RMS of the deviations relative to the RMS of the reference."""
    scale = float(true.square().mean().sqrt())
    return float((result.double() - true).square().mean().sqrt()) / max(scale, 1e-300)


def _widened(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return type(value)(_widened(item) for item in value)  # type: ignore[call-arg]
    return value
