"""Choosing the implementation of an operation.

An `Operation` lists implementations of one formula, those first that are preferred. Each is named
for what it is:

- `eager`: plain PyTorch, every device; the truth that tests compare with;
- `triton`: the kernels of `fastgrow.kernels`;
- `native`: the C++/CUDA extension;
- `sdpa`, `cublas`, `blas`, `aten`, …: a library's routines. `vendor` is another name for one that
  is nothing but a library's call;
- `chunked`: library products on a part of the rows at a time.

All take one record, the operation's call. `can_serve(call)` says from devices, dtypes and shapes
whether an implementation can serve it, and `pays(call)` whether it should be picked unasked.
Neither reads the content of a tensor. `triton_kernels` makes an implementation that asks first what
all Triton kernels have in common there.

The most local override wins: the `impl=` argument, then the innermost `use_impl(…)`, then the
environment variable FASTGROW_IMPL, then the operation's own order of preference. An override is
either an implementation's name, meant for every operation that has one of that name, or a list such
as `attention=triton,mlp=eager`. One that cannot be met raises and says why; what the automatic
choice passed over is logged once at level INFO. Under torch.compile all of this happens while a
graph is traced, and again when `use_impl` changes. The environment is read when this module is
imported, and not again.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgrow._installed import is_there
from fastgrow.errors import ConfigError

ENVIRONMENT_VARIABLE = "FASTGROW_IMPL"

# (yes or no, why)
Answer = tuple[bool, str]
# (operation, implementation) pairs; "*" stands for every operation that has the implementation.
Overrides = tuple[tuple[str, str], ...]

TRITON_INSTALLED = is_there("triton")
# Set before Triton is imported, or not at all: a process has either the interpreter or a compiler.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Looking it up at each call would be a third of a small call's time.
_environment = os.environ.get(ENVIRONMENT_VARIABLE)

log = logging.getLogger("fastgrow.ops")

OPERATIONS: dict[str, Operation] = {}


def _always(call: Any) -> Answer:
    return True, ""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Args:
        name: what it is.
        run: computes the operation from its call.
        can_serve: whether it may run; reasons complete the sentence "<name> cannot run: …".
        pays: whether the automatic choice should take it. Not asked of a forced choice.
        alias: another name that it can be asked for by.
    """

    name: str
    run: Callable[[Any], Any]
    can_serve: Callable[[Any], Answer] = _always
    pays: Callable[[Any], Answer] = _always
    alias: str = ""


@dataclass(frozen=True)
class Explanation:
    """Which implementation serves a call, and what was said of every other one.

    `active` is None where a forced choice cannot run; calling the operation would then raise.
    """

    operation: str
    active: str | None
    reason: str
    answers: dict[str, Answer]

    def __str__(self) -> str:
        lines = [f"{self.operation}: {self.active or 'none'} ({self.reason})"]
        lines += [
            f"  {name}: {'can run' if ok else 'cannot run'}{f' ({why})' if why else ''}"
            for name, (ok, why) in self.answers.items()
            if name != self.active
        ]
        return "\n".join(lines)


class Operation:
    """A formula with several implementations; calling it picks one and runs it.

    Args:
        name: the operation's name in `use_impl` and FASTGROW_IMPL.
        implementations: in the order in which the automatic choice asks them.
        example: `example(device)` makes a typical call on that device; `explain_all` asks the
            implementations about it. Tensors may be small: only metadata are read.
    """

    def __init__(
        self,
        name: str,
        implementations: Sequence[Implementation],
        example: Callable[[torch.device], Any] | None = None,
    ) -> None:
        self.name = name
        self.example = example
        self.implementations = {entry.name: entry for entry in implementations}
        OPERATIONS[name] = self

    def __call__(self, call: Any, impl: str | None = None) -> Any:
        entry, reason, passed_over = self._choose(call, impl)
        if passed_over and not torch.compiler.is_compiling():
            for name, why in passed_over:
                _log_once(self.name, name, why)
        if entry is None:
            raise ConfigError(reason)
        return entry.run(call)

    def explain(self, call: Any, impl: str | None = None) -> Explanation:
        """Say what this call would run and why; computes nothing."""
        answers = {n: e.can_serve(call) for n, e in self.implementations.items()}
        try:
            entry, reason, passed_over = self._choose(call, impl)
        except ConfigError as error:
            return Explanation(self.name, None, str(error), answers)
        why = "; ".join(f"not {name}: {said}" for name, said in passed_over)
        why = why or reason or "first in the order of preference"
        return Explanation(self.name, entry.name if entry else None, why, answers)

    def _choose(
        self, call: Any, impl: str | None
    ) -> tuple[Implementation | None, str, list[tuple[str, str]]]:
        """The implementation that serves, or None; why; and those passed over, with the reasons."""
        passed_over: list[tuple[str, str]] = []
        forced, source = self._override(impl)
        if forced is None:
            for entry in self.implementations.values():
                ok, reason = entry.can_serve(call)
                if ok:
                    ok, reason = entry.pays(call)
                if ok:
                    return entry, reason, passed_over
                passed_over.append((entry.name, reason))
            return None, f"{self.name}: no implementation can run this call", passed_over
        asked = self.find(forced)
        if asked is None:
            problem = f"; there are only {', '.join(self.implementations)}"
        else:
            ok, reason = asked.can_serve(call)
            if ok:
                return asked, f"asked for by {source}", passed_over
            problem = f", which cannot run: {reason}"
        return None, f"{self.name}: {source} asks for {forced!r}{problem}", passed_over

    def find(self, name: str) -> Implementation | None:
        """The implementation with a name or alias."""
        for entry in self.implementations.values():
            if name and name in (entry.name, entry.alias):
                return entry
        return None

    def _override(self, impl: str | None) -> tuple[str | None, str]:
        """The name of the implementation asked for, or None, and who asked."""
        if impl is not None:
            return impl, "impl="
        overrides = _published if torch.compiler.is_compiling() else _OVERRIDES.get()
        found = self._named_by(overrides) if overrides else None
        if found is not None:
            return found, "use_impl"
        if _environment:
            overrides = parse_overrides(_environment, ENVIRONMENT_VARIABLE)
            return self._named_by(overrides), ENVIRONMENT_VARIABLE
        return None, "automatic"

    def _named_by(self, overrides: Overrides) -> str | None:
        blanket = None
        for operation, name in overrides:
            if operation == self.name:
                return name
            if operation == "*" and self.find(name):
                blanket = name
        return blanket


