"""The vocabulary: the string of each token id.

There are two layouts. In the *full* layout of bvv241 ("Emergent Semantics Beyond Token Embeddings",
arXiv 2507.04886), the id of a character is its code point, and n-grams and special tokens have the
ids that Unicode reserves for surrogates and private use. The *compact* layout has special tokens,
then the requested characters by code point, then n-grams of those characters.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastgrow.errors import SubstrateError

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
REQUIRED_SPECIALS = (PAD, BOS, EOS, UNK)
SPECIALS = (
    *REQUIRED_SPECIALS,
    "<think>",
    "</think>",
    "<emotions>",
    "</emotions>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "[INST]",
    "[/INST]",
    "[EOT]",
    "[USER]",
    "[ASSISTANT]",
    "[FIM_PREFIX]",
    "[FIM_MIDDLE]",
    "[FIM_SUFFIX]",
    "[FIM_PAD]",
    "[REPO_NAME]",
    "[FILE_SEP]",
)

FULL_SIZES = (0x10000, 0x20000)
_CHARACTER_IDS = (range(0xD800), range(0xF900, 0xFFFF))
_SPECIAL_IDS = range(0xE000, 0xE100)
_NGRAM_IDS = (range(0xD800, 0xE000), range(0xE100, 0xF900), range(0x10000, 0x1FFFF))


class Kind(enum.IntEnum):
    """The kind of token of an id; HOLE is an unused id."""

    CHARACTER = 0
    NGRAM = 1
    SPECIAL = 2
    HOLE = 3


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """An immutable map from id to token.

    Attributes:
        tokens: the token of each id; `<unused_{id}>` for an unused id.
        specials: ids of special tokens by name; at least `<pad>`, `<s>`, `</s>` and `<unk>`.
        kinds: uint8 [V], the `Kind` of each id.
        ids: ids by token, the inverse of `tokens`.
        n_characters: int32 [V], number of characters of a token; 0 for special tokens and unused
            ids.
    """

    tokens: Sequence[str]
    specials: Mapping[str, int]
    kinds: np.ndarray
    ids: Mapping[str, int]
    n_characters: np.ndarray

    @classmethod
    def full(
        cls, ngrams: Iterable[str], *, size: int = 0x10000, truncate: bool = False
    ) -> Vocabulary:
        """Create a vocabulary in the full layout of bvv241, in which ids are code points.

        N-grams and special tokens have ids that Unicode assigns to no character.

        Args:
            ngrams: strings of at least two characters, in any order; duplicates are ignored. Ids
                are assigned to the longest n-grams first, in code-point order among equal lengths.
            size: 65,536 (8,192 ids for n-grams) or 131,072 (73,727 ids for n-grams).
            truncate: whether to drop n-grams for which there is no id instead of raising an error.

        Raises:
            SubstrateError: the size is unsupported, an n-gram has a character without an id or is
                the name of a special token, or there are more n-grams than ids for them.
        """
        if size not in FULL_SIZES:
            raise SubstrateError(
                f"size={size:,}: a full vocabulary has {FULL_SIZES[0]:,} or {FULL_SIZES[1]:,} "
                "tokens"
            )
        tokens: dict[int, str] = {id_: chr(id_) for ids in _CHARACTER_IDS for id_ in ids}
        specials = dict(zip(SPECIALS, _SPECIAL_IDS, strict=False))
        for id_ in _SPECIAL_IDS[len(SPECIALS) :]:
            specials[f"<special_token_{id_}>"] = id_

        ordered = placing_order(ngrams)
        places = [id_ for ids in _NGRAM_IDS for id_ in ids if id_ < size]
        if len(ordered) > len(places) and not truncate:
            raise SubstrateError(
                f"{len(ordered):,} n-grams do not fit into the {len(places):,} ids for n-grams of "
                f"a vocabulary of {size:,} tokens"
            )
        tokens.update(zip(places, ordered, strict=False))
        return cls._assemble(size, tokens, specials)

    @classmethod
    def compact(
        cls,
        characters: Iterable[str],
        ngrams: Iterable[str] = (),
        *,
        specials: Sequence[str] = REQUIRED_SPECIALS,
        n_ngrams: int | None = None,
        max_size: int | None = None,
    ) -> Vocabulary:
        """Create a vocabulary in the compact layout: specials, characters by code point, n-grams.

        Args:
            characters: single characters; duplicates are ignored.
            ngrams: candidates, best first. Those with other characters, and those that no sequence
                of merges within the vocabulary produces, are left out.
            specials: names of the special tokens in the order of their ids; the four required ones
                come first and need not be repeated. `SPECIALS` is the full list of bvv241.
            n_ngrams: maximum number of n-grams; the best ones are kept.
            max_size: maximum number of all tokens; the best n-grams are kept.

        Raises:
            SubstrateError: there are no characters, an item is not a single character, or
                `max_size` is less than the number of special tokens and characters.
        """
        names = tuple(dict.fromkeys((*REQUIRED_SPECIALS, *specials)))
        if short := [name for name in names if len(name) < 2]:
            raise SubstrateError(
                f"{short[0]!r} is too short to name a special token; expected at least 2 characters"
            )
        ordered = sorted(set(characters))
        if not ordered:
            raise SubstrateError("a vocabulary must have at least one character; none was given")
        for character in ordered:
            if len(character) != 1 or 0xD800 <= ord(character) < 0xE000:
                raise SubstrateError(f"{character!r}: expected a single character")
        n_fixed = len(names) + len(ordered)
        if max_size is not None:
            if n_fixed > max_size:
                raise SubstrateError(
                    f"{len(names)} special tokens and {len(ordered):,} characters do not fit a "
                    f"vocabulary of at most {max_size:,} tokens"
                )
            n_free = max_size - n_fixed
            n_ngrams = n_free if n_ngrams is None else min(n_ngrams, n_free)
        kept = placing_order(reachable(ngrams, ordered)[:n_ngrams])
        tokens = dict(enumerate((*ordered, *kept), start=len(names)))
        return cls._assemble(n_fixed + len(kept), tokens, _numbered(names))

    @classmethod
    def from_ids(cls, ids: Mapping[str, int], specials: Iterable[str]) -> Vocabulary:
        """Create a vocabulary from the id of each token, as listed in a tokenizer.json.

        Raises:
            SubstrateError: ids are missing or repeated, or a special token has no id.
        """
        names = set(specials)
        absent = sorted(names - ids.keys())
        if absent:
            raise SubstrateError(f"the special token {absent[0]!r} has no id")
        by_id = {id_: token for token, id_ in ids.items()}
        if by_id.keys() != set(range(len(ids))):
            gap = next(id_ for id_ in range(len(ids)) if id_ not in by_id)
            raise SubstrateError(
                f"{len(ids):,} tokens must have the ids 0 … {len(ids) - 1}; no token has id {gap}"
            )
        tokens = {
            id_: token for id_, token in by_id.items() if token not in names and token != _hole(id_)
        }
        return cls._assemble(len(ids), tokens, {by_id[i]: i for i in sorted(ids[n] for n in names)})

    @classmethod
    def _assemble(
        cls, size: int, tokens: Mapping[int, str], specials: Mapping[str, int]
    ) -> Vocabulary:
        """Check the tokens and create the vocabulary; ids that are not given are unused."""
        missing = [name for name in REQUIRED_SPECIALS if name not in specials]
        if missing:
            raise SubstrateError(f"the vocabulary has no special token {missing[0]!r}")
        strings = [_hole(id_) for id_ in range(size)]
        kinds = np.full(size, Kind.HOLE, np.uint8)
        n_characters = np.zeros(size, np.int32)
        for id_, token in tokens.items():
            strings[id_] = token
            kinds[id_] = Kind.CHARACTER if len(token) == 1 else Kind.NGRAM
            n_characters[id_] = len(token)
        for name, id_ in specials.items():
            strings[id_] = name
            kinds[id_] = Kind.SPECIAL
        ids = {token: id_ for id_, token in enumerate(strings)}
        if len(ids) != size:
            repeated = next(token for id_, token in enumerate(strings) if ids[token] != id_)
            raise SubstrateError(f"the vocabulary contains the token {repeated!r} twice")
        _check_ngrams(tokens.values())
        kinds.setflags(write=False)
        n_characters.setflags(write=False)
        return cls(tuple(strings), dict(specials), kinds, ids, n_characters)

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return not self.difference(other)

    def __hash__(self) -> int:
        return hash(self.tokens)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{kind.name.lower()}: {int((self.kinds == kind).sum())}" for kind in Kind
        )
        return f"Vocabulary({len(self)} tokens; {counts})"

    @property
    def pad_id(self) -> int:
        return self.specials[PAD]

    @property
    def bos_id(self) -> int:
        return self.specials[BOS]

    @property
    def eos_id(self) -> int:
        return self.specials[EOS]

    @property
    def unk_id(self) -> int:
        return self.specials[UNK]

    @property
    def characters(self) -> list[str]:
        """The single characters, in the order of their ids."""
        return self._of(Kind.CHARACTER)

    @property
    def ngrams(self) -> list[str]:
        """The n-grams, in the order of their ids."""
        return self._of(Kind.NGRAM)

    def _of(self, kind: Kind) -> list[str]:
        return [self.tokens[id_] for id_ in np.flatnonzero(self.kinds == kind).tolist()]

    def merges(self) -> list[tuple[str, str]]:
        """Return the BPE merges in order of priority.

        They are all splits of n-grams into two tokens: longest n-grams first, in the order of ids
        among equal lengths, and split points from left to right.
        """
        ngrams = self.ngrams
        halves = {*self.characters, *ngrams}
        return [
            (ngram[:split], ngram[split:])
            # The sort is stable: among equal lengths the order of ids is kept.
            for ngram in sorted(ngrams, key=len, reverse=True)
            for split in range(1, len(ngram))
            if ngram[:split] in halves and ngram[split:] in halves
        ]

    def difference(self, other: Vocabulary) -> str:
        """Describe the first difference from another vocabulary; "" if they are equal."""
        if len(self) != len(other):
            return f"{len(self):,} tokens against {len(other):,}"
        for id_, (mine, theirs) in enumerate(zip(self.tokens, other.tokens, strict=True)):
            if mine != theirs:
                return f"first difference at id {id_}: {mine!r} against {theirs!r}"
        differing = np.flatnonzero(self.kinds != other.kinds)
        if differing.size:
            id_ = int(differing[0])
            mine, theirs = (Kind(v.kinds[id_]).name.lower() for v in (self, other))
            return f"first difference at id {id_}: {self.tokens[id_]!r} is {mine} against {theirs}"
        return ""


def placing_order(ngrams: Iterable[str]) -> list[str]:
    """Return distinct n-grams in the order of bvv241: by descending length, then by code points."""
    return sorted(set(ngrams), key=lambda ngram: (-len(ngram), ngram))


def reachable(ngrams: Iterable[str], characters: Iterable[str]) -> list[str]:
    """Return the n-grams that merges can produce from `characters`, best first.

    A merge joins two tokens, so an n-gram is reachable only if it can be split into two tokens. The
    rank of an n-gram is the lowest position in `ngrams` up to which it and all parts of one such
    chain of splits are present. Therefore, merges can produce every prefix of the result.

    Args:
        ngrams: candidates, best first; of duplicates the first one counts.
        characters: the single characters of the vocabulary.
    """
    present_from = dict.fromkeys(characters, -1)
    candidates = [
        (position, ngram)
        for position, ngram in enumerate(dict.fromkeys(ngrams))
        if len(ngram) > 1 and all(character in present_from for character in ngram)
    ]
    for position, ngram in sorted(candidates, key=lambda candidate: len(candidate[1])):
        chains = [
            max(present_from[ngram[:split]], present_from[ngram[split:]])
            for split in range(1, len(ngram))
            if ngram[:split] in present_from and ngram[split:] in present_from
        ]
        if chains:
            present_from[ngram] = max(position, min(chains))
    return sorted(
        (ngram for ngram in present_from if len(ngram) > 1),
        key=lambda ngram: (present_from[ngram], len(ngram), ngram),
    )


def _hole(id_: int) -> str:
    return f"<unused_{id_}>"


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: id_ for id_, name in enumerate(names)}


def _check_ngrams(tokens: Iterable[str]) -> None:
    """Check that the characters of all n-grams are tokens."""
    characters: set[str] = set()
    ngrams: list[str] = []
    for token in tokens:
        if not token:
            raise SubstrateError("the empty string cannot be a token")
        if len(token) == 1:
            characters.add(token)
        else:
            ngrams.append(token)
    unknown = set().union(*ngrams) - characters
    if unknown:
        ngram = next(ngram for ngram in ngrams if unknown.intersection(ngram))
        character = next(character for character in ngram if character in unknown)
        raise SubstrateError(
            f"the n-gram {ngram!r} contains {describe(character)}, which is not a character of the "
            "vocabulary"
        )


def describe(character: str) -> str:
    """Return a character with its code point for error messages, such as `'é' (U+00E9)`."""
    return f"{character!r} (U+{ord(character):04X})"
