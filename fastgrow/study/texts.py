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
    """A text's documents by split; no document stands in two of them."""

    train: list[str]
    validation: list[str]
    test: list[str]
    tuning: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 over all documents and their places."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test, self.tuning):
            for text in part:
                digest.update(text.encode() + b"\0")
            digest.update(b"\1")
        return digest.hexdigest()


def read_documents(
    name: str, settings: TextSettings, documents: DocumentSettings, folders: Sequence[Path]
) -> Documents:
    """Read a text and deal its documents out, in an order drawn from their content.

    The order depends on the texts alone: neither on the seed of a run nor on the order of files.

    Args:
        name: of the text, for messages.
        settings: its files.
        documents: sizes.
        folders: where relative file names are looked up, the first that has the file.

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
            f"text {name!r}: its {len(pieces)} documents all went to validation, test and tuning; "
            "give more text or smaller documents.validation, .test and .tuning"
        )
    return Documents(train, validation, test, tuning)


def _find(file: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    tried = ", ".join(str(folder) for folder in folders)
    raise ConfigError(
        f"{file}: no such file below {tried}; give the folder of the texts by --data, or by "
        "FASTGROW_DATA"
    )


def _pieces(lines: Iterable[str], characters: int) -> Iterator[str]:
    """Consecutive lines joined into texts of at least so many characters."""
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
    """Documents until they hold so many characters."""
    taken = []
    while characters > 0 and (text := next(documents, None)) is not None:
        taken.append(text)
        characters -= len(text)
    return taken


def build_substrate(
    texts: Mapping[str, Documents], settings: StudySubstrate, specials: int = 4
) -> Substrate:
    """The commonest characters of all training documents, drawn or coded.

    Args:
        texts: by name.
        settings: size and kind.
        specials: entries of the vocabulary that no character may take.
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
    """All texts on one substrate; each is encoded once, into the cache folder."""

    texts: Mapping[str, Documents]
    substrate: Substrate
    cache: Path
    _encoded: dict[tuple[str, tuple[int, int] | None], TextData] = field(default_factory=dict)

    def text(self, name: str, part: tuple[int, int] | None = None) -> TextData:
        """A text's training, validation and test streams; training on one part of it only."""
        if (name, part) not in self._encoded:
            documents = self.texts[name]
            # The documents' order is random already, so every n-th is a random part.
            train = documents.train if part is None else documents.train[part[0] :: part[1]]
            self._encoded[name, part] = self._encode(train, documents.validation, documents.test)
        return self._encoded[name, part]

    def mixture(self, shares: Mapping[str, float], part: tuple[int, int] | None = None) -> Mixture:
        """Texts mixed by their shares."""
        return Mixture([(self.text(name, part), share) for name, share in shares.items()])

    def tuning(self, names: Sequence[str]) -> Mixture:
        """The tuning documents of the texts, in equal shares; a fifth of them is validation.

        Raises:
            DataError: a text has fewer than two.
        """
        parts = []
        for name in names:
            documents = self.texts[name].tuning
            if len(documents) < 2:
                raise DataError(
                    f"text {name!r}: its tuning text is {len(documents)} document(s), expected at "
                    "least 2; raise documents.tuning"
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
