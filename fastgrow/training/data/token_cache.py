"""Disk cache of encoded splits, addressed by the content they were made from.

A cache entry is a folder named by a hash of the request (hashes of the sources, the substrate's
fingerprint, split, seed, …). It contains `train.bin`, `validation.bin`, `test.bin` (raw
little-endian ids) and `manifest.json` (request, counts and SHA-256 of each file). An entry is
written atomically.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastgrow._files import atomic_folder, read_json, sha256_file
from fastgrow.errors import CheckpointError, DataError
from fastgrow.nn import SubstrateLike
from fastgrow.training.data.encoding import SPLITS, EncodedDocument
from fastgrow.training.data.stream import TokenStream, token_dtype

_MANIFEST = "manifest.json"
_FORMAT = 1


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/fastgrow/tokens`, by default `~/.cache/fastgrow/tokens`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fastgrow" / "tokens"


def entry_path(cache_dir: Path, request: dict[str, Any]) -> Path:
    """Return the folder of a request's cache entry."""
    text = json.dumps([_FORMAT, request], sort_keys=True)
    return cache_dir / hashlib.sha256(text.encode()).hexdigest()[:32]


def open_entry(
    path: Path, request: dict[str, Any], substrate: SubstrateLike
) -> dict[str, TokenStream] | None:
    """Return the memory-mapped streams of an entry; None if it is missing or damaged.

    A damaged entry issues a warning.
    """
    if not path.exists():
        return None
    try:
        return _open(path, request, substrate)
    except (CheckpointError, KeyError, TypeError) as error:
        warnings.warn(
            f"token cache is damaged and will be rebuilt: {error}", RuntimeWarning, stacklevel=2
        )
        return None


def _open(path: Path, request: dict[str, Any], substrate: SubstrateLike) -> dict[str, TokenStream]:
    manifest = read_json(path / _MANIFEST)
    if manifest["request"] != request:
        raise CheckpointError(f"{path / _MANIFEST}: describes different data")
    dtype = token_dtype(len(substrate)).newbyteorder("<")
    streams = {}
    for name in SPLITS:
        entry, file = manifest["splits"][name], path / f"{name}.bin"
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing")
        digest = sha256_file(file)
        if digest != entry["sha256"]:
            raise CheckpointError(f"{file}: SHA-256 is {digest}, expected {entry['sha256']}")
        # An empty file cannot be memory-mapped.
        ids = np.memmap(file, dtype=dtype, mode="r") if entry["tokens"] else np.zeros(0, dtype)
        streams[name] = TokenStream(
            ids,
            substrate,
            n_documents=entry["documents"],
            n_characters=entry["characters"],
            name=name,
            digest=digest,
        )
    return streams


def write_entry(
    path: Path,
    request: dict[str, Any],
    documents: Iterable[EncodedDocument],
    substrate: SubstrateLike,
    *,
    source: str,
) -> None:
    """Write all encoded documents to a cache entry.

    Args:
        path: folder of the entry, from `entry_path`.
        request: identity of the sources and settings.
        documents: encoded documents, from `encode_documents`.
        substrate: substrate of the ids.
        source: name of the source, stored in the manifest for information.

    Raises:
        DataError: the entry cannot be written, or a document cannot be encoded.
    """
    owned = [_MANIFEST, *(f"{name}.bin" for name in SPLITS)]
    try:
        with atomic_folder(path, owned=owned) as folder, contextlib.ExitStack() as files:
            writers = {
                name: _SplitWriter(files.enter_context((folder / f"{name}.bin").open("wb")))
                for name in SPLITS
            }
            for document in documents:
                writers[document.split].write(document.ids, substrate)
            files.close()
            manifest = {
                "format": _FORMAT,
                "source": source,
                "request": request,
                "vocab_size": len(substrate),
                "dtype": token_dtype(len(substrate)).name,
                "splits": {name: writer.summary() for name, writer in writers.items()},
            }
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: the token cache cannot be written ({error.strerror or error}); "
            "choose another cache_dir"
        ) from error


class _SplitWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._tokens = 0
        self._documents = 0
        self._characters = 0

    def write(self, ids: np.ndarray, substrate: SubstrateLike) -> None:
        data = ids.astype(ids.dtype.newbyteorder("<"), copy=False).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._tokens += len(ids)
        self._documents += 1
        self._characters += int(substrate.n_characters[ids].sum())

    def summary(self) -> dict[str, Any]:
        return {
            "tokens": self._tokens,
            "documents": self._documents,
            "characters": self._characters,
            "sha256": self._digest.hexdigest(),
        }
