"""Choosing the implementation of an operation.

An `Operation` holds up to four implementations of one formula:

- `eager`: plain PyTorch, every device; the truth that tests compare with;
- `triton`: the kernels of `fastgrow.kernels`;
- `native`: the C++/CUDA extension;
- `vendor`: a library's fused call (scaled_dot_product_attention, cuBLASLt, …).

Each comes with a verifier `verify(*args, **kwargs) -> (ok, reason)` that says from devices, dtypes
and shapes whether it can serve the call, and may come with a second one, `pays`, that says whether
it should be picked unasked. Neither reads the content of a tensor.

The most local wish wins: the `impl=` argument, then the innermost `use_impl(…)`, then the
environment variable FASTGROW_IMPL, then the operation's own order of preference. A wish is either
an implementation's name, meant for every operation that has one of that name, or a list such as
`attention=triton,mlp=eager`. A wish that cannot be met raises and says why; what the automatic
choice passed over is logged once at level INFO. Under torch.compile all of this happens while a
graph is traced, and again when `use_impl` changes. The environment is read when this module is
imported, and not again.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastgrow.errors import ConfigError

IMPLEMENTATIONS = ("triton", "native", "vendor", "eager")
ENVIRONMENT_VARIABLE = "FASTGROW_IMPL"

Verdict = tuple[bool, str]
Verifier = Callable[..., Verdict]
# (operation, implementation) pairs; "*" stands for every operation that has the implementation.
Wishes = tuple[tuple[str, str], ...]

# Looking it up at each call would be a third of a small call's time.
_environment = os.environ.get(ENVIRONMENT_VARIABLE)

log = logging.getLogger("fastgrow.ops")

OPERATIONS: dict[str, Operation] = {}


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation."""

    name: str
    run: Callable[..., Any]
    verify: Verifier
    pays: Verifier


@dataclass(frozen=True)
class Explanation:
    """Which implementation serves a call, and what was said of every other one.

    `active` is None where a forced choice cannot run; calling the operation would then raise.
    """

    operation: str
    active: str | None
    reason: str
    verdicts: dict[str, Verdict]

    def __str__(self) -> str:
        lines = [f"{self.operation}: {self.active or 'none'} ({self.reason})"]
        lines += [
            f"  {name}: {'can run' if ok else 'cannot run'}{f' ({why})' if why else ''}"
            for name, (ok, why) in self.verdicts.items()
            if name != self.active
        ]
        return "\n".join(lines)


