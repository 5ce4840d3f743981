"""A kernel with configurations to choose from (benchmarks/tuning.py and autotune.py choose).

A module `<operation>_tuning.py` has a function `tunables(capability)` that lists one `Tunable` for
each kernel and each key under which its launcher asks `tuned.measured`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastgrow.kernels.ahead import usage

C = TypeVar("C")


@dataclass(frozen=True)
class Tunable(Generic[C]):
    """A kernel under one key.

    Args:
        kernel: its name in the table, such as `attention_forward`.
        bucket: the launcher's own key, such as `bf16/D=32/T=1024`.
        default: what the launcher takes without a table.
        others: further configurations of the same kind, a frozen dataclass of integers.
        function: name of the Triton function that is compiled with the configuration.
        call: `call(configuration, device)` makes inputs on `meta` or `cuda` (the current GPU), and
            returns what launches the kernel once.
        capability: 90 for compute capability 9.0.
        rank: where time is short, lower ones come first.
        code: the same for tunables whose launches compile to the same code, as those that differ
            in a length alone do; without, the bucket.
    """

    kernel: str
    bucket: str
    default: C
    others: Sequence[C]
    function: str
    call: Callable[[C, str], Callable[[], object]]
    capability: int
    rank: int = 1
    code: str = ""

    @property
    def candidates(self) -> list[dict[str, int]]:
        """All configurations, the default first."""
        different = dict.fromkeys([self.default, *self.others])
        return [dataclasses.asdict(c) for c in different]  # type: ignore[call-overload]

    def build(self, configuration: dict[str, int]) -> dict[str, int]:
        """Compile without launching; `spills` are bytes of a thread.

        Raises:
            ValueError: it needs more shared memory than a program may use.
        """
        # Launches that only make the inputs are recorded too, and left out by name.
        call = self._with(configuration)
        return usage(lambda: call("meta")(), self.function, self.capability)

    def launcher(self, configuration: dict[str, int]) -> Callable[[], object]:
        """Random inputs on the current GPU; each call launches once."""
        return self._with(configuration)("cuda")

    def _with(self, configuration: dict[str, int]) -> Callable[[str], Callable[[], object]]:
        chosen = type(self.default)(**configuration)
        return lambda device: self.call(chosen, device)


def with_stages(
    kind: Callable[..., C], shapes: Iterable[tuple[int, ...]], stages: Iterable[int]
) -> list[C]:
    """Every shape with every number of stages, which is the last field of its kind."""
    return [kind(*shape, n) for shape, n in itertools.product(shapes, stages)]
