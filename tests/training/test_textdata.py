"""A corpus is split, encoded and cached; errors name the text at fault."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standin import LetterSubstrate, random_text

from fastgrow.errors import ConfigError, DataError
from fastgrow.training import HubDataset, TextData
from fastgrow.training.data.stream import token_dtype

ALL = (1.0, 0.0, 0.0)


def documents_of(ids: np.ndarray, substrate: LetterSubstrate) -> list[str]:
    """The texts between <s> and </s>; fails if the layout is wrong."""
    texts: list[str] = []
    inside = False
    for index in ids:
        if index == substrate.bos_id:
            assert not inside
            inside = True
            texts.append("")
        elif index == substrate.eos_id:
            assert inside
            inside = False
        else:
            assert inside
            texts[-1] += substrate.tokens[index]
    assert not inside
    return texts


def test_layout_counts_and_blank_documents() -> None:
    substrate = LetterSubstrate()
    data = TextData(["the cat", "", "  ", "sat"], substrate, split=ALL)
    train = data.train
    assert documents_of(train.ids, substrate) == ["the cat", "sat"]
    assert (train.n_documents, train.n_characters) == (2, 10)
    # "the cat" is 6 tokens, "sat" 3, and </s> is predicted too.
    assert train.tokens_per_character == (6 + 1 + 3 + 1) / 10
    assert train.ids.dtype == np.uint16
    assert len(data.validation) == len(data.test) == 0


def test_dtype_is_the_narrowest_that_holds_every_id() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


def test_every_document_is_in_one_split_and_stays_there() -> None:
    substrate = LetterSubstrate()
    documents = sorted(set(random_text(1000, 0).split("\n")))

    def splits(texts: list[str], seed: int = 0) -> dict[str, set[str]]:
        data = TextData(texts, substrate, split=(0.8, 0.1, 0.1), seed=seed)
        return {
            name: set(documents_of(getattr(data, name).ids, substrate))
            for name in ("train", "validation", "test")
        }

    first = splits(documents)
    assert sum(map(len, first.values())) == len(documents)
    assert set().union(*first.values()) == set(documents)
    assert 0.75 < len(first["train"]) / len(documents) < 0.85
    assert 0.06 < len(first["test"]) / len(documents) < 0.14
    # Order, copies and new documents do not change a split.
    shuffled = splits([*reversed(documents), *documents[:50], "new"])
    assert all(first[name] <= shuffled[name] for name in first)
    assert splits(documents, seed=1)["test"] != first["test"]


def test_given_splits() -> None:
    substrate = LetterSubstrate()
    data = TextData.from_splits(train=["aa"], validation=["bb", "b"], substrate=substrate)
    assert documents_of(data.train.ids, substrate) == ["aa"]
    assert documents_of(data.validation.ids, substrate) == ["bb", "b"]
    assert (data.validation.name, len(data.test)) == ("validation", 0)
    with pytest.raises(DataError, match="validation document 1: unknown character U\\+0416"):
        TextData.from_splits(train=["a"], validation=["b", "bЖ"], substrate=substrate)
    with pytest.raises(DataError, match="train: contains no text"):
        TextData.from_splits(train=[], validation=["b"], substrate=substrate)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.jsonl").write_text('{"text": "three"}\n')
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "notes.md").write_text("not read")
    (tmp_path / ".hidden.txt").write_text("not read")
    substrate = LetterSubstrate()
    data = TextData(tmp_path, substrate, split=ALL, cache_dir=tmp_path / "cache")
    assert documents_of(data.train.ids, substrate) == ["one", "two", "three"]


# -- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(random_text(200, 3))
    return path


def build(corpus: Path, **options: Any) -> tuple[TextData, int]:
    """The data, and how many documents had to be encoded for it."""
    substrate = options.pop("substrate", None) or LetterSubstrate("abcdefgh\n")
    data = TextData(corpus, substrate, cache_dir=corpus.parent / "cache", **options)
    return data, substrate.encoded_documents


def entries(corpus: Path) -> list[Path]:
    return sorted((corpus.parent / "cache").iterdir())


def test_the_cache_is_used_again_whatever_the_file_is_called(corpus: Path) -> None:
    first, encoded = build(corpus)
    assert encoded == 200
    assert isinstance(first.train.ids, np.memmap)
    again, encoded = build(corpus.rename(corpus.with_name("other.txt")))
    assert encoded == 0
    for name in ("train", "validation", "test"):
        before, after = getattr(first, name), getattr(again, name)
        assert np.array_equal(before.ids, after.ids)
        assert (before.n_documents, before.n_characters) == (after.n_documents, after.n_characters)
    assert len(entries(corpus)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"split": ALL},
        {"sample_by": "paragraph"},
        {"unknown": "unk"},
        {"substrate": LetterSubstrate("hgfedcba")},
    ],
)
def test_the_cache_is_not_used_for_anything_else(corpus: Path, change: dict[str, Any]) -> None:
    build(corpus)
    assert build(corpus, **change)[1] > 0
    assert len(entries(corpus)) == 2


def test_a_changed_corpus_is_encoded_again(corpus: Path) -> None:
    build(corpus)
    corpus.write_text(corpus.read_text() + "\nabba")
    assert build(corpus)[1] == 201


@pytest.mark.parametrize("file", ["train.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_cache_is_named_and_rebuilt(corpus: Path, file: str, damage: str) -> None:
    before = np.array(build(corpus)[0].train.ids)
    path = entries(corpus)[0] / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        # In the manifest: a quote, so that it is no JSON; in the ids: any bit.
        content[content.find(b'"') if file == "manifest.json" else 40] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-7] if damage == "cut" else content)
    with pytest.warns(RuntimeWarning, match=f"damaged and will be rebuilt.*{file}"):
        data, encoded = build(corpus)
    assert encoded == 200
    assert np.array_equal(data.train.ids, before)
    assert build(corpus)[1] == 0


def test_an_entry_of_other_data_is_not_used(corpus: Path) -> None:
    build(corpus)
    build(corpus, seed=1)
    one, two = entries(corpus)
    shutil.rmtree(one)
    shutil.copytree(two, one)
    with pytest.warns(RuntimeWarning, match="describes different data"):
        assert build(corpus)[1] + build(corpus, seed=1)[1] == 200


def test_a_failed_build_leaves_nothing_behind(corpus: Path) -> None:
    corpus.write_text(corpus.read_text() + "\nabЖ")
    with pytest.raises(
        DataError, match=r"corpus\.txt:201: unknown character U\+0416 at position 2"
    ):
        build(corpus)
    assert entries(corpus) == []


def test_a_cache_that_cannot_be_written_is_named(corpus: Path) -> None:
    (corpus.parent / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="token cache cannot be written"):
        build(corpus)
    assert (corpus.parent / "cache").read_text() == "a file where the folder should be"


def test_a_long_corpus_is_encoded_in_pieces(tmp_path: Path) -> None:
    largest = 0

    class Counting(LetterSubstrate):
        def encode_batch(self, texts: list[str], *, unknown: str = "error") -> list[list[int]]:
            nonlocal largest
            largest = max(largest, sum(map(len, texts)))
            return [[5] * len(text) for text in texts]

    documents = ["a" * 1000] * 5000
    data = TextData(documents, Counting(), split=ALL, cache_dir=tmp_path)
    assert data.train.n_characters == 5_000_000
    assert largest < 1_100_000


# -- bad input ------------------------------------------------------------------------------------


def test_empty_corpora_are_named(tmp_path: Path) -> None:
    substrate = LetterSubstrate()
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.txt: contains no text"):
        TextData(empty, substrate, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="documents: contains no text"):
        TextData([], substrate)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: the folder contains no text file"):
        TextData(tmp_path / "folder", substrate)
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file or folder"):
        TextData("nowhere.txt", substrate)
    with pytest.raises(DataError, match=r"data/nowhere\.txt: no such file or folder"):
        TextData("data/nowhere.txt", substrate)


def test_unknown_characters_name_document_and_position() -> None:
    substrate = LetterSubstrate()
    with pytest.raises(DataError, match=r"document 1: unknown character U\+0416 at position 2"):
        TextData(["abc", "abЖ"], substrate)
    data = TextData(["abЖc"], substrate, split=ALL, unknown="unk")
    assert list(data.train.ids) == [1, 4, 5, substrate.unk_id, 6, 2]


def test_a_document_that_is_no_text_is_named() -> None:
    with pytest.raises(DataError, match="document 1: is int, expected str"):
        TextData(["a", 7], LetterSubstrate())


def test_all_documents_outside_training_is_an_error() -> None:
    with pytest.raises(DataError, match="none of its 1 documents is in the training split"):
        TextData(["abc"], LetterSubstrate(), split=(0.0, 1.0, 0.0))


@pytest.mark.parametrize("split", [(0.9, 0.2, 0.1), (1.0, 0.0), (1.1, -0.1, 0.0)])
def test_bad_splits_are_refused(split: Any) -> None:
    with pytest.raises(ConfigError, match="split must be three shares"):
        TextData(["a"], LetterSubstrate(), split=split)


def test_other_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="source: expected a file, a folder"):
        TextData(7, LetterSubstrate())
    with pytest.raises(ConfigError, match=r"several splits \(train, test\)"):
        TextData({"train": [], "test": []}, LetterSubstrate())
    with pytest.raises(ConfigError, match="sample_by"):
        TextData(["a"], LetterSubstrate(), sample_by="word")  # type: ignore[arg-type]


# -- the datasets library -------------------------------------------------------------------------


def local_dataset(tmp_path: Path, builder: str, *, streaming: bool) -> Any:
    import datasets
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / f"rows.{builder}"
    texts = ["one", "two", "three"]
    if builder == "json":
        file.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    elif builder == "text":
        file.write_text("\n".join(texts) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    return datasets.load_dataset(
        builder,
        data_files=str(file),
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "datasets"),
    )


@pytest.mark.parametrize("builder", ["json", "text", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_are_read(tmp_path: Path, builder: str, streaming: bool) -> None:
    rows = local_dataset(tmp_path, builder, streaming=streaming)
    substrate = LetterSubstrate()
    cache = tmp_path / "cache"
    data = TextData(rows, substrate, split=ALL, cache_dir=cache)
    assert documents_of(data.train.ids, substrate) == ["one", "two", "three"]
    TextData(rows, substrate, split=ALL, cache_dir=cache)
    assert substrate.encoded_documents == 3
    with pytest.raises(DataError, match="dataset, row 0: the field 'body' is missing"):
        TextData(rows, substrate, text_field="body", cache_dir=cache)


@pytest.mark.parametrize("dataset", ["owner/name", HubDataset("owner/name", streaming=True)])
def test_a_hub_dataset_is_pinned_to_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any
) -> None:
    import datasets
    import huggingface_hub

    streaming = isinstance(dataset, HubDataset)
    rows = local_dataset(tmp_path, "json", streaming=streaming)
    asked: list[Any] = []

    class Info:
        sha = "c0ffee"

    def dataset_info(self: Any, name: str, **options: Any) -> Info:
        return Info()

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return rows

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    substrate = LetterSubstrate()
    data = TextData(dataset, substrate, split=ALL, cache_dir=tmp_path / "cache")
    assert documents_of(data.train.ids, substrate) == ["one", "two", "three"]
    options = {"split": "train", "revision": "c0ffee", "streaming": streaming}
    assert asked == [(("owner/name", None), options)]
    TextData(dataset, substrate, split=ALL, cache_dir=tmp_path / "cache")
    assert substrate.encoded_documents == 3
    Info.sha = "decaf"
    TextData(dataset, substrate, split=ALL, cache_dir=tmp_path / "cache")
    assert substrate.encoded_documents == 6


@pytest.mark.parametrize("failure", ["refused", "hangs"])
def test_a_hub_out_of_reach_is_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    import huggingface_hub

    given_up = threading.Event()

    def dataset_info(self: Any, name: str, **options: Any) -> None:
        if failure == "hangs":
            given_up.wait()
        raise OSError("Name or service not known\nlong story")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    # A refused connection fails at once. One that hangs fails at the time limit; otherwise this
    # test would never end.
    monkeypatch.setattr("fastgrow._hub._SECONDS", 0.01 if failure == "hangs" else 10_000.0)
    with pytest.raises(DataError) as caught:
        TextData("owner/name", LetterSubstrate())
    given_up.set()
    message = str(caught.value)
    assert "\n" not in message
    assert "Hub dataset 'owner/name': cannot be loaded from" in message
    assert ("no answer within" if failure == "hangs" else "Name or service not known") in message


def test_a_dataset_that_fails_while_reading_names_the_row() -> None:
    class Breaking:
        column_names = ("text",)

        def __iter__(self) -> Any:
            yield {"text": "one"}
            raise RuntimeError("connection lost")

    with pytest.raises(DataError, match="dataset, row 1: cannot be read \\(connection lost\\)"):
        TextData(Breaking(), LetterSubstrate(), cache_dir="unused")