def parse_overrides(text: str, source: str) -> Overrides:
    """Read `eager` or `attention=triton,mlp=eager`.

    Raises:
        ConfigError: an operation or implementation of that name does not exist.
    """
    overrides = []
    for part in text.split(","):
        operation, separator, name = part.strip().rpartition("=")
        operation, name = operation.strip() if separator else "*", name.strip()
        if operation not in OPERATIONS and operation != "*":
            known = ", ".join(sorted(OPERATIONS))
            raise ConfigError(f"{source}: {operation!r} is not an operation; there are {known}")
        asked = OPERATIONS.values() if operation == "*" else [OPERATIONS[operation]]
        if not any(candidate.find(name) for candidate in asked):
            known = ", ".join(dict.fromkeys(n for o in asked for n in o.implementations))
            of = "" if operation == "*" else f" of {operation}"
            raise ConfigError(f"{source}: {name!r} is not an implementation{of}; there are {known}")
        overrides.append((operation, name))
    return tuple(overrides)


@contextlib.contextmanager
def use_impl(override: str) -> Iterator[None]:
    """Prefer implementations within a `with` block, in this thread or task only.

    Args:
        override: an implementation (`"eager"`), for every operation that has it, or a list for some
            operations (`"attention=triton,mlp=eager"`), which leaves the others as they were.

    Raises:
        ConfigError: an operation or implementation of that name does not exist.
    """
    overrides = parse_overrides(override, "use_impl")
    everything = any(operation == "*" for operation, _ in overrides)
    token = _OVERRIDES.set(overrides if everything else overrides + _OVERRIDES.get())
    _publish()
    try:
        yield
    finally:
        _OVERRIDES.reset(token)
        _publish()


def explain_all(device: torch.device | str) -> list[Explanation]:
    """What each operation would run on a typical call on `device`, and why."""
    return [
        operation.explain(operation.example(torch.device(device)))
        for operation in OPERATIONS.values()
        if operation.example is not None
    ]


_OVERRIDES: contextvars.ContextVar[Overrides] = contextvars.ContextVar("overrides", default=())
# torch.compile can neither read a ContextVar nor guard on one. It does guard on a module's global:
# a compiled graph follows the `use_impl` entered or left last in the process.
_published: Overrides = ()


def _publish() -> None:
    global _published
    _published = _OVERRIDES.get()


@functools.cache
def _log_once(operation: str, name: str, reason: str) -> None:
    log.info("%s: %s is not used: %s", operation, name, reason)


def triton_can_run(tensor: Tensor, dtype: torch.dtype | None = None) -> Answer:
    """May a kernel read this tensor, by device and dtype? `dtype` replaces the tensor's."""
    device = tensor.device
    kind = device.type
    if not TRITON_INSTALLED:
        return False, "triton is not installed"
    if kind == "cpu":
        if not INTERPRETED:
            return False, "the tensors are on the CPU and TRITON_INTERPRET=1 is not set"
    elif kind != "cuda":
        return False, f"it has no kernel for {kind} tensors"
    # While torch.compile traces it cannot ask.
    elif not (torch.compiler.is_compiling() or is_new_enough(device)):
        return False, "it needs a GPU of compute capability 8.0 or newer"
    if (dtype or tensor.dtype) not in TRITON_DTYPES:
        return False, f"it takes float32, bfloat16 or float16, not {dtype or tensor.dtype}"
    return True, ""


@functools.cache
def is_new_enough(device: torch.device) -> bool:
    """Of compute capability 8.0; True also for GPUs that are not there. Asking takes a while."""
    if not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def triton_pays_on(tensor: Tensor) -> Answer:
    """The interpreter is slower than any other implementation."""
    if tensor.device.type == "cpu":
        return False, "the interpreter is for tests"
    return True, ""


def triton_kernels(
    run: Callable[[Any], Any],
    can_serve: Callable[[Any], Answer] = _always,
    pays: Callable[[Any], Answer] = _always,
) -> Implementation:
    """The implementation by Triton kernels.

    Args:
        run: computes the operation from its call, whose first field is a tensor that the kernels
            read, or a list of them.
        can_serve: asked where `triton_can_run` says yes to that tensor.
        pays: asked where `triton_pays_on` says yes to it.
    """

    def kernels_can_serve(call: Any) -> Answer:
        first = call[0]
        answer = triton_can_run(first[0] if isinstance(first, list) else first)
        return can_serve(call) if answer[0] else answer

    def kernels_pay(call: Any) -> Answer:
        first = call[0]
        answer = triton_pays_on(first[0] if isinstance(first, list) else first)
        return pays(call) if answer[0] else answer

    return Implementation("triton", run, kernels_can_serve, kernels_pay)
