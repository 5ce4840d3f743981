"""A run that is killed at any moment: no file is damaged, and no printed result is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import RECORD
from benchmarks.results import Result, load
from benchmarks.ship import TABLE
from fastgrow.kernels.tuned import read_table

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ["logit_mean", "layer_norm-alone", "embedding", "rms_norm"]
KILLS, LONGEST = 20, 6.0

RUN = f"""
import sys
from pathlib import Path
from benchmarks.cases import families
from benchmarks.gpu import Options, run_gpu

run_gpu(Path(sys.argv[1]), Options(
    minutes=20, stages=("headline", "tuning", "rest"), families=families({OPERATIONS}),
    against=("eager", "library"), rehearse=True, growth="none",
))
"""


def start(out: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-u", "-c", RUN, str(out)],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def cells(out: Path) -> list[str]:
    """Names of the cases whose lines are whole."""
    path = out / RECORD
    found = []
    for line in path.read_bytes().splitlines(True) if path.exists() else []:
        if line.endswith(b"\n"):
            tree = json.loads(line)
            found += [tree["cell"]] if tree["kind"] == "cell" else []
    return found


def result_of(out: Path) -> Result | None:
    """The files' contents; each is complete or does not exist yet."""
    if (out / TABLE).exists():
        read_table(out / TABLE)
    return load(out / "results.json") if (out / "results.json").exists() else None


@pytest.mark.slow
def test_killed_twenty_times_it_breaks_no_file_and_goes_on(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    moments = random.Random(0)
    known: list[str] = []
    sessions: list[str] = []
    for _ in range(KILLS):
        process = start(out, log)
        sessions.append(str(process.pid))
        try:
            # One that is done earlier has nothing left to lose.
            process.wait(moments.uniform(0.2, LONGEST))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed = [line for line in log.read_text().splitlines() if line.endswith(" fp32 forward")]
        after = cells(out)
        assert after[: len(known)] == known
        assert after[len(known) :][: len(printed)] == printed, "a printed case is not on disk"
        result = result_of(out)
        if result is not None:
            measured = {f"{r.op} {r.shape} {r.dtype} {r.pass_}" for r in result.rows}
            # The file is written right after the line, so at most the last case is missing in it.
            assert len(set(after) - measured) <= 1
        known = after
    process = start(out, log)
    sessions.append(str(process.pid))
    assert process.wait(600) == 0, log.read_text()
    whole = load(out / "results.json")
    assert {row.op for row in whole.rows} == set(OPERATIONS)
    assert all(row.status == "ok" for row in whole.rows if row.role == "ours")
    assert set(read_table(out / TABLE).entries["stand_in"]) == {"a", "b", "c"}
    # No process is left. On a busy machine a process needs a while to end.
    pgrep = ["pgrep", "--session", ",".join(sessions)]
    for _ in range(60):
        left = subprocess.run(pgrep, capture_output=True, text=True, check=False)
        if not left.stdout:
            break
        time.sleep(1)
    assert left.stdout == ""
