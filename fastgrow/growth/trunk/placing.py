"""Where a stage's rows go: what fits within the limit, and of that what pays most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastgrow.growth.trunk.choice import StageLoad, Verdict, weigh
from fastgrow.growth.trunk.costs import Costs


@dataclass(frozen=True)
class Room:
    """What the rows of a stage need, and what is there.

    Attributes:
        need: bytes of the stage's rows.
        limit: the user's.
        free: bytes that a place has left, by its name.
        old_place: where rows of an earlier stage lie; None without.
        old_bytes: their size.
        same_windows: whether they are of just the windows needed now.
        known: share of the needed rows that they can be advanced to.
        n_known: how many blocks deep they are.
    """

    need: int
    limit: int
    free: Callable[[str], int]
    old_place: str | None = None
    old_bytes: int = 0
    same_windows: bool = False
    known: float = 0.0
    n_known: int = 0

    def in_place(self, place: str) -> bool:
        """Whether old rows are overwritten by the new ones: a half-done file could not be told."""
        return place == self.old_place and place != "disk" and self.same_windows

    def must_drop(self, place: str) -> bool:
        """Whether the old rows have to go first, because both do not fit."""
        return not self.in_place(place) and self.need + self.old_bytes > self.limit

    def lacks(self, place: str) -> str:
        """Why the rows do not fit there; empty where they do."""
        if self.need > self.limit:
            return f"keeping it takes {megabytes(self.need)}, the limit is {megabytes(self.limit)}"
        free = self.free(place)
        if self.need > free and not self.in_place(place):
            return f"keeping it takes {megabytes(self.need)}, {place} has {megabytes(free)} to give"
        return ""


@dataclass(frozen=True)
class Plan:
    """The decision.

    Attributes:
        place: where rows are kept; None recomputes them.
        reason: in words.
        drop_old: whether the old rows go before the new ones are made.
        verdict: the seconds that were compared; None where nothing had to be measured.
    """

    place: str | None
    reason: str
    drop_old: bool = False
    verdict: Verdict | None = None


def choose(
    cache: str,
    device: torch.device,
    loads: Sequence[StageLoad],
    room: Room,
    costs: Callable[[], Costs],
) -> Plan:
    """Decide as a run's settings say.

    Args:
        cache: a place, or "auto".
        device: of the model.
        loads: of the stage and those after it.
        room: for its rows.
        costs: measures them; called for "auto" alone.
    """
    if cache == "auto":
        return cheapest(loads, costs(), room)
    return asked_for("ram" if cache == "device" and device.type == "cpu" else cache, room)


def asked_for(place: str, room: Room) -> Plan:
    """The place that the user, or the run before its interruption, has chosen."""
    lacks = room.lacks(place)
    if lacks:
        return Plan(None, lacks)
    return Plan(place, "as asked", room.must_drop(place))


def cheapest(loads: Sequence[StageLoad], costs: Costs, room: Room) -> Plan:
    """The place where keeping the rows saves most; none where it saves nothing."""
    plans, reasons = [], []
    for place in costs.places:
        lacks = room.lacks(place)
        if lacks:
            reasons.append(lacks)
            continue
        drop = room.must_drop(place)
        verdict = weigh(loads, costs, place, 0.0 if drop else room.known, room.n_known)
        plans.append((verdict.cached, Plan(place, _seconds(verdict), drop, verdict)))
    if not plans:
        return Plan(None, "; ".join(dict.fromkeys(reasons)) or "there is no place to keep it")
    best = min(plans, key=lambda plan: plan[0])[1]
    assert best.verdict is not None
    if best.verdict.pays:
        return best
    return Plan(None, f"keeping it does not pay: {_why(loads)}; {best.reason}", False, best.verdict)


def _why(loads: Sequence[StageLoad]) -> str:
    now = loads[0]
    passes = now.reads / now.rows
    again = f"this stage reads each of its windows {passes:.3g} times"
    if len(loads) == 1:
        return f"{again} and is the last"
    share = f"{now.share:.0%} of them" if now.share < 1 else "all"
    return f"{again}, and the next finds {share} again"


def _seconds(verdict: Verdict) -> str:
    return (
        f"{verdict.cached:.3g} s for the trunk over the stages that are left, "
        f"{verdict.recomputed:.3g} s without"
    )


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
