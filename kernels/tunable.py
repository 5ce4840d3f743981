"""A kernel with configurations to choose from (benchmarks/tuning.py and autotune.py choose).

A module `<operation>_tuning.py` has a function `tunables(capability)` that lists one `Tunable` for
each kernel and each key under which its launcher asks `tuned.measured`.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastgrow.kernels.ahead import launch_of, specialization, usage

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
        prepare: `prepare(device)` makes inputs on `meta` or `cuda` (the current GPU), and returns
            `launch(configuration)`, which launches the kernel once. All configurations share the
            inputs, which may take gigabytes.
        capability: 90 for compute capability 9.0.
        rank: where time is short, lower ones come first.
    """

    kernel: str
    bucket: str
    default: C
    others: Sequence[C]
    function: str
    prepare: Callable[[str], Callable[[C], object]]
    capability: int
    rank: int = 1

    @property
    def candidates(self) -> list[dict[str, int]]:
        """All configurations, the default first."""
        different = dict.fromkeys([self.default, *self.others])
        return [dataclasses.asdict(c) for c in different]  # type: ignore[call-overload]

    @property
    def code(self) -> str:
        """The same for tunables of a kernel that compile alike, as other lengths often do."""
        launch = launch_of(self._on_meta(self.default), self.function)
        return str(specialization(launch))

    def build(self, configuration: dict[str, int]) -> dict[str, int]:
        """Compile without launching; `spills` are bytes of a thread.

        Raises:
            ValueError: it needs more shared memory than a program may use.
        """
        return usage(self._on_meta(self._kind(configuration)), self.function, self.capability)

    def launcher(self) -> Callable[[dict[str, int]], object]:
        """Random inputs on the current GPU; each call launches a configuration once."""
        launch = self.prepare("cuda")
        return lambda configuration: launch(self._kind(configuration))

    def _kind(self, configuration: dict[str, int]) -> C:
        return type(self.default)(**configuration)

    def _on_meta(self, chosen: C) -> Callable[[], object]:
        # Making the inputs is a part of it, since that may launch too.
        return lambda: self.prepare("meta")(chosen)


def with_stages(
    kind: Callable[..., C], shapes: Iterable[tuple[int, ...]], stages: Iterable[int]
) -> list[C]:
    """Every shape with every number of stages, which is the last field of its kind."""
    return [kind(*shape, n) for shape, n in itertools.product(shapes, stages)]


def tuning_modules() -> list[str]:
    """Names of the modules that have something to tune."""
    files = Path(__file__).parent.glob("*_tuning.py")
    return sorted(f"fastgrow.kernels.{file.stem}" for file in files)


def all_tunables(capability: int) -> list[Tunable[Any]]:
    """What the modules list."""
    modules = [importlib.import_module(name) for name in tuning_modules()]
    return [tunable for module in modules for tunable in module.tunables(capability)]
