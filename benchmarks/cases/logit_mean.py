"""The mean of K experts' logits, bound by memory: into a new tensor, and into an existing one."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from benchmarks.case import DTYPES, Case, Family, Inputs, Shape, Work, Yardstick
from fastgrow.ops import logit_mean


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    size = (shape["N"], shape["V"])
    return {
        "logits": [
            torch.randn(size, dtype=dtype, device=generator.device, generator=generator)
            for _ in range(shape["K"])
        ]
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    return logit_mean(inputs["logits"], impl=impl)


def _stack_and_mean(inputs: Inputs) -> Tensor:
    return torch.stack(inputs["logits"]).mean(0)


def _adding_in_place(inputs: Inputs) -> Tensor:
    first, *others = inputs["logits"]
    total = first.clone()
    for logits in others:
        total += logits
    return total.div_(len(inputs["logits"]))


def _sum_then_in_place(inputs: Inputs) -> Tensor:
    """Add the first two in one pass over memory, then the others in place."""
    first, *others = inputs["logits"]
    total = first + others[0] if others else first.clone()
    for logits in others[1:]:
        total += logits
    return total.mul_(1 / len(inputs["logits"]))


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    return Work(bytes=(shape["K"] + 1) * shape["N"] * shape["V"] * itemsize)


def _copy_bytes(case: Case) -> Work:
    return Work(bytes=2 * case.shape["N"] * case.shape["V"] * DTYPES[case.dtype].itemsize)


def _clone(case: Case) -> dict[str, Yardstick]:
    return {
        "clone of one": Yardstick(lambda inputs: inputs["logits"][0].clone(), _copy_bytes(case))
    }


FAMILY = Family(
    op="logit_mean",
    grids={
        "tiny": [{"K": 2, "N": 8, "V": 64}],
        "cpu": [{"K": 4, "N": 64, "V": 65536}, {"K": 2, "N": 64, "V": 65536}],
        "gpu": [{"K": K, "N": N, "V": 65536} for K, N in ((4, 4096), (4, 1), (2, 4096), (8, 4096))],
    },
    inputs=_inputs,
    call=_call,
    libraries=lambda case: {
        "stack + mean": _stack_and_mean,
        "add in place": _adding_in_place,
        "sum, add in place": _sum_then_in_place,
    },
    yardsticks=_clone,
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 16)},
)


def _inputs_and_room(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    inputs = _inputs(shape, dtype, generator)
    first = inputs["logits"][0]
    # Filled, so that no contender pays for the first use of the memory.
    inputs["stack"] = first.new_empty(shape["K"], *first.shape).fill_(0)
    inputs["out"] = torch.empty_like(first).fill_(0)
    return inputs


def _call_into(inputs: Inputs, impl: str | None) -> Tensor:
    return logit_mean(inputs["logits"], out=inputs["out"], impl=impl)


def _stack_and_mean_into(inputs: Inputs) -> Tensor:
    torch.stack(inputs["logits"], out=inputs["stack"])
    return torch.mean(inputs["stack"], 0, out=inputs["out"])


def _adding_into(inputs: Inputs) -> Tensor:
    first, *others = inputs["logits"]
    out: Tensor = inputs["out"].copy_(first)
    for logits in others:
        out += logits
    return out.div_(len(inputs["logits"]))


def _sum_into(inputs: Inputs) -> Tensor:
    first, *others = inputs["logits"]
    out: Tensor = inputs["out"]
    if others:
        torch.add(first, others[0], out=out)
    else:
        out.copy_(first)
    for logits in others[1:]:
        out += logits
    return out.mul_(1 / len(inputs["logits"]))


def _copy(case: Case) -> dict[str, Yardstick]:
    def run(inputs: Inputs) -> Tensor:
        out: Tensor = inputs["out"].copy_(inputs["logits"][0])
        return out

    return {"copy_ of one": Yardstick(run, _copy_bytes(case))}


# Every contender has memory for its result, and stack + mean also for the stack.
INTO = dataclasses.replace(
    FAMILY,
    variant="into",
    inputs=_inputs_and_room,
    call=_call_into,
    written=("out",),
    libraries=lambda case: {
        "stack + mean": _stack_and_mean_into,
        "add in place": _adding_into,
        "sum, add in place": _sum_into,
    },
    yardsticks=_copy,
)
