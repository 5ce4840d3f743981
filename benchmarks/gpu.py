"""Run all measurements and tests on a GPU machine, most important first, within some minutes.

    setup     description of the machine, its ceilings, the extension
    smoke     one test of each kernel and direction
    headline  the most important speeds, with every alternative
    tests     all tests on the device
    tuning    the kernels' configurations at the headline shapes
    rest      a growth run, unfinished cases, all other speeds, the rest of tuning

Each piece of work runs in a separate process, so that an error ends only this piece. Each result is
written to disk immediately (`record.jsonl`), and `results.json` is then rewritten: if the run is
killed, only the case that was being measured is lost. A second call with the same folder measures
what is missing: cases that were not finished, and cases that were measured with other code
(`benchmarks.code`) or with other kernel configurations than the present ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT, code, rehearsal, show
from benchmarks.case import Case, Family, shape_text
from benchmarks.cases import FAMILIES
from benchmarks.contenders import COMPILE_MODES
from benchmarks.device_tests import ALL, RED, SMOKE, TESTS, run_gpu_tests
from benchmarks.faults import Fault, Watch
from benchmarks.gpu_result import result_of, table_from
from benchmarks.machine import find_machine, output
from benchmarks.measure import SKIPPED
from benchmarks.processes import Workers
from benchmarks.record import Line, Record, key_of, open_alone
from benchmarks.results import Ceilings, Result, Row, row_of, save
from benchmarks.ship import TABLE
from benchmarks.stages import (
    GROWTH_SECONDS,
    SHARES,
    STAGES,
    WHOLE,
    headline_cases,
    other_cases,
)
from benchmarks.warming import Warming
from benchmarks.worker import cell_of, mark
from fastgrow import _files, _native
from fastgrow.errors import ConfigError
from fastgrow.kernels import tuned

RECORD = "record.jsonl"
AGAINST = ("implementation", "eager", "compile", "library")
SECONDS_A_CASE = 1.0
# Seconds before a worker that does not end is killed; and seconds reserved for writing at the end.
GRACE, AT_THE_END = 10.0, 8.0
# A case that is killed has no result: a case that has started may use this many seconds more, for
# example if its kernels are compiled for the first time.
GRACE_OF_A_CASE = 25.0
BUILD_SECONDS = 120.0
NO_TIME = "not run: no time was left"


@dataclass(frozen=True)
class Options:
    """Options of a call.

    Args:
        minutes: time limit of the whole call.
        stages: names of STAGES.
        families: operations to time.
        only: substring of the names of the cases and tests to run.
        again: measure the selected items again, even if their results are known.
        rehearse: run everything on a CPU (`benchmarks.rehearsal`).
        against: kinds of contenders (`benchmarks.contenders.KINDS`).
        tests: folder of the tests.
        substrate: folder of a substrate for the growth run; None builds one.
        growth: configuration of the growth run.
    """

    minutes: float = WHOLE
    stages: Sequence[str] = tuple(STAGES)
    families: Sequence[Family] = FAMILIES
    only: str = ""
    again: bool = False
    rehearse: bool = False
    against: Sequence[str] = AGAINST
    tests: Path = TESTS
    substrate: Path | None = None
    growth: str = "nine-layers-unicode"


def run_gpu(out: Path, options: Options) -> Result:
    """Run the selected stages within the given minutes, and return all results known so far.

    Raises:
        ConfigError: there is no GPU, and this is not a rehearsal; `out` is not a folder, or another
            run writes there; there is no such substrate; no case has such a name; or the minutes
            are too few to start.
        OSError: a file cannot be written, for example because the disk is full; its `filename` is
            the path.
    """
    if not options.rehearse and not torch.cuda.is_available():
        find_machine("cuda")
    if options.substrate is not None and not options.substrate.is_dir():
        raise ConfigError(f"--substrate: no such folder: {options.substrate}")
    end = time.monotonic() + 60 * options.minutes - AT_THE_END
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(open_alone(out / RECORD))
        built = "" if options.rehearse else _build_extension()
        # Started after the build, as a process that starts earlier would not find the extension.
        workers = stack.enter_context(Workers())
        run = _Run(record, options, end, workers)
        run.setup(built)
        with run.warming():
            for stage in ("smoke", "headline", "tests", "tuning", "rest"):
                if stage in options.stages:
                    getattr(run, stage)()
        return run.write()


class _Run:
    """One call: its record, its options and its time limit."""

    def __init__(self, record: Record, options: Options, end: float, workers: Workers) -> None:
        self.record, self.options, self.end, self.workers = record, options, end, workers
        self.out = record.path.parent
        self.key = ""
        self.ready: Path | None = None
        # Cases of this call.
        self.measured: set[str] = set()
        self.dead: set[str] = set()
        known = {family.name: family for family in (*FAMILIES, *options.families)}
        self.digests = {name: code.digest_of(family) for name, family in known.items()}
        self.of_everything = code.digest_of_everything()
        device, grid, dtype = "cuda", "gpu", "bf16"
        if options.rehearse:
            device, grid, dtype = "cpu", rehearsal.GRID, rehearsal.DTYPE
        headline = headline_cases(options.families, device, grid, dtype)
        others = other_cases(options.families, device, grid, dtype, headline)
        self.headline_cases = [case for case in headline if options.only in case.name]
        self.other_cases = [case for case in others if options.only in case.name]
        cases = [*self.headline_cases, *self.other_cases]
        if options.only and not cases and not {"smoke", "tests"} & {*options.stages}:
            raise ConfigError(f"--only: no case has {options.only!r} in its name")

    # Time.

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def limit(self, stage: str) -> float:
        """Return the seconds that a stage may take from now on."""
        return min(self.left(), STAGES[stage] * self.options.minutes / WHOLE)

    # Stages.

    def setup(self, built: str) -> None:
        """Record the machine.

        Args:
            built: why the extension is missing, or empty.
        """

        def on_answer(answer: Line) -> None:
            self.key = key_of(answer["environment"])
            before = self.record.last("machine")
            if before is None or before["key"] != self.key:
                self._set_aside("results.json", TABLE)
            self.record.add({"kind": "machine", "key": self.key, **answer})

        for name in ("results.json", "results.csv", TABLE):
            _files.remove_leftovers(self.out / name)
        ended = self.workers.run(self._work("machine"), self.left(), on_answer)
        if not self.key:
            raise ConfigError(
                f"the machine could not be examined: {ended or 'the worker returned nothing'}; "
                f"the time limit is --minutes {self.options.minutes:g}, of which "
                f"{AT_THE_END:.0f} s are reserved for writing the results"
            )
        self.note("extension", built)
        self.note("setup", ended)
        self.write()

    def smoke(self) -> None:
        self._tests("smoke", SMOKE)

    def tests(self) -> None:
        self._tests("tests", ALL)

    def headline(self) -> None:
        self._speeds("headline", self.headline_cases, self.limit("headline"), may_compile=False)

    def tuning(self) -> None:
        """Tune the configurations that the headline cases use."""
        self._tune("tuning", self.limit("tuning"), first_rank=0)

    def rest(self) -> None:
        self._grow(min(self.left(), GROWTH_SECONDS * self.options.minutes / WHOLE))
        # Headline cases measured without an alternative or before their kernels were tuned, and all
        # other cases.
        cases = [*self.headline_cases, *self.other_cases]
        self._speeds("rest", cases, self.left(), may_compile=True)
        self._tune("rest of tuning", self.left(), first_rank=None)

    # Steps of the stages.

    def _set_aside(self, *names: str) -> None:
        """Rename files that are not from this record or this machine, to names that are free."""
        for path in (self.out / name for name in names):
            if path.exists():
                others = (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in count(1))
                other = next(other for other in others if not other.exists())
                path.rename(other)
                print(f"{path} is not from this machine's record; renamed to {other.name}")

    def warming(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager that compiles the contenders of later cases in parallel."""
        cases: list[Case] = []
        compiles = any(kind in COMPILE_MODES for kind in self.options.against)
        if compiles and "headline" in self.options.stages:
            cases += self.missing(self.headline_cases)
        if compiles and "rest" in self.options.stages:
            cases += self.missing([*self.headline_cases, *self.other_cases])
        cells = [cell_of(case) for case in {case.name: case for case in cases}.values()]
        # The measuring processes run the compiler, too.
        slots = min(4, max(1, (os.cpu_count() or 1) // 3))
        if cells:
            text = f"up to {slots} processes ran later cases once on the same device, while others"
            self.note("compiling in advance", f"{text} were timed")
        warming = Warming(self._work("warm"), cells, slots)
        self.ready = warming.ready
        return warming

    def _tests(self, stage: str, mark: str) -> None:
        again = self.options.again
        known = {line["test"]: line["outcome"] for line in self._lines_of("test")}
        note = next((n for n in self._lines_of("note") if n["about"] == stage), None)
        was_complete = note is not None and not note["text"]
        if was_complete and not again and not {*RED} & {*known.values()}:
            print(f"{stage}: already done in an earlier call", flush=True)
            return
        limit = self.limit(stage)
        print(f"{stage}: at most {limit:.0f} s", flush=True)

        def on_outcome(test: str, outcome: str, why: str) -> None:
            self.add({"kind": "test", "test": test, "outcome": outcome, "why": why})
            if outcome in RED:
                self.write()

        done = [test for test, outcome in known.items() if outcome in ("passed", "skipped")]
        state = run_gpu_tests(
            limit,
            self.options.tests,
            mark=mark,
            only=self.options.only,
            leave_out=[] if again else done,
            on_outcome=on_outcome,
        )
        if self.options.only:
            # The outcome of some tests does not make the stage complete.
            print(f"{stage}: {state or 'done, for the selected tests'}", flush=True)
            state = "" if was_complete else "unfinished: only a part of the tests was selected"
        self.note(stage, state)
        self.write()

    def _speeds(self, stage: str, cases: Sequence[Case], seconds: float, may_compile: bool) -> None:
        """Measure the missing cases; each operation has a separate process and a time share."""
        end = time.monotonic() + seconds
        by_operation: dict[str, list[Case]] = {}
        for case in self.missing(cases):
            by_operation.setdefault(case.family.op, []).append(case)
        groups = list(by_operation.values())
        shares = [SHARES.get(group[0].family.name, 1.0) * len(group) for group in groups]
        for i, group in enumerate(groups):
            left = min(self.left(), end - time.monotonic())
            limit = left * shares[i] / sum(shares[i:])
            self._measure(group, limit, may_compile)
        names = {case.name for case in cases}
        died = self.dead & names
        left_out = len(died | (names - self.complete()))
        text = f"{left_out} of {len(cases)} cases are not complete" if left_out else ""
        self.note(stage, text + "".join(f"; {name} ended its process" for name in sorted(died)))
        self.write()

    def _measure(self, cases: Sequence[Case], seconds: float, may_compile: bool) -> None:
        """Measure cases of one operation; if a process dies, another continues after that case."""
        end = time.monotonic() + seconds
        by_name = {case.name: case for case in cases}
        current: Case | None = None
        why = ""
        launches = self._table()["entries"]

        def on_answer(answer: Line) -> None:
            nonlocal current, why
            if "why" in answer:
                why = answer["why"]
            elif "start" in answer:
                current = by_name[answer["start"]]
            elif "rows" in answer and current is not None:
                used = {f"{k} {b}": launches.get(k, {}).get(b, {}) for k, b in answer["launch"]}
                launch = {name: entry.get("configuration") for name, entry in used.items()}
                self._add_cell(current, answer["rows"], launch)
                current = None

        waiting, died_idle = list(cases), False
        while waiting and (left := end - time.monotonic()) > 1:
            work = self._work("cells") | {
                "cells": [cell_of(case) for case in waiting],
                "seconds": left,
                "may_compile": may_compile,
                "table": self._table() if launches else None,
            }
            current, why = None, ""
            limit = min(left + GRACE_OF_A_CASE, self.left())
            ended = self.workers.run(work, limit, on_answer)
            if not ended or ended.startswith("cut short"):
                if current is not None:
                    print(f"{current.name}: {ended}", flush=True)
                return
            ended += f": {why}" if why else ""
            print(f"{waiting[0].family.name}: {ended}", flush=True)
            if current is not None:
                self._add_dead(current, ended)
            elif died_idle:
                return
            # The process may have failed to start because another process held all memory.
            died_idle = current is None
            waiting = [c for c in waiting if c.name not in self.measured | self.dead]

    def _add_cell(self, case: Case, rows: list[dict[str, Any]], launch: dict[str, Any]) -> None:
        self.measured.add(case.name)
        self.add({
            "kind": "cell", "cell": case.name, "code": self.digests[case.family.name],
            "launch": launch, "rows": rows,
        })  # fmt: skip
        found, on_gpu = [row_of(row) for row in rows], not self.options.rehearse
        print(show.case_table(found, Ceilings(), on_gpu=on_gpu), flush=True)
        self.write()

    def _add_dead(self, case: Case, ended: str) -> None:
        """Add a row that states how the case's process ended; the next call tries it again."""
        self.dead.add(case.name)
        status = f"{SKIPPED}: its process {ended}"
        row = Row(
            case.family.name, shape_text(case.shape), case.dtype, case.pass_,
            "fastgrow", "ours", status,
        )  # fmt: skip
        self.add({
            "kind": "cell", "cell": case.name, "code": self.digests[case.family.name],
            "launch": {}, "rows": [dataclasses.asdict(row)],
        })  # fmt: skip
        self.write()

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases that are not complete and can be completed now.

        A case that this call has measured without a contender that was not compiled yet is measured
        again once that contender is compiled.
        """
        known = self.complete()
        if self.options.again:
            known &= self.measured
        waiting = {
            line["cell"]
            for line in self._lines_of("cell")
            if line["cell"] in self.measured
            and (skipped := _skipped(line))
            and not any(self._is_ready(line["cell"], contender) for contender in skipped)
        }
        left_out = known | waiting | self.dead
        return [case for case in cases if case.name not in left_out]

    def complete(self) -> set[str]:
        """Return the cases measured with all contenders, this code and these configurations."""
        entries = self._table()["entries"]

        def is_tuned(line: Line) -> bool:
            now = {n: entries.get(k, {}).get(b, {}) for n, k, b in _names(line["launch"])}
            return all(_launches(entry, line["launch"][n]) for n, entry in now.items())

        lines = self._lines_of("cell")
        return {line["cell"] for line in lines if not _skipped(line) and is_tuned(line)}

    def _is_ready(self, case: str, contender: str) -> bool:
        return self.ready is not None and mark(self.ready, case, contender).exists()

    def _tune(self, stage: str, seconds: float, first_rank: int | None) -> None:
        if importlib.util.find_spec("triton") is None:
            self.note(stage, "skipped: triton is not installed")
            return
        if seconds < 1:
            self.note(stage, NO_TIME)
            return
        end = time.monotonic() + seconds
        known: dict[str, dict[str, Any]] = {}
        for line in [] if self.options.again else self._lines_of("entry"):
            known.setdefault(line["kernel"], {})[line["bucket"]] = line["entry"]
        texts: list[str] = []
        watch, why = Watch(), ""

        def on_answer(answer: Line) -> None:
            nonlocal why
            if "why" in answer:
                why = answer["why"]
            elif "trying" in answer:
                watch.tries(answer["trying"])
            elif "note" in answer:
                # A process that continues after another repeats some of its notes.
                if answer["note"] not in texts:
                    texts.append(answer["note"])
            else:
                kernel, bucket, entry = (answer[name] for name in ("kernel", "bucket", "entry"))
                known.setdefault(kernel, {})[bucket] = entry
                self.add({"kind": "entry", **answer})
                print(f"{stage}: {kernel} {bucket} {entry}", flush=True)
                self.write()

        left, died_idle = seconds, False
        while left >= 1:
            rehearsed = [rehearsal.__name__] if self.options.rehearse else None
            work = self._work("tune") | {
                "modules": rehearsed or tuned.tuning_modules(),
                "seconds": left,
                "first_rank": first_rank,
                "known": known,
                "faults": [dataclasses.asdict(fault) for fault in self._faults()],
            }
            watch, why = Watch(), ""
            ended = self.workers.run(work, min(left + GRACE, self.left()), on_answer)
            if not ended:
                break
            was_killed = ended.startswith("cut short")
            ended += f": {why}" if why else ""
            fault = watch.fault(ended, was_killed)
            if fault is not None:
                self.add({"kind": "fault", **dataclasses.asdict(fault)})
            texts.append(str(fault or ended))
            print(f"{stage}: {fault or ended}", flush=True)
            if fault is None and (was_killed or died_idle):
                break
            # The process may have failed to start because another process held all memory.
            died_idle = fault is None
            left = end - time.monotonic()
        self.note(stage, "; ".join(texts))
        self.write()

    def _faults(self) -> list[Fault]:
        """Return the trials that are not repeated."""
        names = [field.name for field in dataclasses.fields(Fault)]
        return [Fault(**{name: line[name] for name in names}) for line in self._lines_of("fault")]

    def _grow(self, seconds: float) -> None:
        # A run that failed or was killed is repeated, as tests are.
        known = [line for line in self._lines_of("growth") if line["found"]["state"] == "passed"]
        if (known and not self.options.again) or self.options.only:
            return
        if seconds < 1:
            self.note("growth", NO_TIME)
            return

        def on_answer(answer: Line) -> None:
            self.add({"kind": "growth", "found": answer["found"]})

        # In a temporary folder, because the checkpoints have gigabytes. A process that was killed
        # may still be writing one, so errors of the cleanup are ignored.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            work = self._work("growth") | {
                "out": folder,
                "seconds": seconds,
                "substrate": str(self.options.substrate) if self.options.substrate else None,
                "config": self.options.growth,
            }
            # The first step compiles, and each half of the run waits for its first step.
            ended = self.workers.run(work, min(2 * seconds + GRACE, self.left()), on_answer)
        self.note("growth", ended)
        self.write()

    # The record.

    def add(self, line: Line) -> None:
        self.record.add({"key": self.key, "code": self.of_everything, **line})

    def note(self, about: str, text: str) -> None:
        """Record a note on a stage; an empty text means that the stage is complete."""
        self.add({"kind": "note", "about": about, "text": text})
        if text:
            print(f"{about}: {text}", flush=True)

    def _lines_of(self, kind: str) -> list[Line]:
        """Return the record's lines of this machine and the present code."""
        digests = set(self.digests.values()) if kind == "cell" else {self.of_everything}
        lines = self.record.of(kind, self.key)
        # Entries and faults have the digest of their kernel's source instead.
        if kind in ("entry", "fault"):
            return lines
        return [line for line in lines if line["code"] in digests]

    def _table(self) -> dict[str, Any]:
        return table_from(self.record, self.key)

    def _work(self, name: str) -> dict[str, Any]:
        return {
            "work": name,
            "rehearse": self.options.rehearse,
            "against": self.options.against,
            "seconds_a_case": SECONDS_A_CASE * min(1.0, self.options.minutes / WHOLE),
            "ready": str(self.ready),
        }

    def write(self) -> Result:
        """Write results.json, results.csv and tuning.json with all results known so far."""
        result = result_of(self.record, self.key, self.digests, self.of_everything)
        save(result, self.out)
        table = table_from(self.record, self.key, result.rows)
        if table["entries"] or table["native"]:
            _files.write_json(self.out / TABLE, table)
        return result


def _skipped(line: Line) -> list[str]:
    """Return the contenders of a case that were skipped and that a longer run would measure."""
    return [row["contender"] for row in line["rows"] if row["status"].startswith(SKIPPED)]


def _names(launch: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return each launch's name, kernel and bucket."""
    return [(name, *name.split(" ", 1)) for name in launch]  # type: ignore[misc]


def _launches(entry: dict[str, Any], launched: dict[str, int] | None) -> bool:
    """Whether a kernel with this entry would launch the configuration that was launched earlier.

    If there was no entry (`launched` is None), the default was launched, which may be the best.
    """
    if entry.get("configuration") == launched:
        return True
    return launched is None and entry["median_ms"] == entry.get("default_ms")


def _build_extension() -> str:
    """Build the CUDA extension in a working copy that has none.

    Returns:
        Why it could not be built, or an empty string.
    """
    if _native.CUDA.loaded:
        return ""
    if _native.PACKAGE.parent != ROOT or not (ROOT / "setup.py").is_file():
        return f"{_native.CUDA.reason}; it can only be built in a working copy of the repository"
    if shutil.which("nvcc") is None:
        return f"{_native.CUDA.reason}; nvcc is not on the PATH"
    environment = os.environ | {"FASTGROW_BUILD_EXT": "cuda"}
    # Queried from the driver's tool, so that this process needs no context on the device.
    capability = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    if capability:
        environment["FASTGROW_CUDA_ARCHITECTURES"] = capability.replace(".", "")
    try:
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=ROOT, env=environment, timeout=BUILD_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"the extension could not be built: {error}"
    return ""
