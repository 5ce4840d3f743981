"""Grow the shipped nine-block configuration for a minute on bundled text, and resume it once.

    run_nine_layers(Path("out"), 60, device="cuda")

The run is a separate process that is stopped by Ctrl-C, as by a user, and started again by the same
command. Nothing is downloaded: the text is part of the package, and the substrate is drawn from its
glyphs (in seconds) unless one is given.

`python -m benchmarks.nine_layers CONFIG RUN RECORD` is that process: it runs `fastgrow grow` and
records its memory and the implementations that it used.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.processes import bound, die_with_parent

STOPPED = 130  # exit status of a command that was stopped by Ctrl-C
STOP_SECONDS = 60.0  # time for the running step, the checkpoint and the end of the process
POLL_SECONDS = 0.05
METRICS = "nine-layers-metrics.jsonl"


def run_nine_layers(
    out: Path,
    seconds: float,
    *,
    device: str,
    substrate: Path | None = None,
    config: str = "nine-layers-unicode",
    steps: int | None = None,
    on_half: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Grow for half of the time, stop, resume for the other half, stop.

    Args:
        out: output folder; `nine-layers-metrics.jsonl` with one row per step is kept there,
            checkpoints are not.
        seconds: time of both halves together, from starting to stopping a process. A half lasts
            until its first step, but at most twice its time.
        device: `cuda` or `cpu`.
        substrate: folder of a saved substrate; None draws the configuration's. If that one needs
            files that are not bundled, the default recipe is used, which is as large.
        config: name of a shipped configuration, or a file. Its data are replaced by bundled text.
        steps: end a half after this number of steps.
        on_half: called with the result so far before each half, as the process may be killed.

    Returns:
        JSON values: `state`, which is `passed` or `failed: …` (`unfinished: …` in `on_half`);
        `halves` with the steps, loss, tokens per second and peak memory of each; and further facts
        for a failure.
    """
    work = out / "nine-layers"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        result: dict[str, Any] = {"config": Path(config).stem, "device": device}
        result |= _prepare(work, config, substrate)
        halves: list[dict[str, Any]] = []
        result["halves"] = halves
        for half in ("first", "second"):
            on_half(result | {"state": f"unfinished: killed in its {half} half"})
            halves.append(_half(work, seconds / 2, steps, device, before=halves))
            if halves[-1]["error"]:
                break
        errors = [half["error"] for half in halves] + [_not_resumed(work, halves)]
        found = next((error for error in errors if error), "")
        result["state"] = f"failed: {found}" if found else "passed"
        if (work / "run" / "metrics.jsonl").exists():
            shutil.copy(work / "run" / "metrics.jsonl", out / METRICS)
        return result
    finally:
        # Gigabytes of checkpoints.
        shutil.rmtree(work, ignore_errors=True)


# -- before it starts ------------------------------------------------------------------------------


def _prepare(work: Path, config: str, substrate: Path | None) -> dict[str, Any]:
    """Write the text, the substrate and a configuration that names them; return facts on them."""
    import yaml

    from fastgrow.cli.config import read_config
    from fastgrow.cli.settings import SubstrateSettings, find_config

    tree = read_config(find_config(config))
    seconds = None
    if substrate is None:
        settings = dict(tree.get("substrate", {}))
        if settings.get("ngrams") is not None:
            settings = {"n_components": tree.get("model", {}).get("n_embed")}
        substrate = work / "substrate"
        started = time.perf_counter()
        drawn = SubstrateSettings(**settings).build()
        substrate.mkdir()
        drawn.save(substrate)
        seconds = time.perf_counter() - started
    tree["substrate"] = {"path": str(substrate.resolve())}
    tree["data"] = [{"source": str(_write_text(work).resolve()), "unknown": "unk"}]
    tree["cache"] = str(work / "tokens")
    # A row for each step.
    tree["train"] = {**tree.get("train", {}), "log_every": 1}
    (work / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return {"substrate_seconds": seconds, "train": tree["train"], "model": tree["model"]}


def _write_text(work: Path) -> Path:
    from fastgrow.data import SCRIPTS, demo_splits

    file = work / "text.jsonl"
    documents = [text for script in SCRIPTS for text in demo_splits(script).train]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


# -- one half --------------------------------------------------------------------------------------


def _half(
    work: Path, seconds: float, steps: int | None, device: str, before: list[dict[str, Any]]
) -> dict[str, Any]:
    done = len(_rows(work))
    record, log = work / f"record-{len(before)}.json", work / f"log-{len(before)}.txt"
    bonds = bound()
    if device == "cpu":
        bonds["env"]["CUDA_VISIBLE_DEVICES"] = ""
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.nine_layers", str(work / "config.yaml"),
             str(work / "run"), str(record)],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, **bonds,
        )  # fmt: skip
        try:
            first_step = _wait(process, work, done, seconds, steps)
            status = _stop(process)
        finally:
            process.kill()
            process.wait()
    rows = _rows(work)[done:]
    output = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    half: dict[str, Any] = {
        "status": status,
        "seconds": time.perf_counter() - started,
        "seconds_to_first_step": first_step,
        "steps": [row["global_step"] for row in rows],
        "first_loss": rows[0]["loss"] if rows else None,
        "last_loss": rows[-1]["loss"] if rows else None,
        "tokens_per_second": _speed(rows),
        "checkpoint_step": _checkpoint_step(work),
        "error": "",
        "output": output,
    }
    if record.exists():
        half |= json.loads(record.read_text(encoding="utf-8"))
    if status not in (0, STOPPED):
        half["error"] = f"`fastgrow grow` ended with status {status}: {_last_line(output)}"
    elif not rows:
        half["error"] = "no step was made"
    return half


