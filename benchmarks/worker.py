"""A process of the GPU suite: it runs one piece of work, read as JSON from standard input.

    machine   describe the machine and measure its ceilings
    cells     measure some cases
    warm      run a case once, so that its compiled code is in the shared caches
    tune      tune the configurations of kernels
    growth    grow the nine-block configuration, stop it and resume it

The answers are lines of JSON on standard output. After an illegal access, every call on the device
fails: the process then ends immediately, and the next process can use the device again.
"""

from __future__ import annotations

from benchmarks.processes import DEVICE_LOST, Work, die_with_parent

if __name__ == "__main__":
    # Before the imports below, which take seconds in which the parent process may be killed.
    die_with_parent()

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config

from benchmarks import tuning
from benchmarks.candidates import Trial
from benchmarks.case import Case
from benchmarks.cases import families
from benchmarks.compiling import error_line
from benchmarks.contenders import FORMULA, Contender, contenders
from benchmarks.correctness import random_gradients
from benchmarks.faults import Fault
from benchmarks.interleave import step_of
from benchmarks.machine import Machine, find_machine
from benchmarks.measure import Budget, DeviceLost, Settings, is_lost, run_once
from benchmarks.rehearsal import fake_gpu
from benchmarks.results import Row
from benchmarks.suite import run_cases
from fastgrow.kernels import tuned

# Limits of a warming process, as other processes run at the same time.
MEMORY_TO_WARM = 0.2  # share of the device's memory
THREADS_TO_WARM = 4
OWN = ("ours", "implementation")  # roles


def main() -> int:
    if torch.cuda.is_available():
        # Initialise the context and call the driver's tool, which takes up to seconds, before there
        # is work, so that this does not use the work's time.
        with suppress(Exception):
            # An error here, for example because another process uses all memory, is ignored: if it
            # persists, the work will report it.
            torch.empty(1, device="cuda")
            find_machine("cuda")
    text = sys.stdin.read()
    if not text:
        return 0
    work = json.loads(text)
    # Redirect what libraries print to standard error, so that it is not mixed with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    KINDS[work["work"]](work, answer)
    return 0


def _machine_of(work: Work) -> Machine:
    return fake_gpu() if work["rehearse"] else find_machine("cuda")


def _machine(work: Work, answer: Callable[..., None]) -> None:
    machine = _machine_of(work)
    answer(environment=machine.environment, ceilings=dataclasses.asdict(machine.ceilings()))


def _cells(work: Work, answer: Callable[..., None]) -> None:
    """Measure cases in order; answer with rows and the launch parameters that each looked up."""
    machine = _machine_of(work)
    ready = Path(work["ready"])
    settings = Settings(
        work["against"],
        work["seconds_a_case"],
        is_compiled=lambda case, contender: mark(ready, case.name, contender.name).exists(),
        may_compile=work["may_compile"],
    )
    cases = [case_of(cell, machine.device.type) for cell in work["cells"]]

    def on_start(case: Case) -> None:
        # Launchers cache their choices; forget them, so that this case's lookups are recorded.
        tuned.forget()
        tuned.asked.clear()
        answer(start=case.name)

    def on_case(rows: list[Row]) -> None:
        answer(rows=[dataclasses.asdict(row) for row in rows], launch=sorted(tuned.asked))

    with _table_in_use(work), _ending_with(machine.device, answer):
        notes = run_cases(
            cases, settings, machine, Budget(work["seconds"]), on_start=on_start, on_case=on_case
        )[1]
    for note in notes:
        answer(note=note)


@contextmanager
def _ending_with(device: torch.device, answer: Callable[..., None]) -> Iterator[None]:
    """Report an error that ends the work; end the process at once if the device is lost."""
    try:
        yield
    except Exception as error:
        is_known = isinstance(error, DeviceLost)
        answer(why=str(error) if is_known else error_line(error))
        if is_known or is_lost(device):
            _end_at_once()
        raise


def _end_at_once() -> None:
    """End the process without cleanup, because freeing memory on a lost device can hang."""
    sys.stderr.flush()
    os._exit(DEVICE_LOST)


