"""Types of settings that carry their range, and the check of values against such types.

A range is written once, in a field's annotation, as `Annotated[float, msgspec.Meta(ge=0, le=1)]` or
by one of the names below; choices are a `Literal`. Three things read it: `check_types`, when a
dataclass is constructed; `convert`, when one is decoded from a file; and `msgspec.json.schema`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from fastgrow.errors import ConfigError

T = TypeVar("T")

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Proportion = Annotated[float, Meta(ge=0, le=1)]

_COMPARISONS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("gt", operator.gt, "above"),
    ("ge", operator.ge, "at least"),
    ("lt", operator.lt, "below"),
    ("le", operator.le, "at most"),
)
_UNIONS = (typing.Union, types.UnionType)
_LISTS = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)
_NONE = type(None)
# In Python and in YAML.
_WORDS = {
    bool: ("True or False", "true or false"),
    str: ("a string", "a string"),
    _NONE: ("None", "null"),
}


def check_types(
    settings: Any,
    *,
    where: str | None = None,
    plain: bool = False,
    error: type[Exception] = ConfigError,
) -> None:
    """Check each field of a dataclass against its annotation; called in `__post_init__`.

    Numbers, booleans, choices (`Literal`), None, and lists, tuples and mappings of these are
    checked; strings and objects of other classes are not. An int is accepted as a float, a bool is
    not accepted as a number, and every float must be finite.

    Args:
        settings: instance of a dataclass.
        where: prefix of a field's name in the message; None for the class's name and a dot.
        plain: accept only Python numbers, for settings that are written as JSON. By default
            scalars of NumPy and torch are accepted as numbers.
        error: class of the error.

    Raises:
        ConfigError: or `error`: a value does not fit; the message names the field, what was
            expected and the value.
    """
    cls: Any = type(settings)
    where = f"{cls.__name__}." if where is None else where
    for name, kind in _fields(cls).items():
        if (problem := _problem(getattr(settings, name), kind, plain)) is not None:
            place, kind, value = problem
            keys = "".join(f"[{key!r}]" for key in place)
            raise error(f"{where}{name}{keys}: {_mismatch(kind, value)}")


def convert(tree: Any, kind: type[T], where: str) -> T:
    """Convert plain values, as read from YAML, to the dataclass `kind`.

    Args:
        tree: mappings, lists, strings and numbers. A string that reads as a number is accepted as
            one: YAML reads 1e-3 as a string.
        kind: a dataclass; its fields may be dataclasses, lists of dataclasses, and so on. For a
            class that is not a dataclass, its subclasses that are dataclasses are accepted.
        where: prefix of messages, such as the file's name.

    Raises:
        ConfigError: a value does not fit; the message has its key, what was expected and the value.
    """
    try:
        return msgspec.convert(tree, kind, strict=False, dec_hook=_one_of)
    except msgspec.ValidationError as error:
        place, message = _located(tree, kind) or ((), _readable(error))
        keys = ".".join(str(key) for key in place)
        raise ConfigError(f"{where}: {keys + ': ' if keys else ''}{message}") from None


def describe(kind: Any, *, yaml: bool = False) -> str:
    """Return the values that a type accepts in words, such as "a number between 0 and 1".

    Args:
        kind: a type, with or without a range.
        yaml: use the words of YAML, such as null for None.
    """
    base, limits = _split(kind)
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if base in (int, float):
        return _describe_number("integer" if base is int else "number", limits)
    if base in _WORDS:
        return _WORDS[base][yaml]
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in _UNIONS:
        options = [describe(option, yaml=yaml) for option in arguments]
        return (
            " or ".join(options[:-1])
            + (", or " if arguments[-1] is _NONE else " or ")
            + options[-1]
        )
    if origin in _LISTS or origin in _MAPPINGS:
        return _describe_items(base, limits.get("min_length", 0), yaml)
    forms = [f"{{{', '.join(_fields(form))}}}" for form in _forms(base)]
    return f"a mapping with keys of {' or '.join(forms)}" if forms and yaml else base.__name__


def _describe_number(noun: str, limits: Mapping[str, Any]) -> str:
    if limits == {"gt": 0}:
        return f"a positive {noun}"
    article = "an" if noun == "integer" else "a"
    if set(limits) == {"ge", "le"}:
        return f"{article} {noun} between {limits['ge']} and {limits['le']}"
    parts = [f"{words} {limits[name]}" for name, _, words in _COMPARISONS if name in limits]
    of = "of " if parts and parts[0].startswith("at ") else ""
    return f"{article} {noun} {of}{' and '.join(parts)}".rstrip()


def _describe_items(base: Any, least: int, yaml: bool) -> str:
    """Describe a list or mapping. All items of a list of fixed length have the same type."""
    mapping = typing.get_origin(base) in _MAPPINGS
    item = typing.get_args(base)[1 if mapping else 0]
    if mapping:
        words = "a mapping of names to values" + (f", at least {least}" if least else "")
    elif (length := _fixed_length(base)) is not None:
        words = f"{length} values"
    else:
        words = f"a list of at least {least} value" if least else "a list of values"
    return words if item is Any or _forms(item) else f"{words}, each {describe(item, yaml=yaml)}"


def _mismatch(kind: Any, value: Any, *, yaml: bool = False) -> str:
    expected = describe(kind, yaml=yaml)
    if isinstance(value, float) and not math.isfinite(value):
        expected = expected.replace("number", "finite number", 1)
    return f"expected {expected}, got {value!r}"


# -- types and their parts -------------------------------------------------------------------------


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _split(kind: Any) -> tuple[Any, dict[str, Any]]:
    """Return a type without its `Meta`, and the limits in the `Meta`."""
    if typing.get_origin(kind) is not Annotated:
        return kind, {}
    base, *metas = typing.get_args(kind)
    names = ("gt", "ge", "lt", "le", "min_length")
    limits = [(name, getattr(meta, name, None)) for meta in metas for name in names]
    return base, {name: limit for name, limit in limits if limit is not None}


def _fixed_length(base: Any) -> int | None:
    """Return the length of a tuple type; None for other lists and for tuples of any length."""
    arguments = typing.get_args(base)
    fixed = typing.get_origin(base) is tuple and arguments[-1] is not ...
    return len(arguments) if fixed else None


def _forms(base: Any) -> list[Any]:
    """Return the type itself if it is a dataclass, else its subclasses that are dataclasses."""
    if dataclasses.is_dataclass(base):
        return [base]
    options: list[Any] = type.__subclasses__(base) if isinstance(base, type) else []
    return [option for option in options if dataclasses.is_dataclass(option)]


def _form_of(value: Any, base: Any) -> Any | None:
    """Return the first of `_forms(base)` that has fields with all names in `value`, or None."""
    forms = _forms(base) if isinstance(value, Mapping) else []
    if forms == [base]:
        return base
    named = (form for form in forms if value and _fields(form).keys() >= value.keys())
    return next(named, None)


def _items(value: Any, base: Any) -> list[tuple[Any, Any, Any]] | None:
    """Return key, value and type of each item of a list or mapping; None if it is not one."""
    arguments = typing.get_args(base)
    if typing.get_origin(base) in _MAPPINGS:
        fits = isinstance(value, Mapping)
        return [(key, item, arguments[1]) for key, item in value.items()] if fits else None
    # Strings, arrays and tensors do not count as lists.
    fits = isinstance(value, Sequence | Set) and not isinstance(value, str | bytes)
    if not fits or _fixed_length(base) not in (None, len(value)):
        return None
    return [(index, item, arguments[0]) for index, item in enumerate(value)]


# -- finding what does not fit ---------------------------------------------------------------------


def _problem(value: Any, kind: Any, plain: bool) -> tuple[tuple[Any, ...], Any, Any] | None:
    """Return the keys, the type and the value of the first part of `value` that does not fit."""
    base, limits = _split(kind)
    origin = typing.get_origin(base)
    wrong: tuple[tuple[Any, ...], Any, Any] = ((), kind, value)
    if not plain and base in (int, float, bool) and getattr(value, "ndim", None) == 0:
        value = value.item()
    fits = True
    if base in (int, float):
        fits = _is_number(value, base, limits)
    elif base in (bool, _NONE):
        fits = isinstance(value, base)
    elif origin is Literal:
        fits = isinstance(value, str) and value in typing.get_args(base)
    elif origin in _UNIONS:
        problems = [_problem(value, option, plain) for option in typing.get_args(base)]
        fits = None in problems
        # Report the item that does not fit, if there is one, instead of the whole value.
        wrong = next((problem for problem in problems if problem and problem[0]), wrong)
    elif origin in _LISTS or origin in _MAPPINGS:
        items = _items(value, base)
        fits = items is not None and len(items) >= limits.get("min_length", 0)
        for key, item, item_kind in items or ():
            if (problem := _problem(item, item_kind, plain)) is not None:
                return ((key, *problem[0]), *problem[1:])
    return None if fits else wrong


def _is_number(value: Any, base: type, limits: Mapping[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if base is int else int | float):
        return False
    try:
        finite = base is int or math.isfinite(value)
    except OverflowError:  # An int beyond the largest float.
        return False
    return finite and all(
        compare(value, limits[name]) for name, compare, _ in _COMPARISONS if name in limits
    )


def _located(value: Any, kind: Any) -> tuple[tuple[Any, ...], str] | None:
    """Return the keys of the first value that cannot be converted, and the error message."""
    try:
        converted = msgspec.convert(value, kind, strict=False, dec_hook=_one_of)
    except msgspec.ValidationError as error:
        for key, item, item_kind in _children(value, kind):
            if (found := _located(item, item_kind)) is not None:
                return (key, *found[0]), found[1]
        # Other messages are about a missing name, or come from `__post_init__`.
        message = _readable(error)
        typed = message.startswith(("Expected ", "Invalid "))
        return (), _mismatch(kind, value, yaml=True) if typed else message
    fits = _problem(converted, kind, plain=True) is None
    return None if fits else ((), _mismatch(kind, value, yaml=True))


def _children(value: Any, kind: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield key, value and type of each part of `value` that the type `kind` describes."""
    base, _ = _split(kind)
    origin = typing.get_origin(base)
    if origin in _UNIONS:
        for option in typing.get_args(base):
            yield from _children(value, option)
    elif origin in _LISTS or origin in _MAPPINGS:
        yield from _items(value, base) or ()
    elif (form := _form_of(value, base)) is not None:
        yield from (
            (name, value[name], kind) for name, kind in _fields(form).items() if name in value
        )


def _one_of(base: type, value: Any) -> Any:
    """Convert `value` to the subclass of a plain class `base` that has fields of its names."""
    if (form := _form_of(value, base)) is None:
        raise ValueError(f"expected {describe(base, yaml=True)}, got {value!r}")
    return msgspec.convert(value, form, strict=False)


def _readable(error: msgspec.ValidationError) -> str:
    """Return msgspec's message without quotation marks and the location."""
    return str(error).partition(" - at `")[0].replace("`", "")
