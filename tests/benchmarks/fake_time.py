"""Fake clocks."""

from __future__ import annotations

from collections.abc import Callable


class FakeClock:
    """A clock for which every call takes the time that `cost` returns for its result."""

    cache_bytes = 1024

    def __init__(self, cost: Callable[[object], float] = lambda result: 1e-3) -> None:
        self.cost = cost

    def seconds(self, run: Callable[[], object], *others: object) -> float:
        return self.cost(run())

    def covered(self, name: str) -> int | None:
        return None


class Ticking:
    """A time that advances by `step` whenever it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.time, self.step = 0.0, step

    def __call__(self) -> float:
        self.time += self.step
        return self.time