def warmed(field: Sequence[Contender]) -> list[Contender]:
    """Return the contenders that are run in advance, in order.

    fastgrow comes first, because compiling its kernels takes a second or more each, so that a case
    might exceed its time; a case can be measured without a compiled alternative. The formula is
    excluded, because it compiles nothing and needs most memory.
    """
    field = [c for c in field if not c.absent and c.name != FORMULA]
    return sorted(field, key=lambda c: (c.role not in OWN, not c.is_compiled))


def _warm(work: Work, answer: Callable[..., None]) -> None:
    """Run each contender of a case that compiles once, and write its marker file."""
    machine = _machine_of(work)
    if machine.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_TO_WARM)
    torch._inductor.config.compile_threads = THREADS_TO_WARM
    case = case_of(work["cell"], machine.device.type)
    inputs = case.inputs(seed=0)
    gradients: tuple[Any, ...] = ()
    if case.pass_ != "forward":
        gradients = random_gradients(lambda given: case.family.call(given, "eager"), inputs)
    for contender in warmed(contenders(case, work["against"])):
        try:
            run_once(step_of(case, contender.run, [inputs], gradients))
        except torch.OutOfMemoryError:
            # The measurement has more memory, and compiles it if there is time.
            continue
        except Exception as error:
            # The measurement will have the same error, and report it in a row.
            print(f"{case.name}: {contender.name}: {error}", file=sys.stderr)
            if is_lost(machine.device):
                # The other contenders cannot be run in this process any more.
                _end_at_once()
        mark(Path(work["ready"]), case.name, contender.name).touch()


def _tune(work: Work, answer: Callable[..., None]) -> None:
    """Tune kernels; answer with entries and notes, and with each trial before its launch."""
    machine = _machine_of(work)

    def on_trial(trial: Trial | None) -> None:
        answer(trying=None if trial is None else dataclasses.asdict(trial))

    with _ending_with(machine.device, answer):
        tuning.tune(
            work["modules"],
            int(str(machine.environment["capability"]).replace(".", "")),
            machine.clock,
            work["seconds"],
            device=machine.device,
            first_rank=work["first_rank"],
            known=work["known"],
            faults=[Fault(**fault) for fault in work["faults"]],
            on_entry=lambda kernel, bucket, entry: answer(
                kernel=kernel, bucket=bucket, entry=entry
            ),
            on_note=lambda note: answer(note=note),
            on_trial=on_trial,
        )


def _growth(work: Work, answer: Callable[..., None]) -> None:
    from benchmarks.nine_layers import run_nine_layers

    answer(
        found=run_nine_layers(
            Path(work["out"]),
            work["seconds"],
            device="cpu" if work["rehearse"] else "cuda",
            substrate=Path(work["substrate"]) if work["substrate"] else None,
            config=work["config"],
            on_half=lambda found: answer(found=found),
        )
    )


KINDS: dict[str, Callable[[Work, Callable[..., None]], None]] = {
    "machine": _machine,
    "cells": _cells,
    "warm": _warm,
    "tune": _tune,
    "growth": _growth,
}


def cell_of(case: Case) -> dict[str, Any]:
    """Return a case as JSON values."""
    return {
        "family": case.family.name,
        "shape": case.shape,
        "dtype": case.dtype,
        "pass": case.pass_,
    }


def case_of(cell: dict[str, Any], device: str) -> Case:
    (family,) = families([cell["family"]])
    return Case(family, cell["shape"], cell["dtype"], cell["pass"], device)


def mark(folder: Path, case: str, contender: str) -> Path:
    """Return the path of the marker file that a contender is compiled for a case."""
    return folder / hashlib.sha256(f"{case}/{contender}".encode()).hexdigest()


@contextmanager
def _table_in_use(work: Work) -> Iterator[None]:
    """Use the configurations tuned so far while speeds are measured."""
    tree = work["table"]
    with tuned.standing_in(tree["device"], tuned.table_of(tree)) if tree else nullcontext():
        yield


if __name__ == "__main__":
    sys.exit(main())