def _wait(
    process: subprocess.Popen[bytes], work: Path, done: int, seconds: float, steps: int | None
) -> float | None:
    """Wait until the time is over and a step was made; return the seconds to the first step."""
    started = time.perf_counter()
    first = None
    while process.poll() is None:
        passed, made = time.perf_counter() - started, len(_rows(work)) - done
        if made > 0 and first is None:
            first = passed
        enough = steps is not None and made >= steps
        if enough or (passed >= seconds and (made > 0 or passed >= 2 * seconds)):
            break
        time.sleep(POLL_SECONDS)
    return first


def _stop(process: subprocess.Popen[bytes]) -> int | None:
    """Stop the process by Ctrl-C; return its status, or None if it does not end."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _not_resumed(work: Path, halves: list[dict[str, Any]]) -> str:
    """Return what is wrong with how the second half resumed; empty if nothing is."""
    if len(halves) < 2 or not halves[1]["steps"]:
        return ""
    saved, first = halves[0]["checkpoint_step"], halves[1]["steps"][0]
    if first != saved + 1:
        return f"the checkpoint was of step {saved}, but the resumed run continued at step {first}"
    steps = [row["global_step"] for row in _rows(work)]
    if steps != list(range(1, len(steps) + 1)):
        return "steps are missing or were made twice"
    return ""


def _rows(work: Path) -> list[dict[str, Any]]:
    """Read the logged metrics of each step; the last line may be incomplete."""
    file = work / "run" / "metrics.jsonl"
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if "loss" in row]


def _speed(rows: list[dict[str, Any]]) -> float | None:
    """Return the median tokens per second, without the first step, which compiles."""
    speeds = [row["tokens_per_second"] for row in rows[1:]]
    return statistics.median(speeds) if speeds else None


def _checkpoint_step(work: Path) -> int | None:
    steps = [int(path.name.removeprefix("step-")) for path in work.glob("run/checkpoints/step-*")]
    return max(steps, default=None)


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


# -- the process that grows ------------------------------------------------------------------------


class _Notes(logging.Handler):
    """Collects the log lines of the automatic choice about implementations it did not choose."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(config: str, run: str, record: str) -> int:
    from fastgrow import ops
    from fastgrow.cli import main as fastgrow
    from fastgrow.info import device

    die_with_parent()
    # If the suite was started in the background, this process inherits that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    notes, log = _Notes(), logging.getLogger("fastgrow")
    log.setLevel(logging.INFO)
    log.addHandler(notes)
    status = fastgrow(["grow", config, "--out", run])
    place = device()
    if place.type == "cuda":
        memory = torch.cuda.max_memory_allocated(place)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    explained = {e.operation: e.active for e in ops.explain_all(place)}
    content = {
        "peak_memory_bytes": memory,
        "implementations": explained,
        "passed_over": notes.lines,
        "device_name": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
    }
    Path(record).write_text(json.dumps(content), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
