"""Lists of n-grams, and the selection of n-grams as in bvv241.

A list has, for several languages, the most frequent n-grams of each length, most frequent first. A
vocabulary contains the top k of each language and length.
"""

from __future__ import annotations

import ast
import bisect
import functools
import json
import lzma
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgrow import data
from fastgrow.errors import SubstrateError


@dataclass(frozen=True)
class LanguageNgrams:
    """The n-grams of one language by length, most frequent first."""

    language: str
    by_length: dict[int, list[str]]


@functools.cache
def bundled() -> tuple[LanguageNgrams, ...]:
    """Return 2- and 3-grams of the Universal Declaration of Human Rights in 32 languages."""
    content = json.loads(data.read("ngrams-udhr.json.xz"))
    return tuple(
        LanguageNgrams(language, {int(n): ngrams.split(" ") for n, ngrams in by_length.items()})
        for language, by_length in content.items()
    )


def read_lists(path: Path | str) -> list[LanguageNgrams]:
    """Read a file in the format of bvv241's author: a Python literal, plain or `.xz`.

    The literal is a list of `{'lang': str, 'language_name': str, 'top_ngrams': {n: [(str, count),
    …]}}`, as formatted by `repr`. It is parsed, never evaluated.

    Raises:
        SubstrateError: the file is missing, damaged or in a different format; the message has the
            position.
    """
    path = Path(path)
    try:
        return _Parser(read_text(path)).lists()
    except _Malformed as error:
        raise SubstrateError(f"{path}: not a list of n-grams: {error}") from None


def read_lines(path: Path | str) -> list[str]:
    """Read a file with one n-gram per line, plain or `.xz`; lines of 0 or 1 character are skipped.

    Raises:
        SubstrateError: the file is missing or damaged.
    """
    # splitlines would also split at a form feed or U+2028, which may be part of an n-gram.
    return [line for line in read_text(Path(path)).split("\n") if len(line) > 1]


def top(lists: Sequence[LanguageNgrams], k: int, lengths: Collection[int]) -> set[str]:
    """Return the distinct n-grams among the `k` most frequent of each language and length."""
    return {
        ngram
        for language in lists
        for length, ngrams in language.by_length.items()
        if length in lengths
        for ngram in ngrams[:k]
    }


def largest_k(lists: Sequence[LanguageNgrams], places: int, lengths: Collection[int]) -> int:
    """Return the largest k for which `top` returns at most `places` n-grams."""
    longest = max(len(ngrams) for language in lists for ngrams in language.by_length.values())
    return bisect.bisect_right(
        range(1, longest + 1), places, key=lambda k: len(top(lists, k, lengths))
    )


def ranked(lists: Sequence[LanguageNgrams]) -> list[str]:
    """Return all distinct n-grams sorted by their best rank in any language.

    A prefix of the result is approximately the result of `top` for some k. Among equal ranks,
    shorter n-grams come first, then those of earlier languages.
    """
    rank: dict[str, tuple[int, int, int]] = {}
    for place, language in enumerate(lists):
        for length, ngrams in language.by_length.items():
            for position, ngram in enumerate(ngrams):
                key = (position, length, place)
                if key < rank.get(ngram, (position + 1, 0, 0)):
                    rank[ngram] = key
    return sorted(rank, key=rank.__getitem__)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, decompressed if its name ends in `.xz`.

    Raises:
        SubstrateError: the file is missing, cannot be decompressed or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return (lzma.decompress(content) if path.suffix == ".xz" else content).decode("utf-8")
    except OSError as error:
        raise SubstrateError(f"{path}: {error.strerror}") from None
    except lzma.LZMAError as error:
        raise SubstrateError(f"{path}: damaged or not xz ({error})") from None
    except UnicodeDecodeError as error:
        raise SubstrateError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


class _Malformed(Exception):
    pass


_STRING = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_PAIR = rf"\({_STRING}, \d+\)"


class _Parser:
    """Parse the literal with regular expressions, which is much faster than `ast`."""

    _LANGUAGE = re.compile(
        rf"\{{'lang': ({_STRING}), 'language_name': {_STRING}, 'top_ngrams': \{{"
    )
    _LENGTH = re.compile(rf"(\d+): \[((?:{_PAIR}(?:, )?)*)\]")
    _NGRAM = re.compile(rf"\(({_STRING}), ")

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.position = 0

    def lists(self) -> list[LanguageNgrams]:
        self._skip("[")
        result = [self._language()]
        while self._skips(", "):
            result.append(self._language())
        self._skip("]")
        if self.position != len(self.text):
            raise self._malformed("the end")
        return result

    def _language(self) -> LanguageNgrams:
        (language,) = self._match(self._LANGUAGE, "{'lang': …, 'top_ngrams': {")
        by_length = dict([self._ngrams()])
        while self._skips(", "):
            length, ngrams = self._ngrams()
            by_length[length] = ngrams
        self._skip("}}")
        return LanguageNgrams(_string(language), by_length)

    def _ngrams(self) -> tuple[int, list[str]]:
        start = self.position
        length, pairs = self._match(self._LENGTH, "a length and its list of (n-gram, count) pairs")
        ngrams = [_string(literal) for literal in self._NGRAM.findall(pairs)]
        for ngram in ngrams:
            if len(ngram) != int(length):
                raise _Malformed(f"{ngram!r} among the {length}-grams after character {start}")
        return int(length), ngrams

    def _match(self, pattern: re.Pattern[str], expected: str) -> tuple[str, ...]:
        match = pattern.match(self.text, self.position)
        if match is None:
            raise self._malformed(expected)
        self.position = match.end()
        return match.groups()

    def _skips(self, literal: str) -> bool:
        found = self.text.startswith(literal, self.position)
        if found:
            self.position += len(literal)
        return found

    def _skip(self, literal: str) -> None:
        if not self._skips(literal):
            raise self._malformed(repr(literal))

    def _malformed(self, expected: str) -> _Malformed:
        found = self.text[self.position : self.position + 20]
        return _Malformed(
            f"expected {expected} at character {self.position}, found {found!r}"
            if found
            else f"expected {expected}, found the end of the file"
        )


def _string(literal: str) -> str:
    if "\\" not in literal:
        return literal[1:-1]
    try:
        return ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        raise _Malformed(f"the string {literal} has a broken escape") from None
