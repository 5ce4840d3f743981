"""Configuration files: YAML or TOML into typed dataclasses, with overrides by name."""

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
    """Read a YAML or TOML file (by its ending) as a tree of plain values.

    Raises:
        ConfigError: the file is missing, of another ending, not valid, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if path.suffix not in _READERS:
        raise ConfigError(f"{path}: expected a name ending in {', '.join(_READERS)}")
    try:
        tree = _READERS[path.suffix](text)
    # YAML raises a bare ValueError for a date that is none; TOML's errors are ValueErrors.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected names with values, got {type(tree).__name__}")
    return tree


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set values in `tree`, each given as `name.of.value=value`; a list's items go by number.

    Values are read as YAML, so `train.lr=1e-3`, `substrate.scripts=[Latin, Han]` and
    `schedule.stages.0.tokens=100_000` mean what they say.

    Raises:
        ConfigError: an override has another form or names a place that does not exist.
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
            raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a single value")


def typed(tree: dict[str, Any], kind: type[T], origin: str) -> T:
    """Turn a tree of plain values into the dataclass `kind`, checking every name and type.

    Args:
        tree: as `read_config` gives it.
        kind: a dataclass; its fields may be dataclasses, lists of them, and so on.
        origin: what to call the tree in an error, usually the file's name.

    Raises:
        ConfigError: a name is unknown or missing, or a value is of the wrong type or range.
    """
    _refuse_unknown_names(tree, kind, origin, "")
    return convert(tree, kind, origin)


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, override)]
    if not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: there is nothing below {key!r}")
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _index(node: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(
            f"override {override!r}: expected a number from 0 to {len(node) - 1}, got {key!r}"
        )
    return int(key)


def _refuse_unknown_names(tree: Any, kind: Any, origin: str, place: str) -> None:
    """msgspec passes over unknown names in a dataclass; a misspelt setting must not do nothing."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        for option in typing.get_args(kind):
            _refuse_unknown_names(tree, option, origin, place)
    elif isinstance(tree, list):
        arguments = typing.get_args(kind)
        for i, item in enumerate(tree):
            if arguments:
                _refuse_unknown_names(item, arguments[0], origin, f"{place}{i}.")
    elif isinstance(tree, dict) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = _names(kind)
        for name, value in tree.items():
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
                raise ConfigError(f"{origin}: {place}{name}: unknown name; {hint}")
            _refuse_unknown_names(value, hints[name], origin, f"{place}{name}.")
