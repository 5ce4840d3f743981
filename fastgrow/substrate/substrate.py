"""The frozen substrate: text to ids to vectors, as one object with one fingerprint."""

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

    Made by `build`, `from_vocabulary` or `load`; it never changes. Tokens that look the same, such
    as Latin A, Greek Α and Cyrillic А, have the same vector, to the last digit: `collisions` lists
    them.

    Attributes:
        tokenizer: text to ids and back.
        recipe: how the vectors are made.
        bits: uint8 `[V, recipe.n_bits / 8]`, what they are made from: packed pictures or codes.
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
        """Build a substrate from a recipe's name and options.

        Without options it has 65,536 tokens: the Basic Multilingual Plane and common n-grams, drawn
        in 32 x 32 pixels. With `scripts`, `blocks` or `characters` it has those tokens only.

        Args:
            recipe: "default", "bvv241-2-3", "bvv241-max" or "bvv241-abs"; the latter three need
                the author's n-gram files.
            ngrams, scripts, blocks, characters, specials, n_ngrams, max_size: the vocabulary, see
                `build_vocabulary`.
            n_components: width of the vectors, at most the number of pixels; all by default.
            newline: "blank" as in the reference, where it looks like a space, or "glyph" to draw
                the newline's own picture.
            cell: side of the pictures in pixels, instead of the recipe's.
            font: a TTF, OTF or BDF file, instead of the embedded Unifont.
            codes: "id-16" or "random-16", "-64", "-256", "-1024", each also with "-float" behind:
                codes in place of pictures.
            seed: of random codes.

        Raises:
            SubstrateError: an unknown name, options that do not go together, or a file that is
                missing or malformed.
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
        """Build a substrate for a vocabulary at hand; by default drawn as bvv241-2-3."""
        recipe = recipe or Recipe()
        return cls(Tokenizer(vocabulary), recipe, recipe.make_bits(vocabulary.tokens))

    @classmethod
    def load(cls, path: Path | str) -> Substrate:
        """Read the substrate in a folder, which may be a model's.

        Raises:
            CheckpointError: a file is missing, damaged, or not the one that was saved with the
                rest; the message says which and what differs.
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
                f"{folder}: the substrate's fingerprint is {substrate.fingerprint}, "
                f"but it was saved as {header.fingerprint}: its parameters have changed"
            )
        return substrate

    def save(self, path: Path | str, *, as_recipe: bool = False) -> None:
        """Write the substrate into a folder: tokenizer.json and substrate.safetensors.

        Args:
            path: the folder; files of others in it, such as a model's, are left alone.
            as_recipe: write a small substrate.json in place of the bits; loading makes them again,
                and computes the principal axes again, which may differ in the last digits.

        Raises:
            SubstrateError: `as_recipe` for pictures that come from a font file.
        """
        if as_recipe and self.recipe.font is not None:
            raise SubstrateError(
                f"the pictures come from {self.recipe.font}, which a recipe does not hold: "
                "save the bits"
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
        """Characters that each token stands for, int32 [V]."""
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
        """The vectors as packed bits, uint8 `[V, n_embed / 8]`, where they are codes of 0 and 1.

        None where they are real numbers. It is the same array at every call.
        """
        return None if self.recipe.is_real else self.bits

    @cached_property
    def _axes(self) -> np.ndarray:
        return principal_axes(self.bits, self.recipe.n_bits, self.recipe.n_embed)

    @property
    def bitmaps(self) -> np.ndarray:
        """The pictures, packed: uint8 `[V, cell * cell / 8]`, 1 is ink, pixels in polar order.

        Raises:
            SubstrateError: this substrate is made of codes.
        """
        if self.recipe.codes is not None:
            raise SubstrateError(f"a substrate of codes {self.recipe.codes!r} has no pictures")
        return self.bits

    def bitmap(self, token: str | int) -> np.ndarray:
        """The picture of one token, bool `[cell, cell]`, row by row; True is ink.

        Raises:
            SubstrateError: no such token or id, or a substrate made of codes.
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
        """The ids of a text, see `Tokenizer.encode`."""
        return self.tokenizer.encode(text, unknown=unknown, allow_special=allow_special)

    def encode_batch(
        self, texts: Sequence[str], unknown: Unknown = "error", *, allow_special: bool = False
    ) -> list[list[int]]:
        """The ids of several texts, see `Tokenizer.encode_batch`."""
        return self.tokenizer.encode_batch(texts, unknown=unknown, allow_special=allow_special)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of a sequence of ids, see `Tokenizer.decode`."""
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
        """SHA-256 of vocabulary, bits and parameters: the same on every machine.

        The vectors are not part of it: their last digits depend on the machine's linear algebra.
        """
        content = json.dumps({**self._digests, **self.recipe.parameters}, sort_keys=True)
        return storage.digest(content.encode())

    def difference(self, other: Substrate) -> str:
        """What sets another substrate apart, in words; "" where the fingerprints are equal."""
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
        what = "pictures" if self.recipe.codes is None else "codes"
        token = self.vocabulary.tokens[int(differing[0])]
        return f"{what} of {len(differing):,} tokens, the first id {differing[0]} ({token!r})"

    def collisions(self) -> list[list[int]]:
        """Groups of ids whose vectors are equal, each in rising order, by their first id."""
        first = first_equal_rows(self.bits)
        members: dict[int, list[int]] = {}
        for id_ in np.flatnonzero(np.bincount(first, minlength=len(self))[first] > 1).tolist():
            members.setdefault(int(first[id_]), []).append(id_)
        return list(members.values())

    def describe_collisions(self, limit: int = 10) -> str:
        """A report of `collisions`: how many vectors are distinct, and the first `limit` groups."""
        groups = self.collisions()
        if not groups:
            return f"all {len(self):,} tokens have vectors of their own"
        distinct = len(self) - sum(len(group) - 1 for group in groups)
        lines = [
            f"{distinct:,} distinct vectors for {len(self):,} tokens; a model cannot tell apart "
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
