"""Parts: what is done stays done, also after a kill, and time is counted over all runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_time import Ticking

from benchmarks.parts import Part, run_parts

ROOT = Path(__file__).resolve().parents[2]
KEY = {"device": "Fake GPU", "commit": "abc"}


class Work:
    """Parts that write down that they ran, and take `cost` seconds each."""

    def __init__(self, cost: float = 10.0) -> None:
        self.clock, self.cost = Ticking(), cost
        self.ran: list[str] = []
        self.given: dict[str, float] = {}
        self.failing: set[str] = set()

    def part(self, name: str, seconds: float = 100.0, share: float = 0.0) -> Part:
        def run(limit: float) -> dict[str, str]:
            self.ran.append(name)
            self.given[name] = limit
            self.clock.time += self.cost
            if name in self.failing:
                raise RuntimeError("the device fell off\nat line 3")
            return {"of": name}

        return Part(name, run, seconds, share)

    def run(self, folder: Path, names: str = "abc", budget: float = 600.0, key=KEY):  # type: ignore[no-untyped-def]
        self.ran.clear()
        parts = [self.part(name) for name in names]
        return run_parts(parts, folder, key, budget, now=self.clock, say=lambda text: None)


@pytest.fixture
def work() -> Work:
    return Work()


def test_parts_run_in_order_and_once(work: Work, tmp_path: Path) -> None:
    first = work.run(tmp_path)
    assert work.ran == ["a", "b", "c"]
    assert [done.content for done in first] == [{"of": name} for name in "abc"]
    assert work.run(tmp_path) == first
    assert work.ran == []


def test_a_run_goes_on_after_being_killed_between_parts(work: Work, tmp_path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from benchmarks.parts import Part, run_parts

def work(name):
    def run(seconds):
        if name == "b":
            os.kill(os.getpid(), 9)
        return {{"of": name}}
    return Part(name, run, 100)

run_parts([work(n) for n in "abc"], Path(sys.argv[1]), {KEY!r}, 600)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]
    done = work.run(tmp_path)
    assert work.ran == ["b", "c"]
    assert [part.state for part in done] == ["done"] * 3


def test_another_device_or_commit_starts_over(work: Work, tmp_path: Path) -> None:
    work.run(tmp_path)
    work.run(tmp_path, key={**KEY, "commit": "def"})
    assert work.ran == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["", "{", '{"schema": 99}', "[]"])
def test_a_damaged_file_is_done_again(work: Work, tmp_path: Path, content: str) -> None:
    work.run(tmp_path)
    (tmp_path / "b.json").write_text(content)
    work.run(tmp_path)
    assert work.ran == ["b"]


def test_a_failed_part_stops_no_other_and_is_tried_again(work: Work, tmp_path: Path) -> None:
    work.failing = {"b"}
    done = {part.name: part for part in work.run(tmp_path)}
    assert work.ran == ["a", "b", "c"]
    assert done["b"].state == "failed: RuntimeError: the device fell off"
    assert done["b"].content is None
    work.failing = set()
    work.run(tmp_path)
    assert work.ran == ["b"]


def test_the_budget_holds_over_all_runs(work: Work, tmp_path: Path) -> None:
    done = work.run(tmp_path, budget=25.0)
    assert work.ran == ["a", "b", "c"]
    assert work.given == {"a": 25.0, "b": 15.0, "c": 5.0}
    again = work.run(tmp_path, "abcd", budget=25.0)
    assert work.ran == []
    assert again[:3] == done
    assert again[3].state == "not run: the 25 s are used up"
    assert not (tmp_path / "d.json").exists()


def test_a_part_is_given_no_more_than_its_own_time(work: Work, tmp_path: Path) -> None:
    part = work.part("a", seconds=7.0)
    run_parts([part], tmp_path, KEY, 600, now=work.clock, say=lambda text: None)
    assert work.given == {"a": 7.0}


def test_shares_are_of_the_time_that_is_left(work: Work, tmp_path: Path) -> None:
    """One that takes too long costs those after it alike; one that is quick leaves them more."""

    def run(budget: float) -> None:
        shares = {"a": 2.0, "b": 1.0, "c": 1.0}
        parts = [work.part(name, 600.0, share) for name, share in shares.items()]
        run_parts(parts, tmp_path, KEY, budget, now=work.clock, say=lambda text: None)

    work.failing = {"b"}
    run(100.0)
    assert work.given == {"a": 50.0, "b": 45.0, "c": 80.0}
    work.failing = set()
    work.given.clear()
    # The time of what failed is not counted any more; what is left is b's alone.
    run(100.0)
    assert work.given == {"b": 80.0}


def test_what_was_not_reached_is_done_by_a_run_that_is_given_more(
    work: Work, tmp_path: Path
) -> None:
    assert work.run(tmp_path, budget=20.0)[2].state == "not run: the 20 s are used up"
    assert [part.state for part in work.run(tmp_path, budget=40.0)] == ["done"] * 3
    assert work.ran == ["c"]


def test_files_are_json_with_key_and_seconds(work: Work, tmp_path: Path) -> None:
    work.run(tmp_path)
    tree = json.loads((tmp_path / "a.json").read_text())
    assert tree == {
        "schema": 1, "key": KEY, "state": "done", "seconds": 10.0, "content": {"of": "a"}
    }  # fmt: skip
