"""The command `growth`: measure steps, memory and whole runs, and write a result and tables."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth.claims import Claim, run_claims, step_claims
from benchmarks.growth.models import Shape
from benchmarks.growth.runs import RUNS, RunRow, RunShape, measure_run
from benchmarks.growth.steps import ROUNDS, StepRow, measure_steps
from benchmarks.machine import Machine, cpu_notes, find_machine
from benchmarks.show import milliseconds
from fastgrow import _files

TINY = Shape(d=32, V=64, T=16, B=2, windows=8)
TINY_RUNS = (RunShape(3, 4, TINY),)


def growth(arguments: Sequence[str], program: str) -> int:
    """Time training steps on a frozen trunk and whole growth runs, with and without a cache."""
    parser = argparse.ArgumentParser(f"{program} growth", description=growth.__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="folder for results.json and results.md")
    add("--rounds", type=int, default=ROUNDS, help="number of timed steps of every kind")
    add("--tiny", action="store_true", help="use tiny sizes, to test that the command runs")
    add("--device", choices=("cpu", "cuda"), help="device (default: the GPU if there is one)")
    options = parser.parse_args(arguments)
    machine = find_machine(options.device)
    shape, runs = (TINY, TINY_RUNS) if options.tiny else (Shape(), RUNS)
    command = f"{program} growth" + (" --tiny" if options.tiny else "")
    result = measure(machine, shape, runs, options.rounds, command, say=_say)
    text = markdown(result)
    print(text)
    if options.out is not None:
        _files.write_json(options.out / "results.json", result)
        _files.write_text(options.out / "results.md", text)
        print(f"{options.out}: results.json, results.md")
    return 0


def measure(
    machine: Machine,
    shape: Shape,
    runs: Sequence[RunShape],
    rounds: int,
    command: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure everything, and return the result as JSON values."""
    run_rows = []
    with tempfile.TemporaryDirectory(prefix="fastgrow-growth-") as name:
        folder = Path(name)
        say(f"steps: {rounds} rounds")
        steps = measure_steps(shape, folder, machine.clock, machine.device, rounds)
        for run in runs:
            say(f"growing to {run.stages} blocks, {run.passes} passes per stage, twice")
            run_rows.append(measure_run(run, folder, machine.device))
    claims = [*step_claims(steps), *run_claims(run_rows)]
    notes = cpu_notes(machine.environment) if machine.device.type == "cpu" else []
    return {
        "command": command,
        "environment": machine.environment,
        "shape": dataclasses.asdict(shape),
        "steps": [_step(row) for row in steps],
        "runs": [dataclasses.asdict(row) for row in run_rows],
        "claims": [{**dataclasses.asdict(claim), "held": claim.held} for claim in claims],
        "notes": notes,
    }


def _step(row: StepRow) -> dict[str, Any]:
    return {"name": row.name, "seconds": row.seconds, "peak_bytes": row.peak}


def markdown(result: dict[str, Any]) -> str:
    """Format a result as three Markdown tables, with their origin."""
    shape = ", ".join(f"{name}={size}" for name, size in result["shape"].items())
    parts = [f"Steps at {shape}, fp32:", _table(STEP_HEADER, map(_step_line, result["steps"]))]
    runs = [RunRow(**row) for row in result["runs"]]
    parts += ["Whole runs:", _table(RUN_HEADER, map(_run_line, runs))]
    claims = [Claim(**{k: v for k, v in c.items() if k != "held"}) for c in result["claims"]]
    parts += ["What was to be shown:", _table(CLAIM_HEADER, map(_claim_line, claims))]
    known = result["environment"]
    parts += result["notes"]
    parts.append(
        f"Origin: `{result['command']}` on {known['device']}, torch {known['torch']}, "
        f"commit {known['commit']}, {known['date']}."
    )
    return "\n\n".join(parts) + "\n"


STEP_HEADER = ("step", "median ms", "peak MiB above the weights")
RUN_HEADER = ("blocks", "passes per stage", "V", "cache in", "recomputed s", "cached s", "gain",
              "counted", "share", "same bits")  # fmt: skip
CLAIM_HEADER = ("claim", "measured", "bound", "held")


def _step_line(row: dict[str, Any]) -> list[str]:
    step = StepRow(row["name"], row["seconds"], row["peak_bytes"])
    return [step.name, milliseconds(step.median * 1e3), f"{step.peak / 2**20:.1f}"]


def _run_line(row: RunRow) -> list[str]:
    return [
        str(row.stages),
        f"{row.passes:g}",
        str(row.V),
        row.cache,
        f"{row.recomputed:.1f}",
        f"{row.kept:.1f}",
        f"{row.gain:.2f}×",
        f"{row.counted:.2f}×",
        f"{row.gain / row.counted:.0%}",
        "yes" if row.same_bits else "NO",
    ]


def _claim_line(claim: Claim) -> list[str]:
    sign = "≥" if claim.at_least else "≤"
    bound = f"{sign} {claim.bound:g}"
    return [claim.text, f"{claim.value:.3g}", bound, "yes" if claim.held else "**no**"]


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _say(text: str) -> None:
    print(text, flush=True)
