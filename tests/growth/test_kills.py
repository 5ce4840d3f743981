"""A run that is killed at any moment and resumed ends as an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from growing import digest

from fastgrow.nn import Decoder

HERE = Path(__file__).parent
TIMES = ("seconds", "tokens_per_second")


class KillServer:
    """Starts runs (`kill_server.py`) and kills them."""

    def __init__(self, tokens: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "kill_server.py"), str(tokens)],
            cwd=HERE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def run(self, schedule: str, out: Path, kill_after: float | None = None) -> bool:
        """Start or resume a run in a folder; True if it was killed after `kill_after` seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{schedule} {out}\n")
        self._process.stdin.flush()
        process = int(self._answer())
        timer = None
        if kill_after is not None:
            timer = threading.Timer(kill_after, _kill, [process])
            timer.start()
        code = int(self._answer())
        if timer is not None:
            timer.cancel()
            timer.join()
        assert code in (0, -signal.SIGKILL), f"the run failed with {code}"
        return code != 0

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def left_behind(run: Path) -> dict[str, object]:
    """The files of a finished run, without times."""
    record = json.loads((run / "growth.json").read_text())
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    adapters = sorted((run / "adapters").rglob("*.*"))
    return {
        "model": digest(Decoder.load(run / "model")),
        "record": [{k: v for k, v in stage.items() if k not in TIMES} for stage in record],
        "log": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "adapters": {f.relative_to(run).as_posix(): f.read_bytes() for f in adapters},
        "files": sorted(f.name for f in run.iterdir() if not f.name.startswith("events.")),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[KillServer]:
    server = KillServer(tmp_path_factory.mktemp("tokens"))
    yield server
    server.close()


def uninterrupted(server: KillServer, schedule: str, out: Path) -> tuple[dict[str, object], float]:
    """The files of an uninterrupted run, and the seconds that it takes."""
    began = time.monotonic()
    assert not server.run(schedule, out)
    seconds = time.monotonic() - began
    left = left_behind(out)
    record = left["record"]
    assert [stage["depth"] for stage in record] == [1, 2, 3]
    assert record[1]["rank"] == 2
    assert record[2]["decision"]["reason"] == "plateau"
    assert {name.split("/")[1] for name in left["adapters"]} == {"stage-2"}
    return left, seconds


@pytest.mark.parametrize(
    ("schedule", "kills"),
    [
        ("wsd", 5),
        pytest.param("wsd", 50, marks=pytest.mark.slow),
        pytest.param("per-stage", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_it_ends_in_the_same_bits(
    server: KillServer, tmp_path: Path, schedule: str, kills: int
) -> None:
    """A run that is killed repeatedly until it finishes has the files of an uninterrupted one."""
    left, seconds = uninterrupted(server, schedule, tmp_path / "whole" / "run")
    moments, done, number = random.Random(kills), 0, 0
    while done < kills:
        out = tmp_path / f"run-{number}"
        while server.run(schedule, out, moments.uniform(0, seconds) if done < kills else None):
            done += 1
        assert left_behind(out) == left
        number += 1
