"""Lists of n-grams, and how bvv241 chooses from them.

A list holds, for several languages, the most frequent n-grams of each length, best first. A
vocabulary takes the top k of every language and length.
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
    """The n-grams of one language: by length, best first."""

    language: str
    by_length: dict[int, list[str]]


@functools.cache
def bundled() -> tuple[LanguageNgrams, ...]:
    """2- and 3-grams of the Universal Declaration of Human Rights in 32 languages."""
    content = json.loads(data.read("ngrams-udhr.json.xz"))
    return tuple(
        LanguageNgrams(language, {int(n): ngrams.split(" ") for n, ngrams in by_length.items()})
        for language, by_length in content.items()
    )


def read_lists(path: Path | str) -> list[LanguageNgrams]:
    """Read a file of the author's form: a Python literal, plain or `.xz`.

    The literal is a list of `{'lang': str, 'language_name': str, 'top_ngrams': {n: [(str, count),
    …]}}`, written as `repr` writes it. It is parsed, never evaluated.

    Raises:
        SubstrateError: the file is missing, damaged or of another form; the message says where.
    """
    path = Path(path)
    try:
        return _Parser(read_text(path)).lists()
    except _Malformed as error:
        raise SubstrateError(f"{path}: not a list of n-grams: {error}") from None


def read_lines(path: Path | str) -> list[str]:
    """Read a file of one n-gram a line, plain or `.xz`; single characters and "" are left out.

    Raises:
        SubstrateError: the file is missing or damaged.
    """
    # Not splitlines: a form feed or a U+2028 may be part of an n-gram.
    return [line for line in read_text(Path(path)).split("\n") if len(line) > 1]


def top(lists: Sequence[LanguageNgrams], k: int, lengths: Collection[int]) -> set[str]:
    """The distinct n-grams among the `k` best of every language and length."""
    return {
        ngram
        for language in lists
        for length, ngrams in language.by_length.items()
        if length in lengths
        for ngram in ngrams[:k]
    }


def largest_k(lists: Sequence[LanguageNgrams], places: int, lengths: Collection[int]) -> int:
    """The largest k of `top` whose distinct n-grams number at most `places`."""
    longest = max(len(ngrams) for language in lists for ngrams in language.by_length.values())
    return bisect.bisect_right(
        range(1, longest + 1), places, key=lambda k: len(top(lists, k, lengths))
    )


def ranked(lists: Sequence[LanguageNgrams]) -> list[str]:
    """All distinct n-grams by their best rank in any language; a prefix is near some `top`.

    Ties go to the shorter n-gram, then to the earlier language.
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
    """The text of a UTF-8 file, decompressed where its name ends in `.xz`.

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
    """Reads the literal with regular expressions: the general parser takes far longer."""

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
