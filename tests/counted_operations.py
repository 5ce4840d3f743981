"""Count the torch operations that a call runs, as a measure of its cost without a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def operations(run: Callable[[], object]) -> Counter[str]:
    """Count the operations that a call dispatches by name, including those of backward passes."""
    with _Counting() as counting:
        run()
    return counting.counts
