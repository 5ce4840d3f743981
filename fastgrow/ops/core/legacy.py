"""Operations whose implementations take several arguments: those that have no record yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import Answer, Explanation, Implementation

IMPLEMENTATIONS = ("triton", "native", "vendor", "eager")


class Operation(dispatch.Operation):
    """As `dispatch.Operation`, with implementations that are registered one by one."""

    def __init__(self, name: str, *, example: Callable[..., Any] | None = None) -> None:
        super().__init__(name, [], example and (lambda device: example(device)[0]))

    def implementation(
        self,
        name: str,
        *,
        verify: Callable[..., Answer] | None = None,
        pays: Callable[..., Answer] | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(run: Callable[..., Any]) -> Callable[..., Any]:
            entry = Implementation(
                name,
                lambda call: run(*call),
                (lambda call: verify(*call)) if verify else (lambda call: (True, "")),
                (lambda call: pays(*call)) if pays else (lambda call: (True, "")),
            )
            known = {**self.implementations, name: entry}
            self.implementations = {n: known[n] for n in IMPLEMENTATIONS if n in known}
            return run

        return register

    def __call__(self, *args: Any, impl: str | None = None) -> Any:
        return super().__call__(args, impl)

    def explain(self, *args: Any, impl: str | None = None) -> Explanation:
        call = args[0] if len(args) == 1 and type(args[0]) is tuple else args
        return super().explain(call, impl)
