"""Define operators of torch.library, and autograd functions.

    @operator(fake_forward)
    def norm_forward(call: NormCall) -> tuple[Tensor, Tensor]: ...

defines `torch.ops.fastgrow.norm_forward`, with a schema made from the annotations. A NamedTuple as
the first parameter is expanded into its fields, so that the parameters of a call are listed in one
place: the operator is called with `*call`, and the function receives the record.

    @launched_by("norm.forward")
    def norm_forward(call: NormCall) -> tuple[Tensor, Tensor | None]: ...

makes an operator from a launcher in `fastgrow.kernels`; the decorated function is its fake (meta)
implementation.

    normalise = differentiable("layer_norm", NormCall, forward, backward)

makes an autograd.Function from two functions that take the record. `torch.library.custom_op` and
`register_autograd` would do the same, but take four times as long on the host.
"""

from __future__ import annotations

import functools
import importlib
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError

_library = torch.library.Library("fastgrow", "FRAGMENT")
_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    list[Tensor | None]: "Tensor?[]",
    int: "SymInt",
    int | None: "SymInt?",
    float: "float",
    float | None: "float?",
    list[float]: "float[]",
    bool: "bool",
    list[bool]: "bool[]",
    str: "str",
    torch.dtype: "ScalarType",
    type(None): "()",
}


def operator(
    fake: Callable[..., Any], *, devices: Sequence[str] = ("CPU", "CUDA"), writes: str | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that replaces a function by a torch operator of the same name.

    An operator always returns the same number of tensors; results that are not needed are empty.

    Args:
        fake: takes the same arguments and returns empty tensors like the function's.
        devices: torch's dispatch keys that the function is registered for.
        writes: the parameter that it writes to, if any.
    """

    def define(function: Callable[..., Any]) -> Any:
        name, hints = function.__name__, typing.get_type_hints(function)
        returned, first = hints.pop("return"), next(iter(hints.values()))
        record = first if hasattr(first, "_fields") else None
        if record is not None:
            hints = typing.get_type_hints(record) | dict([*hints.items()][1:])
        types = {parameter: _SCHEMA_TYPES[hint] for parameter, hint in hints.items()}
        if writes is not None:
            types[writes] = "Tensor(a!)"
        parts = typing.get_args(returned) if typing.get_origin(returned) is tuple else (returned,)
        results = ", ".join(_SCHEMA_TYPES[part].rstrip("?") for part in parts)
        parameters = ", ".join(f"{kind} {parameter}" for parameter, kind in types.items())
        _library.define(f"{name}({parameters}) -> {results if len(parts) == 1 else f'({results})'}")
        for key in devices:
            _library.impl(name, _taking_fields(function, record), key)
        torch.library.register_fake(f"fastgrow::{name}", _taking_fields(fake, record), lib=_library)
        return getattr(torch.ops.fastgrow, name).default

    return define


def launched_by(launcher: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that replaces a function by an operator of its name, run by a launcher.

    The decorated function is the operator's fake: it returns empty tensors like the launcher's.
    Both may return None instead of a tensor that is not needed.

    Args:
        launcher: module and function in fastgrow.kernels, such as `norm.forward`. It takes the
            decorated function's arguments; its module is imported when the operator is first
            called, since it needs Triton.
    """
    module, _, name = launcher.rpartition(".")

    def define(fake: Callable[..., Any]) -> Any:
        @functools.wraps(fake)
        def launch(*values: Any) -> Any:
            return _without_none(getattr(_kernels(module), name)(*values))

        return operator(lambda *values: _without_none(fake(*values)))(launch)

    return define


@functools.cache
def _kernels(module: str) -> Any:
    return importlib.import_module(f"fastgrow.kernels.{module}")


def _without_none(results: Any) -> Any:
    """Replace None by empty tensors, because an operator cannot return None."""
    if type(results) is not tuple:
        return results
    some = results[0]
    if some is None:
        some = next((result for result in results if result is not None), torch.empty(0))
    return tuple([some.new_empty(0) if result is None else result for result in results])


def _taking_fields(function: Callable[..., Any], record: Any) -> Callable[..., Any]:
    if record is None:
        return function
    count = len(record._fields)
    # As `record._make`, without its check of the number of values.
    make = functools.partial(tuple.__new__, record)
    return lambda *values: function(make(values[:count]), *values[count:])


def differentiable(
    operation: str,
    record: type[Any],
    forward: Callable[..., Any],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., Any]:
    """Return a function of a call's fields whose gradients `backward` computes.

    Differentiating these gradients again raises an error: autograd would treat them as constants.

    Args:
        operation: name of the operation, for that error.
        record: the NamedTuple of the fields.
        forward: computes a tensor or a tuple of tensors from `(ctx, call)`.
        backward: computes the gradients of the first fields from `(ctx, *gradients)`; the other
            fields have no gradient.
    """
    fields = len(record._fields)

    def run_forward(ctx: Any, *values: Any) -> Any:
        return forward(ctx, record(*values))

    def run_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # If only intermediate results were saved for a gradient, autograd has no record that
            # the gradient depends on the inputs.
            anchor = torch.empty(0, requires_grad=True)
            inputs = (anchor, *gradients, *ctx.saved_tensors)
            found = _Once.apply(operation, lambda: backward(ctx, *gradients), *inputs)
        else:
            found = backward(ctx, *gradients)
        return found + (None,) * (fields - len(found))

    members = {"forward": staticmethod(run_forward), "backward": staticmethod(run_backward)}
    function: Any = type("Differentiable", (torch.autograd.Function,), members)
    return lambda *values: function.apply(*distinct(values))


class _Once(torch.autograd.Function):
    """Returns the result of `run`; its backward raises an error."""

    @staticmethod
    def forward(ctx: Any, operation: str, run: Callable[[], Sequence[Any]], *inputs: Any) -> Any:
        ctx.operation = operation
        return tuple(run())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise _differentiated_again(ctx.operation)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd needs the gradient of any of the tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def distinct(fields: Sequence[Any]) -> Sequence[Any]:
    """Return the fields; under torch.compile, repeated tensors are replaced by views.

    torch.compile does not support an autograd.Function with the same tensor as two arguments, for
    example as keys and values of attention.
    """
    if not torch.compiler.is_compiling():
        return fields
    found: list[Any] = []
    for x in fields:
        again = isinstance(x, Tensor) and any(x is other for other in found)
        found.append(x.view_as(x) if again else x)
    return found


def forbid_double_backward(operation: str) -> None:
    """Raise an error under `create_graph=True`; for a backward that is not differentiable."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise _differentiated_again(operation)


def _differentiated_again(operation: str) -> ArgumentError:
    again = "its gradient cannot be differentiated again (create_graph=True)"
    return ArgumentError(f"{operation}: {again}; impl='eager' can")