class Operation:
    """A formula with several implementations; calling it picks one and runs it.

    Args:
        name: the operation's name in `use_impl` and FASTGROW_IMPL.
        preference: the order in which the automatic choice asks the implementations.
        example: `example(device)` gives typical `(args, kwargs)` on that device; `explain_all`
            asks the verifiers about them. Tensors may be small: only metadata are read.
    """

    def __init__(
        self,
        name: str,
        *,
        preference: tuple[str, ...] = IMPLEMENTATIONS,
        example: Callable[[torch.device], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> None:
        self.name = name
        self.preference = preference
        self.example = example
        self.implementations: dict[str, Implementation] = {}
        OPERATIONS[name] = self

    def implementation(
        self, name: str, *, verify: Verifier | None = None, pays: Verifier | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that registers a function as this operation's implementation `name`.

        Args:
            name: one of `eager`, `triton`, `native`, `vendor`.
            verify: `(ok, reason)` from the call's arguments; may the implementation run? Reasons
                complete the sentence "<implementation> cannot run: …".
            pays: the same form; should the automatic choice take it? Not asked of a forced choice.
        """
        if name not in IMPLEMENTATIONS:
            raise ConfigError(f"{self.name}: {name!r} is not one of {', '.join(IMPLEMENTATIONS)}")

        def register(run: Callable[..., Any]) -> Callable[..., Any]:
            entry = Implementation(name, run, verify or _yes, pays or _yes)
            self.implementations[name] = entry
            # The table is kept in order of preference, so that choosing is one walk through it.
            known = self.implementations
            self.implementations = {n: known[n] for n in self.preference if n in known}
            return run

        return register

    def __call__(self, *args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        forced, source = self._wish(impl)
        if forced is not None:
            ok, reason = self._verify_forced(forced, source, args, kwargs)
            if not ok:
                raise ConfigError(reason)
            return self.implementations[forced].run(*args, **kwargs)
        for entry in self.implementations.values():
            ok, reason = entry.verify(*args, **kwargs)
            if ok:
                ok, reason = entry.pays(*args, **kwargs)
            if ok:
                return entry.run(*args, **kwargs)
            _log_once(self.name, entry.name, reason)
        raise ConfigError(f"{self.name}: no implementation can run this call")

    def explain(self, *args: Any, impl: str | None = None, **kwargs: Any) -> Explanation:
        """Say what a call with these arguments would run and why; computes nothing."""
        verdicts = {n: e.verify(*args, **kwargs) for n, e in self.implementations.items()}
        try:
            forced, source = self._wish(impl)
        except ConfigError as error:
            return Explanation(self.name, None, str(error), verdicts)
        if forced is not None:
            ok, reason = self._verify_forced(forced, source, args, kwargs)
            return Explanation(
                self.name,
                forced if ok else None,
                f"asked for by {source}" if ok else reason,
                verdicts,
            )
        passed_over: list[str] = []
        for name, entry in self.implementations.items():
            ok, reason = verdicts[name]
            if ok:
                ok, reason = entry.pays(*args, **kwargs)
            if ok:
                why = "; ".join(passed_over) or reason or "first in the order of preference"
                return Explanation(self.name, name, why, verdicts)
            passed_over.append(f"not {name}: {reason}")
        return Explanation(self.name, None, "; ".join(passed_over), verdicts)

    def _wish(self, impl: str | None) -> tuple[str | None, str]:
        """The implementation asked for, or None, and who asked."""
        if impl is not None:
            return impl, "impl="
        wishes = _current()
        found = self._find(wishes) if wishes else None
        if found is not None:
            return found, "use_impl"
        if _environment:
            wishes = parse_wishes(_environment, ENVIRONMENT_VARIABLE)
            return self._find(wishes), ENVIRONMENT_VARIABLE
        return None, "automatic"

    def _find(self, wishes: Wishes) -> str | None:
        blanket = None
        for operation, name in wishes:
            if operation == self.name:
                return name
            if operation == "*" and name in self.implementations:
                blanket = name
        return blanket

    def _verify_forced(
        self, name: str, source: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Verdict:
        entry = self.implementations.get(name)
        if entry is None:
            known = ", ".join(self.implementations)
            return False, f"{self.name}: {source} asks for {name!r}; there are only {known}"
        ok, reason = entry.verify(*args, **kwargs)
        return (
            ok,
            "" if ok else f"{self.name}: {source} asks for {name!r}, which cannot run: {reason}",
        )


def parse_wishes(text: str, source: str) -> Wishes:
    """Read `eager` or `attention=triton,mlp=eager`.

    Raises:
        ConfigError: an operation or implementation of that name does not exist.
    """
    wishes = []
    for part in text.split(","):
        operation, separator, name = part.strip().rpartition("=")
        operation, name = operation.strip(), name.strip()
        if not separator:
            operation = "*"
        elif operation not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise ConfigError(f"{source}: {operation!r} is not an operation; there are {known}")
        if name not in IMPLEMENTATIONS:
            known = ", ".join(IMPLEMENTATIONS)
            raise ConfigError(f"{source}: {name!r} is not an implementation; there are {known}")
        wishes.append((operation, name))
    return tuple(wishes)


@contextlib.contextmanager
def use_impl(wish: str) -> Iterator[None]:
    """Prefer implementations within a `with` block, in this thread or task only.

    Args:
        wish: an implementation (`"eager"`), for every operation that has it, or a list for some
            operations (`"attention=triton,mlp=eager"`), which leaves the others as they were.

    Raises:
        ConfigError: an operation or implementation of that name does not exist.
    """
    wishes = parse_wishes(wish, "use_impl")
    everything = any(operation == "*" for operation, _ in wishes)
    before = _WISHES.get()
    token = _WISHES.set(wishes if everything else wishes + before)
    _publish()
    try:
        yield
    finally:
        _WISHES.reset(token)
        _publish()


def explain_all(device: torch.device | str) -> list[Explanation]:
    """What each operation would run on a typical call on `device`, and why."""
    explanations = []
    for operation in OPERATIONS.values():
        if operation.example is not None:
            args, kwargs = operation.example(torch.device(device))
            explanations.append(operation.explain(*args, **kwargs))
    return explanations


_WISHES: contextvars.ContextVar[Wishes] = contextvars.ContextVar("fastgrow_wishes", default=())
# torch.compile can neither read a ContextVar nor guard on one. It does guard on a module's global:
# a compiled graph follows the `use_impl` entered or left last in the process.
_published: Wishes = ()


def _publish() -> None:
    global _published
    _published = _WISHES.get()


def _current() -> Wishes:
    return _published if torch.compiler.is_compiling() else _WISHES.get()


def _yes(*args: Any, **kwargs: Any) -> Verdict:
    return True, ""


_logged: set[tuple[str, str, str]] = set()


def _log_once(operation: str, name: str, reason: str) -> None:
    if torch.compiler.is_compiling():
        return
    key = (operation, name, reason)
    if key not in _logged:
        _logged.add(key)
        log.info("%s: %s is not used: %s", operation, name, reason)
