"""Characters by Unicode script or block, for compact vocabularies.

The sets are those of one Unicode version and ship with the package. Python's own tables change with
its version, and a recipe must give the same vocabulary everywhere. The sets cover the Basic
Multilingual Plane; other characters can be given one by one.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Collection, Iterable
from typing import Any

from fastgrow import data
from fastgrow.errors import SubstrateError

# Characters that text in any script uses in addition to its letters. ʼ is the apostrophe letter of
# Ukrainian and Belarusian, № the numero sign and U+0301 the stress accent.
_SHARED_BLOCKS = ("Basic Latin", "Latin-1 Supplement", "General Punctuation", "Currency Symbols")
_SHARED_CHARACTERS = "\t\nʼ№\u0301"
_EAST_ASIAN = frozenset({"Han", "Hiragana", "Katakana", "Hangul", "Bopomofo"})
_EAST_ASIAN_BLOCKS = ("CJK Symbols and Punctuation", "Halfwidth and Fullwidth Forms")


def script_names() -> list[str]:
    """Return the names of the available scripts, such as "Latin"."""
    return list(_table()["scripts"])


def block_names() -> list[str]:
    """Return the names of the available blocks, such as "Basic Latin"."""
    return list(_table()["blocks"])


def script_characters(name: str) -> set[str]:
    """Return the characters of a script, with the punctuation, digits and symbols its text uses.

    The result consists of the script's characters and Unicode's script extensions, tab and newline,
    the common characters of the blocks Basic Latin, Latin-1 Supplement, General Punctuation and
    Currency Symbols and, for East Asian scripts, those of CJK Symbols and Punctuation and of
    Halfwidth and Fullwidth Forms.

    Raises:
        SubstrateError: there is no such script.
    """
    name = _known(name, script_names(), "script")
    table = _table()
    points = _points(table["scripts"][name]) | _points(table["extensions"].get(name, []))
    blocks = _SHARED_BLOCKS + (_EAST_ASIAN_BLOCKS if name in _EAST_ASIAN else ())
    shared = {character for block in blocks for character in _common(block)}
    return {chr(point) for point in points} | shared | set(_SHARED_CHARACTERS)


def block_characters(name: str) -> set[str]:
    """Return the assigned characters of a block.

    Raises:
        SubstrateError: there is no such block in the Basic Multilingual Plane.
    """
    first, last = _table()["blocks"][_known(name, block_names(), "block")]
    return {chr(point) for point in range(first, last + 1) if point in _assigned()}


def characters_of(
    *,
    scripts: Iterable[str] | None = None,
    blocks: Iterable[str] | None = None,
    characters: Iterable[str] | None = None,
) -> list[str]:
    """Return the union of the given characters, sorted by code point.

    Args:
        scripts: names of scripts (see `script_characters`).
        blocks: names of blocks.
        characters: single characters, or strings whose characters are used.

    Raises:
        SubstrateError: a name is unknown.
    """
    result: set[str] = set().union(*(characters or ()))
    for script in scripts or ():
        result |= script_characters(script)
    for block in blocks or ():
        result |= block_characters(block)
    return sorted(result)


@functools.cache
def _table() -> Any:
    return json.loads(data.read("unicode-sets.json.xz"))


def _points(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {point for first, last in ranges for point in range(first, last + 1)}


@functools.cache
def _assigned() -> frozenset[int]:
    # Every assigned character has a script, which may be Common or Inherited.
    return frozenset().union(*map(_points, _table()["scripts"].values()))


def _common(block: str) -> set[str]:
    """Return the characters of a block in the script Common, without control characters."""
    common = _points(_table()["scripts"]["Common"]) - _points(_table()["controls"])
    return {character for character in block_characters(block) if ord(character) in common}


def _known(name: str, names: Collection[str], what: str) -> str:
    """Return the name in Unicode's spelling, ignoring case and treating "_" as a space."""
    spelled = {_folded(known): known for known in names}
    found = spelled.get(_folded(name))
    if found is None:
        close = difflib.get_close_matches(_folded(name), spelled, n=3)
        hint = ", ".join(repr(spelled[match]) for match in close)
        raise SubstrateError(
            f"no Unicode {what} {name!r} in the Basic Multilingual Plane"
            + (f"; did you mean {hint}?" if hint else "")
        )
    return found


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ")
