"""Choose the implementation of an operation.

An `Operation` lists the implementations of one formula in order of preference. Their names are:

- `eager`: plain PyTorch on every device; the reference that tests compare with;
- `triton`: the kernels of `fastgrow.kernels`;
- `native`: the C++/CUDA extension;
- `sdpa`, `cublas`, `blas`, `aten`, …: a library's routines. `vendor` is an alias of an
  implementation that only calls a library;
- `chunked`: library matrix products on a part of the rows at a time.

All implementations of an operation take the same record, the call. `can_serve(call)` returns
whether an implementation supports the call's devices, dtypes and shapes, and `pays(call)` whether
the automatic choice should use it. Neither reads the values of a tensor. `triton_kernels` makes an
implementation that first checks the requirements that all Triton kernels have in common.

The precedence is: the `impl=` argument, then the innermost `use_impl(…)`, then the environment
variable FASTGROW_IMPL, then the operation's order of preference. An override is either the name of
an implementation, which applies to every operation that has an implementation of that name, or a
list such as `attention=triton,mlp=eager`. An override that cannot run raises an error with the
reason; implementations that the automatic choice skips are logged once at level INFO. Under
torch.compile the choice is made while a graph is traced, and again when `use_impl` changes. The
environment variable is read once, when this module is imported.
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

# (yes or no, the reason)
Answer = tuple[bool, str]
# (operation, implementation) pairs; "*" means every operation that has the implementation.
Overrides = tuple[tuple[str, str], ...]

TRITON_INSTALLED = is_there("triton")
# Triton reads this variable when it is imported: a process uses either the interpreter or the
# compiler.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Reading it at each call would take a third of a small call's time.
_environment = os.environ.get(ENVIRONMENT_VARIABLE)

log = logging.getLogger("fastgrow.ops")

OPERATIONS: dict[str, Operation] = {}
"""All operations by name."""


def _always(call: Any) -> Answer:
    return True, ""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Args:
        name: name of the implementation in `impl=`, `use_impl` and FASTGROW_IMPL.
        run: computes the operation from its call.
        can_serve: whether it supports a call; the reason completes "<name> cannot run: …".
        pays: whether the automatic choice should use it. Not called if the user has forced an
            implementation.
        alias: another name that it can be requested by.
    """

    name: str
    run: Callable[[Any], Any]
    can_serve: Callable[[Any], Answer] = _always
    pays: Callable[[Any], Answer] = _always
    alias: str = ""


@dataclass(frozen=True)
class Explanation:
    """The implementation that a call uses, and whether each implementation can run.

    `active` is None if a forced implementation cannot run; calling the operation would then raise.
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
    """A formula with several implementations; calling it chooses one and runs it.

    Args:
        name: the operation's name in `use_impl` and FASTGROW_IMPL.
        implementations: in the order in which the automatic choice tries them.
        example: `example(device)` makes a typical call on that device, which `explain_all` passes
            to the implementations. Its tensors may be small: only metadata are read.
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
        entry, reason, skipped = self._choose(call, impl)
        if skipped and not torch.compiler.is_compiling():
            for name, why in skipped:
                _log_once(self.name, name, why)
        if entry is None:
            raise ConfigError(reason)
        return entry.run(call)

    def explain(self, call: Any, impl: str | None = None) -> Explanation:
        """Return which implementation this call would use and why, without running it."""
        answers = {n: e.can_serve(call) for n, e in self.implementations.items()}
        try:
            entry, reason, skipped = self._choose(call, impl)
        except ConfigError as error:
            return Explanation(self.name, None, str(error), answers)
        why = "; ".join(f"not {name}: {reason}" for name, reason in skipped)
        why = why or reason or "first in the order of preference"
        return Explanation(self.name, entry.name if entry else None, why, answers)

    def _choose(
        self, call: Any, impl: str | None
    ) -> tuple[Implementation | None, str, list[tuple[str, str]]]:
        """Return the implementation or None, the reason, and (name, reason) of those skipped."""
        skipped: list[tuple[str, str]] = []
        forced, source = self._override(impl)
        if forced is None:
            for entry in self.implementations.values():
                ok, reason = entry.can_serve(call)
                if ok:
                    ok, reason = entry.pays(call)
                if ok:
                    return entry, reason, skipped
                skipped.append((entry.name, reason))
            return None, f"{self.name}: no implementation can run this call", skipped
        requested = self.find(forced)
        if requested is None:
            problem = f"; available are {', '.join(self.implementations)}"
        else:
            ok, reason = requested.can_serve(call)
            if ok:
                return requested, f"requested by {source}", skipped
            problem = f", which cannot run: {reason}"
        return None, f"{self.name}: {source} requests {forced!r}{problem}", skipped

    def find(self, name: str) -> Implementation | None:
        """Return the implementation of this name or alias, or None."""
        for entry in self.implementations.values():
            if name and name in (entry.name, entry.alias):
                return entry
        return None

    def _override(self, impl: str | None) -> tuple[str | None, str]:
        """Return the name of the requested implementation or None, and where it was requested."""
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
    """Parse an override such as `eager` or `attention=triton,mlp=eager`.

    Raises:
        ConfigError: an operation or implementation of that name does not exist.
    """
    overrides = []
    for part in text.split(","):
        operation, separator, name = part.strip().rpartition("=")
        operation, name = operation.strip() if separator else "*", name.strip()
        if operation not in OPERATIONS and operation != "*":
            known = ", ".join(sorted(OPERATIONS))
            raise ConfigError(f"{source}: {operation!r} is not an operation; available are {known}")
        named = OPERATIONS.values() if operation == "*" else [OPERATIONS[operation]]
        if not any(candidate.find(name) for candidate in named):
            known = ", ".join(dict.fromkeys(n for o in named for n in o.implementations))
            of = "" if operation == "*" else f" of {operation}"
            raise ConfigError(
                f"{source}: {name!r} is not an implementation{of}; available are {known}"
            )
        overrides.append((operation, name))
    return tuple(overrides)


