"""The contenders of a case: fastgrow, the eager formula, torch.compile of it, and libraries."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.case import Absent, Case, Compiled, Inputs, Library, Output, Run, Work
from fastgrow.ops import OPERATIONS

OURS = "fastgrow"
FORMULA = "eager"
# Without CUDA graphs: they copy inputs that change from call to call, as inputs for a cold cache
# do, and no other contender uses them.
COMPILE_MODES = {"compile": "default", "compile-max": "max-autotune-no-cudagraphs"}
KINDS = ("implementation", "eager", *COMPILE_MODES, "library")


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Args:
        name: name of the contender.
        role: `ours` (fastgrow's automatic choice), `implementation` (one of fastgrow's
            implementations, forced), `library` (an alternative without fastgrow) or `yardstick`.
        kind: the group by which it is selected on the command line.
        run: runs the contender.
        work: its work, if that is not the case's work.
        absent: why it is not measured; empty if it is.
    """

    name: str
    role: str
    kind: str
    run: Run
    work: Work | None = None
    absent: str = ""

    @property
    def is_compiled(self) -> bool:
        return self.kind in COMPILE_MODES


def contenders(case: Case, against: Sequence[str] = KINDS) -> list[Contender]:
    """Return fastgrow's automatic choice, followed by the contenders of the chosen kinds."""
    call = case.family.call
    found = [Contender(OURS, "ours", "ours", lambda inputs: call(inputs, None))]
    # A case of several operations has no single implementation to force.
    operation = OPERATIONS.get(case.family.op)
    for name in () if operation is None else operation.implementations:
        if name != "eager" and "implementation" in against:
            run = functools.partial(_forced, case, name)
            found.append(Contender(f"{OURS} {name}", "implementation", "implementation", run))
    if "eager" in against:
        found.append(Contender(FORMULA, "library", "eager", formula(case)))
    for name, mode in COMPILE_MODES.items():
        if name in against:
            found.append(Contender(name, "library", name, _compiled(formula(case), mode)))
    libraries = (_library(name, way) for name, way in case.family.libraries(case).items())
    found += [contender for contender in libraries if contender.kind in against]
    for name, stick in case.family.yardsticks(case).items():
        found.append(Contender(name, "yardstick", "yardstick", stick.run, stick.work))
    return found


def _library(name: str, way: Library) -> Contender:
    if isinstance(way, Absent):
        return Contender(name, "library", "library", _nothing, absent=way.why)
    if isinstance(way, Compiled):
        # Its kind is `compile`, as it takes as long to compile.
        return Contender(name, "library", "compile", _compiled(way.run, COMPILE_MODES["compile"]))
    return Contender(name, "library", "library", way)


def _compiled(run: Run, mode: str) -> Run:
    compiled: Run = torch.compile(run, dynamic=False, mode=mode)
    return compiled


def _nothing(inputs: Inputs) -> Output:
    raise AssertionError("a contender that is absent must not be run")


def formula(case: Case) -> Run:
    """Return the eager reference: the formula in plain PyTorch."""
    call = case.family.call
    return lambda inputs: call(inputs, "eager")


def _forced(case: Case, name: str, inputs: Inputs) -> Output:
    return case.family.call(inputs, name)
