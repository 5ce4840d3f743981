"""Texts of a study: their splits and the vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgrow.errors import ConfigError, DataError
from fastgrow.study.settings import DocumentSettings, StudySubstrate, TextSettings
from fastgrow.study.texts import Corpus, Documents, build_substrate, read_documents

SIZES = DocumentSettings(characters=100, validation=400, test=600, tuning=800)


def read(folder: Path, *files: str, most: int | None = None) -> Documents:
    return read_documents("text", TextSettings(list(files), most), SIZES, [folder])


def test_no_document_stands_in_two_splits_and_none_is_lost(folder: Path) -> None:
    documents = read(folder, "latin.txt")
    splits = [documents.train, documents.validation, documents.test, documents.tuning]
    together = [text for split in splits for text in split]
    assert len(set(together)) == len(together)
    whole = (folder / "latin.txt").read_text(encoding="utf-8").splitlines()
    assert sorted("\n".join(together).splitlines()) == sorted(whole)
    for split, size in zip(splits[1:], (400, 600, 800), strict=True):
        held = sum(map(len, split))
        assert size <= held < size + 200
    # A line's end counts; the last lines of a file may be fewer.
    assert sum(len(text) + 1 < 100 for text in together) <= 1


def test_the_order_follows_from_the_texts_alone(folder: Path) -> None:
    both = read(folder, "latin.txt", "greek.txt")
    assert both == read(folder, "greek.txt", "latin.txt")
    assert both.digest != read(folder, "latin.txt").digest


def test_a_text_is_cut_to_so_many_characters(folder: Path) -> None:
    cut = read(folder, "latin.txt", most=1000)
    whole = read(folder, "latin.txt")
    assert 1000 <= sum(map(len, cut.train)) < 1200
    assert cut.train == whole.train[: len(cut.train)]
    assert cut.test == whole.test


def test_the_first_folder_that_has_a_file_gives_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_text("x" * 150 + "\n", encoding="utf-8")
    sizes = DocumentSettings(characters=100, validation=1, test=1, tuning=1)
    with pytest.raises(DataError, match="no document is left for training"):
        read_documents("text", TextSettings(["latin.txt"]), sizes, [tmp_path, folder])
    assert read_documents("text", TextSettings(["greek.txt"]), sizes, [tmp_path, folder]).train


def test_a_missing_file_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.txt: no such file in .*--data"):
        read(folder, "nothing.txt")


def test_a_file_of_other_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bad\.txt: not UTF-8"):
        read(tmp_path, "bad.txt")


def corpus(folder: Path, tmp_path: Path, **substrate: int | str) -> Corpus:
    texts = {"latin": read(folder, "latin.txt"), "greek": read(folder, "greek.txt")}
    made = build_substrate(texts, StudySubstrate(**substrate))  # type: ignore[arg-type]
    return Corpus(texts, made, tmp_path)


def test_rare_characters_become_unk(folder: Path, tmp_path: Path) -> None:
    both = corpus(folder, tmp_path, max_size=10, n_components=8)
    assert len(both.substrate) == 10
    ids = both.text("latin").test.ids
    assert both.substrate.unk_id in ids
    # The commonest six of all: the space is in every line of both.
    assert both.substrate.unk_id not in both.substrate.encode(" ", unknown="unk")


def test_parts_are_disjoint_and_make_up_the_text(folder: Path, tmp_path: Path) -> None:
    both = corpus(folder, tmp_path, max_size=40, n_components=8)
    whole = both.text("latin").train
    parts = [both.text("latin", (i, 3)).train for i in range(3)]
    assert sum(part.n_documents for part in parts) == whole.n_documents
    assert len({part.digest for part in parts}) == 3
    # Parts are for training only: all are measured on the same text.
    assert both.text("latin", (0, 3)).test.digest == both.text("latin").test.digest


def test_the_tuning_text_is_no_other(folder: Path, tmp_path: Path) -> None:
    both = corpus(folder, tmp_path, max_size=40, n_components=8)
    tuning = both.tuning(["latin", "greek"])
    documents = both.texts["latin"].tuning
    decoded = both.substrate.decode(tuning.train.parts[0][0].ids.tolist())
    assert all(text in decoded for text in documents[len(documents) // 5 :])
    assert not any(text in decoded for text in documents[: len(documents) // 5])
    assert not any(text in decoded for text in both.texts["latin"].test)


def test_a_tuning_text_of_one_document_is_rejected(folder: Path, tmp_path: Path) -> None:
    sizes = DocumentSettings(characters=100, validation=100, test=100, tuning=1)
    text = read_documents("latin", TextSettings(["latin.txt"]), sizes, [folder])
    made = build_substrate({"latin": text}, StudySubstrate(max_size=20, n_components=8))
    with pytest.raises(
        DataError, match=r"'latin': expected at least 2 tuning.*got 1.*documents\.tuning"
    ):
        Corpus({"latin": text}, made, tmp_path).tuning(["latin"])
