"""The frozen substrate: the map from text to token ids and token vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fastgrow.errors import CheckpointError, SubstrateError
from fastgrow.substrate import storage
from fastgrow.substrate.drawing import Newline, unpack_bitmap
from fastgrow.substrate.recipe import DRAWINGS, Recipe
from fastgrow.substrate.table import (
    binary_table,
    first_equal_rows,
    principal_axes,
    principal_table,
)
from fastgrow.substrate.tokenizer import Tokenizer, Unknown
from fastgrow.substrate.vocabulary import REQUIRED_SPECIALS, Vocabulary, describe
from fastgrow.substrate.vocabulary_recipes import NgramSource, build_vocabulary


class Substrate:
    """A tokenizer and a frozen vector for each of its tokens (arXiv 2507.04886).

    A substrate is created by `build`, `from_vocabulary` or `load`, and is immutable. Tokens with
    the same glyph bitmap, such as Latin A, Greek Α and Cyrillic А, have bit-identical vectors;
    `collisions` returns them.

    Attributes:
        tokenizer: converts text to token ids and back.
        recipe: how the vectors are made.
        bits: uint8 `[V, recipe.n_bits / 8]`, the packed glyph bitmaps or codes that the vectors are
            computed from.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        recipe: Recipe,
        bits: np.ndarray,
        axes: np.ndarray | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.bits = bits
        self.bits.setflags(write=False)
        if axes is not None:
            self._axes = axes

    @classmethod
    def build(
        cls,
        recipe: str = "default",
        *,
        ngrams: NgramSource | None = None,
        scripts: Iterable[str] | None = None,
        blocks: Iterable[str] | None = None,
        characters: Iterable[str] | None = None,
        specials: Sequence[str] = REQUIRED_SPECIALS,
        n_ngrams: int | None = None,
        max_size: int | None = None,
        n_components: int | None = None,
        newline: Newline = "blank",
        cell: int | None = None,
        font: Path | str | None = None,
        codes: str | None = None,
        seed: int = 0,
    ) -> Substrate:
        """Build a substrate from the name of a recipe and options.

        By default it has 65,536 tokens: the Basic Multilingual Plane and common n-grams, drawn as
        bitmaps of 32 x 32 pixels. With `scripts`, `blocks` or `characters` it has only those
        characters and n-grams of them.

        Args:
            recipe: "default", "bvv241-2-3", "bvv241-max" or "bvv241-abs"; the latter three require
                the author's n-gram files.
            ngrams, scripts, blocks, characters, specials, n_ngrams, max_size: options of the
                vocabulary, see `build_vocabulary`.
            n_components: width of the vectors, at most the number of pixels; None for the number of
                pixels.
            newline: "blank" draws a newline like a space, as in the reference; "glyph" draws the
                newline's glyph.
            cell: side length of the bitmaps in pixels; None for that of the recipe.
            font: path of a TTF, OTF or BDF file; None for the embedded Unifont.
            codes: codes to use instead of glyph bitmaps: "id-16", "random-16", "random-64",
                "random-256" or "random-1024", each also with the suffix "-float".
            seed: random seed of random codes.

        Raises:
            SubstrateError: a name is unknown, options cannot be combined, or a file is missing or
                malformed.
        """
        vocabulary = build_vocabulary(
            recipe,
            ngrams=ngrams,
            scripts=scripts,
            blocks=blocks,
            characters=characters,
            specials=specials,
            n_ngrams=n_ngrams,
            max_size=max_size,
        )
        drawing = replace(DRAWINGS[recipe], newline=newline)
        if cell is not None:
            drawing = replace(drawing, cell=cell)
        path = None if font is None else os.fspath(font)
        return cls.from_vocabulary(vocabulary, Recipe(drawing, path, codes, seed, n_components))

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary, recipe: Recipe | None = None) -> Substrate:
        """Build a substrate for a given vocabulary; by default drawn as in bvv241-2-3."""
        recipe = recipe or Recipe()
        return cls(Tokenizer(vocabulary), recipe, recipe.make_bits(vocabulary.tokens))

    @classmethod
    def load(cls, path: Path | str) -> Substrate:
        """Load the substrate in a folder, which may be the folder of a model.

        Raises:
            CheckpointError: a file is missing, damaged, or was not saved together with the other
                files; the message names the file and the difference.
            SubstrateError: tokenizer.json is missing or damaged.
        """
        folder = Path(path)
        tokenizer, header, tensors = storage.read(folder)
        bits = tensors.get("bits")
        if bits is None:
            bits = header.recipe.make_bits(tokenizer.vocabulary.tokens)
        recipe, n_tokens = header.recipe, len(tokenizer.vocabulary)
        if bits.shape != (n_tokens, -(-recipe.n_bits // 8)):
            raise CheckpointError(
                f"{folder / storage.PACKED}: bits of shape {list(bits.shape)}, expected "
                f"{[n_tokens, -(-recipe.n_bits // 8)]} for the tokens of {storage.TOKENIZER}"
            )
        substrate = cls(tokenizer, recipe, bits, tensors.get("axes"))
        for name, file in (("vocabulary", storage.TOKENIZER), ("bits", storage.RECIPE)):
            found = substrate._digests[name]
            storage.check_digest(folder / file, name, found, header.digests.get(name))
        if substrate.fingerprint != header.fingerprint:
            raise CheckpointError(
                f"{folder}: the substrate's fingerprint is {substrate.fingerprint}, expected "
                f"{header.fingerprint} as saved: its parameters have changed"
            )
        return substrate

    def save(self, path: Path | str, *, as_recipe: bool = False) -> None:
        """Save the substrate to a folder: tokenizer.json and substrate.safetensors.

        Args:
            path: the folder; other files in it, such as those of a model, are not changed.
            as_recipe: write a small substrate.json instead of the bits. Loading then draws the bits
                and computes the principal axes again, which may differ in the last digits.

        Raises:
            SubstrateError: `as_recipe` is True and the glyphs come from a font file.
        """
        if as_recipe and self.recipe.font is not None:
            raise SubstrateError(
                f"the glyphs come from {self.recipe.font}, which a recipe does not contain; "
                "use as_recipe=False to save the bits"
            )
        tensors = {"bits": self.bits}
        if self.recipe.is_real:
            tensors["axes"] = self._axes
        digests = dict(self._digests)
        if not as_recipe and self.recipe.is_real:
            digests["axes"] = storage.digest(self._axes.tobytes())
        header = storage.Header(self.recipe, self.fingerprint, digests)
        storage.write(Path(path), self.tokenizer, header, None if as_recipe else tensors)

    def __len__(self) -> int:
        return len(self.bits)

    def __repr__(self) -> str:
        source = self.recipe.codes or f"{self.recipe.drawing.cell} x {self.recipe.drawing.cell}"
        return f"Substrate({len(self):,} tokens, {source}, n_embed={self.n_embed})"

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    @property
    def n_characters(self) -> np.ndarray:
        """Number of characters of each token, int32 [V]; 0 for special tokens and unused ids."""
        return self.vocabulary.n_characters

    @property
    def pad_id(self) -> int:
        return self.vocabulary.pad_id

    @property
    def bos_id(self) -> int:
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int:
        return self.vocabulary.eos_id

    @property
    def unk_id(self) -> int:
        return self.vocabulary.unk_id

    @property
    def n_embed(self) -> int:
        """Width of the vectors."""
        return self.recipe.n_embed

    @cached_property
    def table(self) -> np.ndarray:
        """The vectors, float32 `[V, n_embed]`: rows of unit length, or bits as 0 and 1."""
        if not self.recipe.is_real:
            return binary_table(self.bits, self.recipe.n_bits)
        return principal_table(self.bits, self._axes)

    @property
    def packed_table(self) -> np.ndarray | None:
        """The vectors as packed bits, uint8 `[V, n_embed / 8]`; None if they are real numbers.

        Each call returns the same array.
        """
        return None if self.recipe.is_real else self.bits

    @cached_property
    def _axes(self) -> np.ndarray:
        return principal_axes(self.bits, self.recipe.n_bits, self.recipe.n_embed)

    @property
    def bitmaps(self) -> np.ndarray:
        """The packed glyph bitmaps, uint8 `[V, cell * cell / 8]`, 1 is ink, in polar pixel order.

        Raises:
            SubstrateError: this substrate is made of codes.
        """
        if self.recipe.codes is not None:
            raise SubstrateError(f"a substrate of codes {self.recipe.codes!r} has no glyph bitmaps")
        return self.bits

    def bitmap(self, token: str | int) -> np.ndarray:
        """Return the glyph bitmap of a token, bool `[cell, cell]` in row-major order; True is ink.

        Raises:
            SubstrateError: there is no such token or id, or the substrate is made of codes.
        """
        bitmaps = self.bitmaps
        return unpack_bitmap(bitmaps[self._id(token)], self.recipe.drawing.cell)

    def _id(self, token: str | int) -> int:
        if isinstance(token, str):
            if token not in self.vocabulary.ids:
                raise SubstrateError(f"no token {token!r} in this vocabulary")
            return self.vocabulary.ids[token]
        if not 0 <= token < len(self):
            raise SubstrateError(f"id {token} is outside the vocabulary of {len(self):,} tokens")
        return int(token)

    def encode(
        self, text: str, unknown: Unknown = "error", *, allow_special: bool = False
    ) -> list[int]:
        """Encode a text into ids, see `Tokenizer.encode`."""
        return self.tokenizer.encode(text, unknown=unknown, allow_special=allow_special)

    def encode_batch(
        self, texts: Sequence[str], unknown: Unknown = "error", *, allow_special: bool = False
    ) -> list[list[int]]:
        """Encode several texts into ids, see `Tokenizer.encode_batch`."""
        return self.tokenizer.encode_batch(texts, unknown=unknown, allow_special=allow_special)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Decode a sequence of ids into text, see `Tokenizer.decode`."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    @cached_property
    def _digests(self) -> dict[str, str]:
        vocabulary = self.vocabulary
        content = json.dumps(
            [list(vocabulary.tokens), dict(vocabulary.specials), vocabulary.kinds.tolist()]
        )
        return {
            "vocabulary": storage.digest(content.encode()),
            "bits": storage.digest(self.bits.tobytes()),
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary, bits and parameters; the same on every machine.

        The vectors are not included, because their last digits depend on the machine's linear
        algebra library.
        """
        content = json.dumps({**self._digests, **self.recipe.parameters}, sort_keys=True)
        return storage.digest(content.encode())

    def difference(self, other: Substrate) -> str:
        """Describe the first difference from another substrate; "" if fingerprints are equal."""
        if self.fingerprint == other.fingerprint:
            return ""
        vocabulary = self.vocabulary.difference(other.vocabulary)
        if vocabulary:
            return f"vocabularies: {vocabulary}"
        theirs = other.recipe.parameters
        for name, mine in self.recipe.parameters.items():
            if mine != theirs[name]:
                return f"{name}: {mine} against {theirs[name]}"
        differing = np.flatnonzero((self.bits != other.bits).any(axis=1))
        what = "glyph bitmaps" if self.recipe.codes is None else "codes"
        token = self.vocabulary.tokens[int(differing[0])]
        return f"{what} of {len(differing):,} tokens, first at id {differing[0]} ({token!r})"

    def collisions(self) -> list[list[int]]:
        """Return groups of ids with equal vectors, each in ascending order, sorted by first id."""
        first = first_equal_rows(self.bits)
        members: dict[int, list[int]] = {}
        for id_ in np.flatnonzero(np.bincount(first, minlength=len(self))[first] > 1).tolist():
            members.setdefault(int(first[id_]), []).append(id_)
        return list(members.values())

    def describe_collisions(self, limit: int = 10) -> str:
        """Describe `collisions`: the number of distinct vectors, and the first `limit` groups."""
        groups = self.collisions()
        if not groups:
            return f"all {len(self):,} tokens have distinct vectors"
        distinct = len(self) - sum(len(group) - 1 for group in groups)
        lines = [
            f"{distinct:,} distinct vectors for {len(self):,} tokens; a model cannot distinguish "
            f"the tokens within each of {len(groups):,} groups:"
        ]
        for group in groups[:limit]:
            tokens = [self.vocabulary.tokens[id_] for id_ in group]
            lines.append(
                "  " + " = ".join(map(_named, tokens[:limit])) + " …" * (len(tokens) > limit)
            )
        if len(groups) > limit:
            lines.append(f"  and {len(groups) - limit:,} more groups")
        return "\n".join(lines)


def _named(token: str) -> str:
    return describe(token) if len(token) == 1 else repr(token)