@contextlib.contextmanager
def use_impl(override: str) -> Iterator[None]:
    """Force implementations within a `with` block, in this thread or asyncio task only.

    Args:
        override: an implementation (`"eager"`), for every operation that has it, or a list for some
            operations (`"attention=triton,mlp=eager"`), which does not change the others.

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
    """Return which implementation of each operation a typical call on `device` uses, and why."""
    return [
        operation.explain(operation.example(torch.device(device)))
        for operation in OPERATIONS.values()
        if operation.example is not None
    ]


_OVERRIDES: contextvars.ContextVar[Overrides] = contextvars.ContextVar("overrides", default=())
# torch.compile can neither read a ContextVar nor guard on one, but it guards on module globals:
# a compiled graph follows the `use_impl` that was last entered or left in the process.
_published: Overrides = ()


def _publish() -> None:
    global _published
    _published = _OVERRIDES.get()


@functools.cache
def _log_once(operation: str, name: str, reason: str) -> None:
    log.info("%s: %s is not used: %s", operation, name, reason)


def triton_can_run(tensor: Tensor, dtype: torch.dtype | None = None) -> Answer:
    """Whether Triton kernels support a tensor's device and dtype; `dtype` replaces the tensor's."""
    device = tensor.device
    kind = device.type
    if not TRITON_INSTALLED:
        return False, "triton is not installed"
    if kind == "cpu":
        if not INTERPRETED:
            return False, "the tensors are on the CPU and TRITON_INTERPRET=1 is not set"
    elif kind != "cuda":
        return False, f"it has no kernel for {kind} tensors"
    # The compute capability cannot be queried while torch.compile traces.
    elif not (torch.compiler.is_compiling() or is_new_enough(device)):
        return False, "it needs a GPU of compute capability 8.0 or newer"
    if (dtype or tensor.dtype) not in TRITON_DTYPES:
        return False, f"it supports float32, bfloat16 or float16, not {dtype or tensor.dtype}"
    return True, ""


@functools.cache
def is_new_enough(device: torch.device) -> bool:
    """Whether a GPU has compute capability 8.0 or newer; True if no GPU is available.

    Cached, because the query is slow.
    """
    if not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def triton_pays_on(tensor: Tensor) -> Answer:
    """Whether the automatic choice may use Triton: not in the interpreter, which is slow."""
    if tensor.device.type == "cpu":
        return False, "the interpreter is for tests"
    return True, ""


def triton_kernels(
    run: Callable[[Any], Any],
    can_serve: Callable[[Any], Answer] = _always,
    pays: Callable[[Any], Answer] = _always,
) -> Implementation:
    """Return the `triton` implementation of an operation.

    Args:
        run: computes the operation from its call, whose first field is a tensor that the kernels
            read, or a list of them.
        can_serve: called if `triton_can_run` is true for that tensor.
        pays: called if `triton_pays_on` is true for it.
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
