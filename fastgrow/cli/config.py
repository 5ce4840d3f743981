"""Read YAML or TOML configuration files into typed dataclasses, with overrides by name."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fastgrow._checked import convert
from fastgrow.errors import ConfigError

T = TypeVar("T")

_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
    ".toml": tomllib.loads,
}


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML or TOML file (chosen by the file extension) as a tree of plain values.

    Raises:
        ConfigError: the file is missing, has another extension, is not valid, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if path.suffix not in _READERS:
        raise ConfigError(f"{path}: expected a file name that ends in {', '.join(_READERS)}")
    try:
        tree = _READERS[path.suffix](text)
    # YAML raises a plain ValueError for an invalid date; TOML's errors are ValueErrors.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path}: is not valid {path.suffix[1:].upper()}: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected a mapping of names to values, got {type(tree).__name__}"
        )
    return tree


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set values in `tree`, each given as `name.of.value=value`; list items are given by index.

    Values are read as YAML, as in `train.lr=1e-3`, `substrate.scripts=[Latin, Han]` and
    `schedule.stages.0.tokens=100_000`.

    Raises:
        ConfigError: an override does not have this form or names an entry that does not exist.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"override {override!r}: expected the form name=value")
        *parents, last = name.split(".")
        node: Any = tree
        for key in parents:
            node = _child(node, key, override)
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"override {override!r}: {text!r} is not a valid value") from None
        if isinstance(node, list):
            node[_index(node, last, override)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ConfigError(
                f"override {override!r}: {'.'.join(parents)} is a single value and has no "
                f"entry {last!r}"
            )


def typed(tree: dict[str, Any], kind: type[T], origin: str) -> T:
    """Convert a tree of plain values to the dataclass `kind`, checking every name and type.

    Args:
        tree: values as returned by `read_config`.
        kind: a dataclass; its fields may be dataclasses, lists of dataclasses, and so on.
        origin: name of the tree in error messages, usually the file's name.

    Raises:
        ConfigError: a name is unknown or missing, or a value is of the wrong type or range.
    """
    _reject_unknown_names(tree, kind, origin, "")
    return convert(tree, kind, origin)


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, override)]
    if not isinstance(node, dict):
        raise ConfigError(
            f"override {override!r}: cannot set {key!r} inside a single value; expected a mapping "
            "or list"
        )
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _index(node: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(
            f"override {override!r}: expected an index from 0 to {len(node) - 1}, got {key!r}"
        )
    return int(key)


def _reject_unknown_names(tree: Any, kind: Any, origin: str, place: str) -> None:
    """Raise an error for names that `kind` does not have.

    msgspec ignores unknown names in a dataclass, so that a misspelt setting would have no effect.
    """
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        for option in typing.get_args(kind):
            _reject_unknown_names(tree, option, origin, place)
    elif isinstance(tree, list):
        arguments = typing.get_args(kind)
        for i, item in enumerate(tree):
            if arguments:
                _reject_unknown_names(item, arguments[0], origin, f"{place}{i}.")
    elif isinstance(tree, dict) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = _names(kind)
        known = ", ".join(names)
        for name, value in tree.items():
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {known}"
                raise ConfigError(f"{origin}: {place}{name}: unknown name; {hint}")
            _reject_unknown_names(value, hints[name], origin, f"{place}{name}.")
