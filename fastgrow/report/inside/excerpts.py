"""Texts for samples: test text of the run if it is available, or else bundled text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgrow._files import read_json
from fastgrow.data import demo_splits
from fastgrow.errors import CheckpointError
from fastgrow.nn import SubstrateLike
from fastgrow.training.data.stream import token_dtype
from fastgrow.training.data.token_cache import default_cache_dir

_TOKENS = 90
_READ = 4096
_SCRIPTS = ("Latin", "Cyrillic", "Han")


@dataclass(frozen=True)
class Excerpt:
    """A piece of text.

    Attributes:
        text: text that the model's substrate can encode.
        origin: description of its source.
    """

    text: str
    origin: str

    @property
    def prompt(self) -> str:
        """The first words of the text."""
        head = self.text[:24]
        cut = head.rfind(" ", 8)
        if cut >= 0:
            return head[: cut + 1]
        return head[:8]


def own_excerpt(folder: Path, settings: Mapping[str, Any], substrate: Any) -> Excerpt | None:
    """Return the beginning of a text on which a run was tested, or None if it is not found.

    The text is identified by the hash in `run.json`. Token files are searched in the folder
    `tokens` in the run folder and next to it, and in the user's cache.

    Args:
        folder: folder of the run.
        settings: content of its `run.json`.
        substrate: substrate that decodes the tokens.
    """
    texts = settings.get("evaluate_on")
    if not isinstance(texts, Mapping):
        return None
    caches = [folder / "tokens", folder.parent / "tokens", default_cache_dir()]
    for name in sorted(texts, key=lambda name: name != "test"):
        for file, tokens in _token_files(caches, texts[name]):
            text = _first_document(file, tokens, substrate)
            if text:
                return Excerpt(text, f"the text “{name}” of {folder.name}")
    return None


def bundled_excerpts(substrate: Any) -> list[Excerpt]:
    """Return the beginnings of bundled test texts, in the scripts that the substrate has."""
    found = []
    for script in _SCRIPTS:
        for text in demo_splits(script).test:
            if set(text) <= substrate.vocabulary.ids.keys():
                found.append(Excerpt(_cut(text, substrate), f"bundled {script} test text"))
                break
    return found


def _token_files(caches: list[Path], digest: object) -> Iterator[tuple[Path, int]]:
    for cache in caches:
        for manifest in sorted([*cache.glob("*/manifest.json"), *cache.glob("*/*/manifest.json")]):
            try:
                splits = read_json(manifest)["splits"]
                named = [
                    (name, s["tokens"])
                    for name, s in splits.items()
                    if s["sha256"] == digest and isinstance(s["tokens"], int)
                ]
            except (CheckpointError, OSError, KeyError, TypeError, AttributeError):
                continue
            for name, tokens in named:
                yield manifest.parent / f"{name}.bin", tokens


def _first_document(file: Path, tokens: int, substrate: SubstrateLike) -> str:
    """Return the first long enough document at the beginning of the file, or else the longest."""
    dtype = token_dtype(len(substrate)).newbyteorder("<")
    if not file.is_file() or file.stat().st_size != tokens * dtype.itemsize:
        return ""
    ids = np.fromfile(file, dtype, count=_READ)
    if len(ids) == 0 or int(ids.max()) >= len(substrate):
        return ""
    documents = np.split(ids, np.flatnonzero(ids == substrate.bos_id)[1:])
    enough = [d for d in documents if len(d) >= _TOKENS // 2]
    chosen = enough[0] if enough else max(documents, key=len)
    return substrate.decode(chosen[:_TOKENS].tolist()).strip()


def _cut(text: str, substrate: SubstrateLike) -> str:
    return substrate.decode(substrate.encode(text[: 4 * _TOKENS])[:_TOKENS]).strip()
