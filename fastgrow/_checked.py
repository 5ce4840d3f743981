"""Types of settings that carry their range, and the check of values against such types.

A range is an annotation, `Annotated[float, msgspec.Meta(ge=0, le=1)]` or one of the names below;
choices are a `Literal`. msgspec checks the values when a dataclass is constructed (`check_types`)
or decoded from a file (`convert`). This module words the error: where, what was expected, what was
found.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from fastgrow.errors import ConfigError

T = TypeVar("T")

# Excludes infinity from a range. NaN is outside every range.
_LARGEST = sys.float_info.max
PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
FiniteFloat = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
PositiveFloat = Annotated[float, Meta(gt=0, le=_LARGEST)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=_LARGEST)]
Proportion = Annotated[float, Meta(ge=0, le=1)]

_LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "at most"}
_WORDS = {"Int": "an integer", "Float": "a finite number", "Bool": "true or false"}


def check_types(
    settings: Any,
    *,
    where: str | None = None,
    plain: bool = False,
    error: type[Exception] = ConfigError,
) -> None:
    """Check each field of a dataclass against its annotation; called in `__post_init__`.

    An int is accepted as a float, a sequence as a list, a path as a string; a bool is not accepted
    as a number.

    Args:
        settings: instance of a dataclass.
        where: prefix of a field's name in messages; None for the class's name and a dot.
        plain: reject scalars of NumPy and torch, for settings that are written as JSON. Otherwise
            they count as the numbers they hold.
        error: class of the error that is raised if a value does not fit.
    """
    cls: Any = type(settings)
    where = f"{cls.__name__}." if where is None else where
    for name, kind in _fields(cls).items():
        _decode(_tree(getattr(settings, name), plain), kind, f"{where}{name}", error=error)


def convert(tree: Any, kind: type[T], where: str) -> T:
    """Convert plain values, as read from YAML, to the dataclass `kind`.

    Args:
        tree: mappings, lists, strings and numbers. A string that reads as a number is accepted as
            one: YAML reads 1e-3 as a string.
        kind: a dataclass; its fields may be dataclasses, lists of dataclasses, and so on. If a
            field's type is another class, the value is converted to one of its subclasses that
            are dataclasses.
        where: prefix of messages, such as the file's name.

    Raises:
        ConfigError: a value does not fit.
    """
    return typing.cast(T, _decode(tree, kind, f"{where}: ", yaml=True))


def _tree(value: Any, plain: bool) -> Any:
    """Return the value in types that msgspec accepts: lists, dictionaries and Python numbers."""
    if isinstance(value, Mapping):
        return {key: _tree(item, plain) for key, item in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return [_tree(item, plain) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):  # NumPy's float64 is one.
        return float(value)
    return value.item() if not plain and getattr(value, "ndim", None) == 0 else value


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _decode(
    value: Any, kind: Any, place: str, *, yaml: bool = False, error: type[Exception] = ConfigError
) -> Any:
    """Convert `value` to its type, or raise an error for its first part that does not fit."""
    try:
        return msgspec.convert(
            value, kind, strict=not yaml, from_attributes=not yaml, dec_hook=_subclass
        )
    except msgspec.ValidationError as problem:
        for key, part, part_kind in _parts(value, kind):
            inner = f"{place}{key}." if yaml else f"{place}[{key!r}]"
            _decode(part, part_kind, inner, yaml=yaml, error=error)
        message = str(problem).partition(" - at `")[0].replace("`", "")
    # Other messages are of a missing name, or of `__post_init__` on values that each fit.
    if message.startswith(("Expected ", "Invalid ", "Number out of range")):
        message = f"expected {_describe(inspect.type_info(kind), yaml)}, got {value!r}"
    raise error(f"{place.rstrip(': .')}: {message}")


def _subclass(base: type, value: Any) -> Any:
    """Convert a mapping to the subclass of `base` that is a dataclass with its keys."""
    if isinstance(value, base):
        return value
    forms = _forms(base, value) if isinstance(value, dict) and value else []
    if not forms:
        raise ValueError("Expected names of a subclass")
    return msgspec.convert(value, forms[0], strict=False)


def _forms(base: Any, names: Iterable[str] = ()) -> list[Any]:
    """Return the class if it is a dataclass, else its subclasses that are; those with `names`."""
    classes = [base] if dataclasses.is_dataclass(base) else base.__subclasses__()
    forms: list[Any] = list(filter(dataclasses.is_dataclass, classes))
    return [form for form in forms if _fields(form).keys() >= set(names)]


def _parts(value: Any, kind: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield key, value and type of each part of a tree. All items of a list have one type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Annotated, typing.Union, types.UnionType):
        for option in arguments:
            yield from _parts(value, option)
    elif origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        yield from ((index, item, arguments[0]) for index, item in enumerate(value))
    elif origin in (dict, Mapping) and isinstance(value, dict):
        yield from ((key, item, arguments[1]) for key, item in value.items())
    elif isinstance(kind, type) and isinstance(value, dict):
        for form in _forms(kind, value)[:1]:
            yield from ((k, value[k], part) for k, part in _fields(form).items() if k in value)


def _describe(node: Any, yaml: bool) -> str:
    """Return in words which values a type accepts, such as "a number between 0 and 1"."""
    match node:
        case inspect.NoneType():
            return "null" if yaml else "None"
        case inspect.FloatType(ge=0, le=1):
            return "a number between 0 and 1"
        case inspect.LiteralType(values=choices):
            return f"one of {', '.join(map(str, choices))}"
        case inspect.UnionType(types=options):
            return ", or ".join(_describe(option, yaml) for option in options)
        case inspect.TupleType(item_types=items):
            return f"a list of length {len(items)}"
        case inspect.ListType() | inspect.VarTupleType() | inspect.DictType():
            noun = "a mapping" if isinstance(node, inspect.DictType) else "a list"
            return f"{noun} of length at least {node.min_length}" if node.min_length else noun
        case inspect.DataclassType(cls=cls) | inspect.CustomType(cls=cls):
            forms = [f"{{{', '.join(_fields(form))}}}" for form in _forms(cls)]
            named = f"a mapping with the keys {' or '.join(forms)}"
            return named if yaml and forms else cls.__name__
    name = type(node).__name__.removesuffix("Type")
    limits = [(words, getattr(node, name, None)) for name, words in _LIMITS.items()]
    limits = [limit for limit in limits if limit[1] not in (None, _LARGEST, -_LARGEST)]
    ranges = " and ".join(f"{words} {limit}" for words, limit in limits)
    return f"{_WORDS.get(name, 'a string')} {ranges}".rstrip()
