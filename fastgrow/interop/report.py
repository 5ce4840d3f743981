"""What `patch` and `unpatch` did to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastgrow._terminal import table_text

State = Literal["swapped", "already swapped", "skipped", "restored"]


@dataclass(frozen=True)
class Treated:
    """Modules of one class that were treated alike.

    Args:
        part: what they are in the model: `attention`, `norm`, `mlp`, `loss`, `rotary` or `model`.
        layer: their class.
        state: what was done.
        note: which operation they run on now, or why they were left alone.
        names: their names in the model.
    """

    part: str
    layer: str
    state: State
    note: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class PatchReport:
    """What was done to each part of a model and why; `str()` of it is a table.

    Args:
        model: the model's class.
        treated: in the order of the model's layers.
    """

    model: str
    treated: tuple[Treated, ...]

    @property
    def swapped(self) -> int:
        """Modules that run on our operations since this call."""
        return self._count("swapped")

    @property
    def skipped(self) -> int:
        """Modules that might have been swapped and were not."""
        return self._count("skipped")

    @property
    def restored(self) -> int:
        """Modules that `unpatch` gave their own forward back."""
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
