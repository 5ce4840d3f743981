"""The tokenizer: lossless conversion of text to ids and back.

It is byte-pair encoding over a `Vocabulary`, without normaliser, pre-tokenizer and post-processor,
and with a decoder that concatenates tokens. `decode(encode(text)) == text` for every text whose
characters are in the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models

from fastgrow._files import write_text
from fastgrow.errors import SubstrateError
from fastgrow.substrate.vocabulary import Kind, Vocabulary, describe

# The library's merging takes more than linear time in the length of a text, and uses one thread for
# each text. Texts are therefore cut into pieces of PIECE characters, which are merged in parallel.
# Its results take some hundred bytes per token, so at most GROUP pieces are encoded in one call.
PIECE = 8_192
GROUP = 512

_STEPS = ("normalizer", "pre_tokenizer", "post_processor")
_MODEL_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")

Unknown = Literal["error", "unk"]


class Tokenizer:
    """Encode and decode text with a vocabulary.

    The name of a special token in a text, such as "</s>", is encoded as ordinary characters unless
    `allow_special` is True. A file that `save` wrote recognises special tokens in text if it is
    loaded directly with the `tokenizers` library, which is that library's default.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._backend = _backend(vocabulary)
        # With this option the library encodes names of special tokens as text. It is not part of
        # the saved file.
        self._backend.encode_special_tokens = True

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Vocabulary]]:
        # Copies and pickles are rebuilt, because the library's own pickles lose this option.
        return Tokenizer, (self.vocabulary,)

    def encode(
        self, text: str, *, unknown: Unknown = "error", allow_special: bool = False
    ) -> list[int]:
        """Encode a text into ids.

        Args:
            text: text without lone surrogates.
            unknown: "error" raises an error for a character outside the vocabulary; "unk" encodes
                it as `<unk>`.
            allow_special: whether names of special tokens in the text are encoded as those tokens.

        Raises:
            SubstrateError: the text has an unknown character and `unknown` is "error", or it has a
                lone surrogate; the message has the character and its position.
        """
        return self.encode_batch([text], unknown=unknown, allow_special=allow_special)[0]

    def encode_batch(
        self, texts: Sequence[str], *, unknown: Unknown = "error", allow_special: bool = False
    ) -> list[list[int]]:
        """Encode several texts in parallel, see `encode`."""
        if unknown not in ("error", "unk"):
            raise SubstrateError(f"unknown={unknown!r}: expected 'error' or 'unk'")
        cut: list[list[str]] = []
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise SubstrateError(
                    f"text {index} of {len(texts)} is {type(text).__name__}, expected str"
                )
            cut.append(list(self._pieces(text, allow_special)))
        encoded = self._encode_pieces([piece for pieces in cut for piece in pieces], texts)
        specials = self.vocabulary.specials if allow_special else {}
        result = []
        for index, pieces in enumerate(cut):
            ids: list[int] = []
            position = 0
            for piece, piece_ids in zip(pieces, encoded, strict=False):
                if piece in specials:
                    ids.append(specials[piece])
                else:
                    if unknown == "error" and self.vocabulary.unk_id in piece_ids:
                        self._reject_unknown(piece, position, _of_text(index, texts))
                    ids.extend(piece_ids)
                position += len(piece)
            result.append(ids)
        return result

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Decode a sequence of ids into text.

        Args:
            ids: integers in [0, V).
            skip_special: whether to leave out special tokens and unused ids; otherwise their names
                are part of the text.

        Raises:
            SubstrateError: an id is out of range; the message has the id and its position.
        """
        strings = self._strings if skip_special else self.vocabulary.tokens
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < len(strings):
            position = next(i for i, id_ in enumerate(ids) if not 0 <= id_ < len(strings))
            raise SubstrateError(
                f"id {ids[position]} at position {position} is outside the vocabulary of "
                f"{len(strings):,} tokens"
            )
        return "".join([strings[id_] for id_ in ids])

    def save(self, path: Path | str) -> None:
        """Write a tokenizer.json that the `tokenizers` library can load."""
        write_text(path, self._backend.to_str())

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Load a tokenizer.json, written by `save` or by another program in the same form.

        Raises:
            SubstrateError: the file is missing, is not JSON, or contains a different kind of
                tokenizer (other merges, a normaliser, …); the message has the difference.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SubstrateError(f"{path}: no such file") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise SubstrateError(f"{path}: not a tokenizer.json ({error})") from None
        try:
            return cls(_vocabulary_of(content))
        except SubstrateError as error:
            raise SubstrateError(f"{path}: {error}") from None

    @cached_property
    def _strings(self) -> list[str]:
        """The text that each id is decoded to."""
        shown = self.vocabulary.kinds <= Kind.NGRAM
        return [
            token if show else ""
            for token, show in zip(self.vocabulary.tokens, shown.tolist(), strict=True)
        ]

    @cached_property
    def _joins(self) -> frozenset[str]:
        """The pairs of neighbouring characters that occur in an n-gram."""
        return frozenset(
            ngram[i : i + 2] for ngram in self.vocabulary.ngrams for i in range(len(ngram) - 1)
        )

    @cached_property
    def _special(self) -> re.Pattern[str]:
        names = sorted(self.vocabulary.specials, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def _pieces(self, text: str, allow_special: bool) -> Iterator[str]:
        """Cut a text such that the ids of its pieces are those of the whole text."""
        if allow_special:
            for part in self._special.split(text):
                yield from self._cut(part)
        else:
            yield from self._cut(text)

    def _cut(self, text: str) -> Iterator[str]:
        # A cut between two characters that are neighbours in no n-gram does not change the ids.
        start = 0
        while len(text) - start > PIECE:
            cut = start + PIECE
            while cut < len(text) and text[cut - 1 : cut + 1] in self._joins:
                cut += 1
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _encode_pieces(self, pieces: list[str], texts: Sequence[str]) -> Iterator[list[int]]:
        for start in range(0, len(pieces), GROUP):
            try:
                encodings = self._backend.encode_batch_fast(pieces[start : start + GROUP])
            except TypeError:
                _refuse_surrogates(texts)
                raise
            for encoding in encodings:
                yield encoding.ids

    def _reject_unknown(self, piece: str, start: int, of_text: str) -> None:
        ids, kinds = self.vocabulary.ids, self.vocabulary.kinds
        for position, character in enumerate(piece, start):
            id_ = ids.get(character)
            if id_ is None or kinds[id_] != Kind.CHARACTER:
                raise SubstrateError(
                    f"unknown character {describe(character)} at position {position}{of_text}; "
                    "to encode it as <unk>, set unknown to 'unk' where possible"
                )


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for index, text in enumerate(texts):
        found = re.search("[\ud800-\udfff]", text)
        if found:
            raise SubstrateError(
                f"lone surrogate U+{ord(found[0]):04X} at position {found.start()}"
                f"{_of_text(index, texts)}: the text is not valid Unicode (it may have been read "
                "from bytes that are not UTF-8)"
            )


def _of_text(index: int, texts: Sequence[str]) -> str:
    return f" of text {index}" if len(texts) > 1 else ""


def _backend(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    names = list(vocabulary.specials)
    unk = vocabulary.tokens[vocabulary.unk_id]
    model = models.BPE(vocab=dict(vocabulary.ids), merges=vocabulary.merges(), unk_token=unk)
    backend = tokenizers.Tokenizer(model)
    # Without a decoder the library joins tokens with spaces.
    backend.decoder = decoders.Sequence([])
    backend.add_special_tokens(names)
    return backend


def _vocabulary_of(content: Any) -> Vocabulary:
    """Return the vocabulary of a parsed tokenizer.json, after checking that the rest matches it."""
    try:
        model = content["model"]
        specials = [added["content"] for added in content["added_tokens"]]
        vocabulary = Vocabulary.from_ids(model["vocab"], specials)
        merges = [tuple(merge) for merge in model["merges"]]
        kind = model["type"]
        steps = {name: content[name] for name in _STEPS} | {
            name: model.get(name) for name in _MODEL_OPTIONS
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise SubstrateError(f"not a tokenizer.json ({type(error).__name__}: {error})") from None
    if kind != "BPE":
        raise SubstrateError(f"the tokenizer has type {kind!r}, expected 'BPE'")
    for name, step in steps.items():
        if step:
            raise SubstrateError(f"the tokenizer has {name} = {step!r}, expected null")
    expected = vocabulary.merges()
    if merges != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(merges, expected, strict=False)) if a != b),
            min(len(merges), len(expected)),
        )
        raise SubstrateError(
            f"the tokenizer has {len(merges):,} merges, expected {len(expected):,}; first "
            f"difference at merge {at}"
        )
    return vocabulary
