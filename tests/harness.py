"""The rule for numerical errors, the devices of tests, and a check of any operation."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastgrow.ops import Operation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

# Largest root-mean-square error, relative to that of the truth; fp32 is for exact (ieee) products.
RMS_CEILING = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
EPS = torch.finfo(torch.float32).eps


def smoke(*values: Any) -> Any:
    """A case of a parametrised test that a GPU runs first: one in bf16 for each kernel.

    `tests/kernels/test_smoke.py` finds a kernel that no such case launches.
    """
    return pytest.param(*values, marks=pytest.mark.gpu_smoke)


def assert_accurate(
    name: str,
    result: Tensor,
    eager: Tensor,
    truth: Tensor,
    *,
    condition: float = 1.0,
    terms: float = 0.0,
    rounded: float = 0.0,
) -> None:
    """Assert error(result) ≤ 2 · error(eager) + 2 ulp relative to fp64, and RMS ≤ the ceiling.

    There are two sources of error that a kernel has in addition to the eager formula's; if their
    bound is larger than 2 ulp, it replaces these. The caller gives their sizes, and documents the
    bound.

    Args:
        name: name of the compared result, for the message.
        result: the kernel's result.
        eager: the eager formula's result in the same dtype.
        truth: the eager formula's result in fp64 for the same inputs.
        condition: size of exponents that are computed twice. Eager saves the weights of its forward
            pass. A kernel saves lse and computes w = exp(s − lse) again, from a product in another
            order: s and lse are rounded to half an ulp each, so w has an error of |s| · eps, even
            if it is nearly 1 and eager's error cancels in the division by the sum.
        terms: size of two numbers of whose difference the result is a multiple. Each is rounded, so
            the difference has an error of eps times their size, which matters if they cancel. Eager
            computes the second from the saved weights, a kernel from its output.
        rounded: eps of a dtype to which both eager and the kernel round intermediate results, half
            an ulp each, if it is larger than the result's eps. The RMS may be as large; the error
            of a single number is still bounded by eager's.
    """
    assert result.dtype == eager.dtype
    assert result.shape == truth.shape
    assert not result.isnan().any(), f"{name}: NaN, in {result.isnan().sum()} places"
    if truth.numel() == 0:
        return
    error, allowed = (result.double() - truth).abs(), (eager.double() - truth).abs().max()
    largest = truth.abs().max()
    ulps, conditioned = 2 * torch.finfo(result.dtype).eps * largest, condition * EPS * largest
    bound = 2 * allowed + max(ulps, conditioned, EPS * terms)
    assert error.max() <= bound, f"{name}: error {error.max():.3g}, allowed {bound:.3g}"
    size, rms = truth.square().mean().sqrt(), error.square().mean().sqrt()
    ceiling = max(RMS_CEILING[result.dtype], condition * EPS, rounded / 2) * size + EPS * terms
    assert rms <= ceiling, f"{name}: RMS error {rms / size:.3g} of {ceiling / size:.3g}"


def assert_rows_accurate(
    name: str,
    result: Tensor,
    eager: Tensor,
    truth: Tensor,
    uncertainty: Tensor,
) -> None:
    """Assert the same rule for each row (of the last dimension); values may be NaN or infinite.

    Because rows are compared separately, a large row cannot hide an error of a small row. Values
    that are not finite must agree:

    - if the truth is NaN or infinite, so is the result;
    - if the result is NaN, so is eager, in which a zero weight times an infinite value that the row
      does not attend to is NaN. A kernel that skips whole blocks of such values may return the
      truth instead.

    Args:
        name: name of the compared result, for the message.
        result: the kernel's result.
        eager: the eager formula's result in the same dtype.
        truth: the formula's result in fp64, computed only from what each row attends to.
        uncertainty: [..., 1] or of the result's shape: absolute error allowed because of fp32.
    """
    assert result.shape == truth.shape
    eps = torch.finfo(result.dtype).eps
    result, eager = result.double(), eager.double()
    assert result[truth.isnan()].isnan().all(), f"{name}: a number where there is none"
    made_up = result.isnan() & ~eager.isnan()
    assert not made_up.any(), f"{name}: NaN where eager has a number, in {made_up.sum()} places"
    kept = truth.isinf() & ~result.isnan()
    assert torch.equal(result[kept], truth[kept]), f"{name}: infinities differ"
    finite = result.isfinite() & truth.isfinite()
    error = torch.where(finite, result - truth, 0.0).abs()
    allowed = torch.where(finite & eager.isfinite(), eager - truth, 0.0).abs().amax(-1, True)
    largest = torch.where(finite, truth, 0.0).abs().amax(-1, keepdim=True)
    bound = 2 * allowed + torch.maximum(2 * eps * largest, uncertainty.nan_to_num(0.0, 0.0))
    # Subnormal numbers may become zero in an exponential.
    bound += torch.finfo(torch.float32).tiny
    worst = (error - bound).argmax()
    error, bound = error.flatten()[worst], bound.expand_as(truth).flatten()[worst]
    assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g} in its row"


# Fields of a call that have no gradient by the operation's definition.
FROZEN: dict[str, tuple[str, ...]] = {
    "attention": ("cos", "sin"),
    "embedding": ("table",),
    "linear_kl": ("teacher",),
    "lora_linear": ("weight", "bias"),
    "rope": ("cos", "sin"),
}


def check_operation(operation: Operation, device: str, dtype: torch.dtype) -> list[str]:
    """Run every implementation that can run the operation's example, and compare it with eager.

    The example's floating-point tensors are filled with random numbers. The results are compared
    and, if an implementation has any, the gradients; both again through
    `torch.compile(fullgraph=True)`, except for eager, which consists of torch's operations.

    Returns:
        The names of the implementations that ran, eager among them.
    """
    assert operation.example is not None, f"{operation.name} has no example"
    torch.manual_seed(0)
    call = _random(operation.example(torch.device(device)), dtype)
    trained = call._replace(
        **{
            field: tree_map(_with_gradient, value)
            for field, value in call._asdict().items()
            if field not in FROZEN.get(operation.name, ())
        }
    )
    served = [n for n, entry in operation.implementations.items() if entry.can_serve(call)[0]]
    for name in served:
        given = trained if operation.implementations[name].can_serve(trained)[0] else call
        eager, truth = _run(operation, given, "eager"), _run(operation, _wide(given), "eager")
        ways: list[Callable[..., Any]] = [operation]
        if name != "eager":
            torch.compiler.reset()
            ways.append(torch.compile(operation, fullgraph=True, backend="aot_eager"))
        for way in ways:
            found = _run(way, given, name)
            assert [x is None for x in found] == [x is None for x in eager], operation.name
            for i, (x, formula, wanted) in enumerate(zip(found, eager, truth, strict=True)):
                if x is not None:
                    _judge(f"{operation.name} {name}, {i}", x, formula, wanted)
    return served


def _random(call: Any, dtype: torch.dtype) -> Any:
    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return dtype if isinstance(leaf, torch.dtype) else leaf
        # Random numbers for sampling must be in [0, 1), and are float64 whatever the logits are.
        kind = leaf.dtype if leaf.dtype == torch.float64 else dtype
        return (torch.rand(leaf.shape, device=leaf.device) / 2).to(kind)

    return tree_map(drawn, call)


def _with_gradient(leaf: Any) -> Any:
    is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.detach().requires_grad_() if is_float else leaf


def _wide(call: Any) -> Any:
    def widened(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.detach().double().requires_grad_(leaf.requires_grad)
        return torch.float64 if isinstance(leaf, torch.dtype) else leaf

    return tree_map(widened, call)


def _run(way: Callable[..., Any], call: Any, name: str) -> list[Tensor | None]:
    """Return the results, and the gradients of the sum of their squares."""
    results = [y for y in tree_leaves(way(call, name)) if isinstance(y, Tensor)]
    trained = [x for x in tree_leaves(call) if isinstance(x, Tensor) and x.requires_grad]
    squares = [y.double().square().sum() for y in results if y.requires_grad]
    if not squares:
        return [*results]
    found = torch.autograd.grad(torch.stack(squares).sum(), trained, allow_unused=True)
    return [*(y.detach() for y in results), *found]


def _judge(name: str, result: Tensor, eager: Tensor | None, truth: Tensor | None) -> None:
    assert eager is not None
    assert truth is not None
    if result.is_floating_point():
        assert_accurate(name, result, eager, truth)
    else:
        assert torch.equal(result, truth), name
