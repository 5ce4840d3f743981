"""Save and load a substrate.

    tokenizer.json          the vocabulary and its merges, for the `tokenizers` library
    substrate.safetensors   the bits and, if there are any, the principal axes; or
    substrate.json          only the recipe, from which both are computed again

The second file, in either form, also contains the recipe and the digests of the saved content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from fastgrow._files import atomic_file, atomic_folder, read_json, write_json
from fastgrow.errors import CheckpointError, SubstrateError
from fastgrow.substrate.recipe import Recipe
from fastgrow.substrate.tokenizer import Tokenizer

TOKENIZER, PACKED, RECIPE = "tokenizer.json", "substrate.safetensors", "substrate.json"
FORMAT = 1


@dataclass(frozen=True)
class Header:
    """The description of a substrate that both forms contain.

    Attributes:
        recipe: how bits and vectors were made.
        fingerprint: fingerprint of the substrate.
        digests: SHA-256 of the vocabulary, the bits and, if stored, the axes.
    """

    recipe: Recipe
    fingerprint: str
    digests: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "digests": {**self.digests, "recipe": _recipe_digest(self.recipe)},
            "recipe": self.recipe.to_json(),
        }

    @classmethod
    def from_json(cls, content: Any, file: Path) -> Header:
        """Inverse of `to_json`.

        Raises:
            CheckpointError: `content` does not describe a substrate, or has a different format.
        """
        try:
            found = content["format"]
            if found == FORMAT:
                recipe, digests = Recipe.from_json(content["recipe"]), dict(content["digests"])
                check_digest(file, "recipe", _recipe_digest(recipe), digests.pop("recipe"))
                return cls(recipe, content["fingerprint"], digests)
        except (KeyError, TypeError, SubstrateError) as error:
            raise CheckpointError(f"{file}: does not describe a substrate ({error})") from None
        raise CheckpointError(
            f"{file}: has format {found}, this version of fastgrow reads format {FORMAT}"
        )


def write(
    folder: Path,
    tokenizer: Tokenizer,
    header: Header,
    tensors: Mapping[str, np.ndarray] | None,
) -> None:
    """Write a substrate; `tensors` are "bits" and "axes", or None to save only the recipe.

    A folder that contains only a substrate is replaced atomically. In a folder with other files,
    each file of the substrate is replaced atomically.
    """
    names = (TOKENIZER, PACKED, RECIPE)
    if not folder.is_dir() or all(entry.name in names for entry in folder.iterdir()):
        with atomic_folder(folder, owned=names) as temporary:
            _write_files(temporary, tokenizer, header, tensors)
    else:
        _write_files(folder, tokenizer, header, tensors)


def _write_files(
    folder: Path,
    tokenizer: Tokenizer,
    header: Header,
    tensors: Mapping[str, np.ndarray] | None,
) -> None:
    tokenizer.save(folder / TOKENIZER)
    if tensors is None:
        write_json(folder / RECIPE, header.to_json())
        (folder / PACKED).unlink(missing_ok=True)
        return
    metadata = {"substrate": json.dumps(header.to_json()), "fingerprint": header.fingerprint}
    with atomic_file(folder / PACKED) as temporary:
        safetensors.numpy.save_file(dict(tensors), temporary, metadata=metadata)
    (folder / RECIPE).unlink(missing_ok=True)


def read(folder: Path) -> tuple[Tokenizer, Header, dict[str, np.ndarray]]:
    """Read the files that `write` wrote; the tensors are empty if only the recipe was saved.

    Raises:
        CheckpointError: a file is missing, damaged or of a different format; the message names it.
        SubstrateError: tokenizer.json is missing or damaged.
    """
    packed, recipe = folder / PACKED, folder / RECIPE
    if packed.is_file():
        content, tensors = _read_packed(packed)
        header = Header.from_json(content, packed)
        for name in header.digests.keys() - {"vocabulary"}:
            if name not in tensors:
                raise CheckpointError(f"{packed}: the tensor {name!r} is missing")
            check_digest(packed, name, digest(tensors[name].tobytes()), header.digests[name])
    elif recipe.is_file():
        header, tensors = Header.from_json(read_json(recipe), recipe), {}
    else:
        raise CheckpointError(f"{folder}: no substrate found (neither {PACKED} nor {RECIPE})")
    return Tokenizer.load(folder / TOKENIZER), header, tensors


def _read_packed(file: Path) -> tuple[Any, dict[str, np.ndarray]]:
    try:
        with safe_open(file, framework="numpy") as content:
            header = json.loads((content.metadata() or {})["substrate"])
            return header, {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a valid safetensors file ({error})") from None
    except (KeyError, ValueError):
        raise CheckpointError(f"{file}: does not describe a substrate") from None


def check_digest(file: Path, name: str, found: str, expected: str | None) -> None:
    """Raise `CheckpointError` if the digest differs from that of the saved content."""
    if found != expected:
        raise CheckpointError(
            f"{file}: {name} changed since the substrate was saved: SHA-256 is {found[:16]}…, "
            f"expected {str(expected)[:16]}…"
        )


def _recipe_digest(recipe: Recipe) -> str:
    return digest(json.dumps(recipe.to_json(), sort_keys=True).encode())


def digest(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()
