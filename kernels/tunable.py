"""Kernels with configurations to choose from (benchmarks/tuning.py and autotune.py choose).

A module `<operation>_tuning.py` has a function `tunables(capability)` that lists one `Tunable` for
each kernel and each key that its launcher passes to `tuned.measured`.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from fastgrow.kernels.compile_offline import Launch, code, compile_launch, recorded, shared_limit
from fastgrow.kernels.digest import digest
from fastgrow.kernels.tuned import assumed, tuning_modules

C = TypeVar("C")


@dataclass(frozen=True)
class Tunable(Generic[C]):
    """A kernel under one key.

    Args:
        kernel: name of the kernel in the table, such as `attention_forward`.
        bucket: the launcher's key, such as `bf16/D=32/T=1024`.
        default: configuration that the launcher uses without a table.
        others: further configurations of the same class, a frozen dataclass of integers.
        function: name of the Triton function that is compiled with the configuration.
        prepare: function of a device that makes inputs on `meta` or `cuda` (the current GPU) and
            returns `launch(configuration)`, which launches the kernel once and returns all results
            that it writes for its caller. The results are compared with those of other
            configurations and overwritten. All configurations share the inputs, which may need
            gigabytes.
        capability: compute capability, 90 for 9.0.
        rank: priority if time is short, the lowest first; 0 is for the headline shapes of
            benchmarks/cases.
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
        return [asdict(c) for c in different]  # type: ignore[call-overload]

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the source of `function`, which a table's entry records."""
        launches = (launch for c in self.candidates for launch in self.launches(c))
        return digest(next(x.kernel for x in launches if x.name == self.function))

    def launches(self, configuration: dict[str, int] | None) -> list[Launch]:
        """Return the launches of a configuration; for None, those that make the inputs."""
        launch, preparing = self._on_meta
        if configuration is None:
            return preparing
        with assumed(capability=self.capability):
            return recorded(functools.partial(launch, type(self.default)(**configuration)))

    def codes(self, configuration: dict[str, int] | None) -> list[str]:
        """Return the distinct `compile_offline.code`s of `launches`."""
        return list(dict.fromkeys(code(x, self.capability) for x in self.launches(configuration)))

    def build(
        self, configuration: dict[str, int] | None, only: str | None = None
    ) -> dict[str, int]:
        """Compile `launches` without running them.

        Args:
            only: compile only the launch with this code.

        Returns:
            The largest `spills` (bytes per thread), `shared` (bytes) and `registers` (per thread).

        Raises:
            ValueError: a launch needs more shared memory than a program may use, or none has the
                code.
        """
        launches = self.launches(configuration)
        if only is not None:
            launches = [x for x in launches if code(x, self.capability) == only][:1]
            if not launches:
                raise ValueError(f"{self.kernel} {self.bucket} has no launch with this code here")
        found = [compile_launch(launch, self.capability) for launch in launches]
        most = {
            name: max((getattr(binary, name) for binary in found), default=0)
            for name in ("spills", "shared", "registers")
        }
        limit = shared_limit(self.capability)
        if most["shared"] > limit:
            raise ValueError(f"needs {most['shared']} bytes of shared memory, allowed {limit}")
        return most

    def launcher(self) -> Callable[[dict[str, int]], object]:
        """Make random inputs on the current GPU and return a function that launches once.

        The function launches a configuration and returns the launch's results.
        """
        launch = self.prepare("cuda")
        return lambda configuration: launch(type(self.default)(**configuration))

    @functools.cached_property
    def _on_meta(self) -> tuple[Callable[[C], object], list[Launch]]:
        """Result of `prepare` on `meta`, and the launches that make the inputs."""
        made: list[Callable[[C], object]] = []
        with assumed(capability=self.capability):
            launches = recorded(lambda: made.append(self.prepare("meta")))
        return made[0], launches


def with_stages(
    kind: Callable[..., C], shapes: Iterable[tuple[int, ...]], stages: Iterable[int]
) -> list[C]:
    """Combine every shape with every number of stages, the last field of the class `kind`."""
    return [kind(*shape, n) for shape, n in itertools.product(shapes, stages)]


def all_tunables(capability: int) -> list[Tunable[Any]]:
    """Return the tunables of all tuning modules."""
    modules = [importlib.import_module(name) for name in tuning_modules()]
    return [tunable for module in modules for tunable in module.tunables(capability)]


def digests(capability: int) -> dict[str, str]:
    """Return the digest of each kernel's source, by its name in a table."""
    of_kernels = {tunable.kernel: tunable for tunable in reversed(all_tunables(capability))}
    return {kernel: tunable.digest for kernel, tunable in of_kernels.items()}
