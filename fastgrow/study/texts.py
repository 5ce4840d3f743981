"""The study's texts: files → documents → four splits → token streams on a substrate."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastgrow.errors import ConfigError, DataError
from fastgrow.study.settings import DocumentSettings, StudySubstrate, TextSettings
from fastgrow.substrate import Substrate
from fastgrow.training import Mixture, TextData


@dataclass(frozen=True)
class Documents:
    """A text's documents by split; no document is in two splits."""

    train: list[str]
    validation: list[str]
    test: list[str]
    tuning: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 of all documents in their order and splits."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test, self.tuning):
            for text in part:
                digest.update(text.encode() + b"\0")
            digest.update(b"\1")
        return digest.hexdigest()


def read_documents(
    name: str, settings: TextSettings, documents: DocumentSettings, folders: Sequence[Path]
) -> Documents:
    """Read a text and split its documents, in an order given by hashes of their content.

    The order depends only on the documents, not on the seed of a run or the order of the files.

    Args:
        name: name of the text, for error messages.
        settings: settings of the text, such as its files.
        documents: sizes of the documents and splits.
        folders: folders in which relative file names are searched; the first match is used.

    Raises:
        ConfigError: a file is missing.
        DataError: a file is not UTF-8, or the text is too short for its splits.
    """
    pieces: dict[str, None] = {}
    for file in settings.files:
        path = _find(file, folders)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error})") from None
        pieces.update(dict.fromkeys(_pieces(text.splitlines(), documents.characters)))
    rest = iter(sorted(pieces, key=lambda text: hashlib.blake2b(text.encode()).digest()))
    validation, test, tuning = (
        _take(rest, size) for size in (documents.validation, documents.test, documents.tuning)
    )
    train = list(rest) if settings.max_characters is None else _take(rest, settings.max_characters)
    if not train:
        raise DataError(
            f"text {name!r}: no document is left for training; all {len(pieces)} are used for "
            "validation, test and tuning. Give more text, or lower documents.validation, "
            "documents.test or documents.tuning"
        )
    return Documents(train, validation, test, tuning)


def _find(file: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    tried = ", ".join(str(folder) for folder in folders)
    raise ConfigError(
        f"{file}: no such file in {tried}; give the folder of the texts by --data or the "
        "environment variable FASTGROW_DATA"
    )


def _pieces(lines: Iterable[str], characters: int) -> Iterator[str]:
    """Join consecutive lines into texts of at least `characters` characters."""
    held: list[str] = []
    size = 0
    for line in lines:
        if not line.strip():
            continue
        held.append(line)
        size += len(line) + 1
        if size >= characters:
            yield "\n".join(held)
            held, size = [], 0
    if held:
        yield "\n".join(held)


def _take(documents: Iterator[str], characters: int) -> list[str]:
    """Take documents until they have at least `characters` characters."""
    taken = []
    while characters > 0 and (text := next(documents, None)) is not None:
        taken.append(text)
        characters -= len(text)
    return taken


def build_substrate(
    texts: Mapping[str, Documents], settings: StudySubstrate, specials: int = 4
) -> Substrate:
    """Build a substrate of the most frequent characters of all training documents.

    Args:
        texts: documents of the texts by name.
        settings: settings of the substrate.
        specials: number of special tokens in the vocabulary.
    """
    counts: Counter[str] = Counter()
    for documents in texts.values():
        for text in documents.train:
            counts.update(text)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return Substrate.build(
        characters=ranked[: settings.max_size - specials],
        n_ngrams=0,
        n_components=settings.n_components,
        codes=settings.codes,
        newline="glyph",
        seed=settings.seed,
    )


@dataclass
class Corpus:
    """All texts, tokenized with one substrate; each is tokenized once, into the cache folder."""

    texts: Mapping[str, Documents]
    substrate: Substrate
    cache: Path
    _encoded: dict[tuple[str, tuple[int, int] | None], TextData] = field(default_factory=dict)

    def text(self, name: str, part: tuple[int, int] | None = None) -> TextData:
        """Return a text's training, validation and test tokens.

        Args:
            name: name of the text.
            part: (i, n) for training documents of part i of n only; None for all.
        """
        if (name, part) not in self._encoded:
            documents = self.texts[name]
            # The documents are in random order already, so every n-th one makes a random part.
            train = documents.train if part is None else documents.train[part[0] :: part[1]]
            self._encoded[name, part] = self._encode(train, documents.validation, documents.test)
        return self._encoded[name, part]

    def mixture(self, shares: Mapping[str, float], part: tuple[int, int] | None = None) -> Mixture:
        """Return a mixture of texts with the given sampling weights."""
        return Mixture([(self.text(name, part), share) for name, share in shares.items()])

    def tuning(self, names: Sequence[str]) -> Mixture:
        """Return a mixture of the texts' tuning documents with equal weights.

        A fifth of each text's tuning documents is used for validation.

        Raises:
            DataError: a text has fewer than two tuning documents.
        """
        parts = []
        for name in names:
            documents = self.texts[name].tuning
            if len(documents) < 2:
                raise DataError(
                    f"text {name!r}: expected at least 2 tuning documents, got {len(documents)}; "
                    "raise documents.tuning"
                )
            held_out = max(1, len(documents) // 5)
            parts.append((self._encode(documents[held_out:], documents[:held_out], []), 1.0))
        return Mixture(parts)

    def _encode(self, train: list[str], validation: list[str], test: list[str]) -> TextData:
        return TextData.from_splits(
            train=train,
            validation=validation,
            test=test,
            substrate=self.substrate,
            cache_dir=self.cache,
            unknown="unk",
        )
