"""The report of `patch` and `unpatch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastgrow._terminal import table_text

State = Literal["swapped", "already swapped", "skipped", "restored"]


@dataclass(frozen=True)
class Treated:
    """Modules of one class with the same result.

    Args:
        part: their role in the model: `attention`, `norm`, `mlp`, `loss`, `rotary` or `model`.
        layer: name of their class.
        state: what `patch` or `unpatch` did.
        note: the operation that they use now, or the reason why they were skipped.
        names: their names in the model.
    """

    part: str
    layer: str
    state: State
    note: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class PatchReport:
    """What `patch` or `unpatch` did to each part of a model; `str()` returns a table.

    Args:
        model: name of the model's class.
        treated: results in the order of the model's modules.
    """

    model: str
    treated: tuple[Treated, ...]

    @property
    def swapped(self) -> int:
        """Number of modules that this call replaced."""
        return self._count("swapped")

    @property
    def skipped(self) -> int:
        """Number of modules that were skipped."""
        return self._count("skipped")

    @property
    def restored(self) -> int:
        """Number of modules that `unpatch` restored."""
        return self._count("restored")

    def __str__(self) -> str:
        states: dict[str, int] = {}
        for one in self.treated:
            states[one.state] = states.get(one.state, 0) + len(one.names)
        summary = ", ".join(f"{count} {state}" for state, count in states.items())
        title = f"{self.model}: {summary or 'nothing to do'}"
        rows = [(t.part, t.layer, str(len(t.names)), t.state, t.note) for t in self.treated]
        header = ("part", "class", "modules", "", "")
        return f"{title}\n{table_text(header, rows, numbers=False)}" if rows else title

    def _count(self, state: State) -> int:
        return sum(len(one.names) for one in self.treated if one.state == state)
