"""Work in parts that survives being killed: what is done is on disk and not done again.

Every part writes one file when it ends. A second run over the same folder takes the files of parts
done under the same key (device, versions, commit) and runs the others. The seconds that parts took
in earlier runs count against the budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrow import _files
from fastgrow.errors import CheckpointError

SCHEMA = 1


@dataclass(frozen=True)
class Part:
    """A piece of work.

    Args:
        name: its file's name.
        run: `run(seconds)` returns JSON values, and is asked to end within so many seconds.
        seconds: the most that it is given.
        share: of the time that is left when its turn comes, in relation to the shares of the parts
            after it; 0 for a part that may take all of its seconds.
    """

    name: str
    run: Callable[[float], Any]
    seconds: float = math.inf
    share: float = 0.0


@dataclass(frozen=True)
class Done:
    """What became of a part: `state` is `done`, or says why there is no content."""

    name: str
    state: str
    seconds: float
    content: Any = None

    @property
    def is_done(self) -> bool:
        return self.state == "done"


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    key: Mapping[str, Any],
    budget: float,
    *,
    now: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> list[Done]:
    """Run what is not done yet, in order, within `budget` seconds for all runs together.

    A part that raises is recorded as failed, does not stop the others, and is tried again by the
    next run.
    """
    key = dict(key)
    earlier = {part.name: _read(folder / f"{part.name}.json", key) for part in parts}
    spent = sum(done.seconds for done in earlier.values() if done is not None and _is_done(done))
    results = []
    waiting = sum(part.share for part in parts if not _is_done(earlier[part.name]))
    for part in parts:
        found = earlier[part.name]
        if found is not None and _is_done(found):
            say(f"{part.name}: done before, in {found.seconds:.0f} s")
            results.append(found)
            continue
        left = budget - spent
        limit = min(part.seconds, left * part.share / waiting if part.share else left)
        waiting -= part.share
        if left < 1:
            results.append(Done(part.name, f"not run: the {budget:.0f} s are used up", 0.0))
            say(f"{part.name}: {results[-1].state}")
            continue
        start = now()
        state, content = "done", None
        try:
            content = part.run(limit)
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            state = f"failed: {type(error).__name__}: {first_line}"
        done = Done(part.name, state, now() - start, content)
        spent += done.seconds
        _write(folder / f"{part.name}.json", key, done)
        say(f"{part.name}: {state}, {done.seconds:.0f} s")
        results.append(done)
    return results


def _is_done(found: Done | None) -> bool:
    return found is not None and found.is_done


def _read(path: Path, key: Mapping[str, Any]) -> Done | None:
    """What a file says; None where there is none, or it is damaged or of another key."""
    try:
        tree = _files.read_json(path)
    except CheckpointError:
        return None
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA or tree.get("key") != key:
        return None
    return Done(path.stem, tree["state"], tree["seconds"], tree["content"])


def _write(path: Path, key: Mapping[str, Any], done: Done) -> None:
    tree = {"schema": SCHEMA, "key": key, "state": done.state, "seconds": round(done.seconds, 2)}
    _files.write_json(path, {**tree, "content": done.content})
