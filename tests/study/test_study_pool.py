"""Jobs in processes: order, limit, failure and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastgrow.errors import ConfigError, FastgrowError
from fastgrow.study.pool import Job, run_jobs

# Appends "begin" and "end" lines to a file that all jobs share, and sleeps in between.
TRACE = """
import sys, time
label, file, seconds = sys.argv[1:]
def note(what):
    with open(file, "a") as f: f.write(f"{what} {label}\\n")
note("begin"); time.sleep(float(seconds)); note("end")
"""


def traced(label: str, folder: Path, seconds: float = 0.3, needs: tuple[str, ...] = ()) -> Job:
    command = [sys.executable, "-c", TRACE, label, str(folder / "trace"), str(seconds)]
    return Job(label, command, folder / f"{label}.log", frozenset(needs))


def trace(folder: Path) -> list[str]:
    return (folder / "trace").read_text().splitlines()


def test_a_job_waits_for_what_it_needs(tmp_path: Path) -> None:
    reported: list[str] = []
    jobs = [traced("c", tmp_path, needs=("a", "b")), traced("a", tmp_path), traced("b", tmp_path)]
    run_jobs(jobs, 3, reported.append)
    lines = trace(tmp_path)
    assert lines[-2:] == ["begin c", "end c"]
    assert reported[-1] == "3/3 c"


def test_no_more_run_at_once_than_allowed(tmp_path: Path) -> None:
    run_jobs([traced(name, tmp_path, 0.1) for name in "abc"], 1, lambda _: None)
    assert trace(tmp_path) == [f"{what} {name}" for name in "abc" for what in ("begin", "end")]


def test_two_do_run_at_once(tmp_path: Path) -> None:
    # Each waits until the other has started: one after the other, they would never end.
    meet = """
import sys, time, pathlib
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
while not other.exists(): time.sleep(0.01)
"""
    paths = [str(tmp_path / name) for name in "ab"]
    jobs = [
        Job(name, [sys.executable, "-c", meet, *order], tmp_path / f"{name}.log")
        for name, order in (("a", paths), ("b", paths[::-1]))
    ]
    run_jobs(jobs, 2, lambda _: None)


def test_a_failure_is_told_with_its_last_line_and_stops_the_rest(tmp_path: Path) -> None:
    program = "import sys; print('first'); sys.exit('error: no luck')"
    bad = Job("bad", [sys.executable, "-c", program], tmp_path / "bad.log")
    with pytest.raises(FastgrowError, match=r"^bad: error: no luck \(log: .*bad\.log\)$"):
        run_jobs([bad, traced("next", tmp_path, needs=("bad",))], 1, lambda _: None)
    assert not (tmp_path / "trace").exists()


# Signals that it is ready, and writes the number of signals received soon after the first one.
SAVES = """
import pathlib, signal, sys, time
count = 0
def stop(*_):
    global count
    count += 1
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
saved = pathlib.Path(sys.argv[1])
saved.with_suffix(".ready").touch()
while not count: time.sleep(0.01)
time.sleep(1)
saved.write_text(str(count))
sys.exit(130)
"""

POOL = """
import sys
from pathlib import Path
from fastgrow.errors import Interrupted
from fastgrow.study.pool import Job, run_jobs
program, *paths = sys.argv[1:]
jobs = [Job(p, [sys.executable, "-c", program, p], Path(p).with_suffix(".log")) for p in paths]
try:
    run_jobs(jobs, 2, print)
except Interrupted as error:
    print(error)
"""


def test_ctrl_c_reaches_each_job_once_and_is_waited_for(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.saved" for name in "abc"]
    # In a new session, because Ctrl-C in a terminal reaches the whole process group.
    pool = subprocess.Popen(
        [sys.executable, "-c", POOL, SAVES, *map(str, paths)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not all(path.with_suffix(".ready").exists() for path in paths[:2]):
        assert pool.poll() is None
        time.sleep(0.01)
    os.killpg(pool.pid, signal.SIGINT)
    said, _ = pool.communicate()
    assert "3 of 3 jobs unfinished" in said
    assert "run the same command again to resume" in said
    assert [path.read_text() for path in paths[:2]] == ["1", "1"]
    assert not paths[2].with_suffix(".ready").exists()


def test_it_takes_at_least_one_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        run_jobs([traced("a", tmp_path)], 0, lambda _: None)
