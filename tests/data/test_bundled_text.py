from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from fastgrow import data
from fastgrow.data import _bundled
from fastgrow.errors import DataError
from fastgrow.substrate.tokenizer import Tokenizer
from fastgrow.substrate.vocabulary import Vocabulary

# Documents and characters of train, validation and test.
SIZES = {
    "Latin": [(432, 157_305), (54, 17_336), (72, 21_802)],
    "Cyrillic": [(480, 168_292), (60, 18_681), (80, 22_675)],
    "Han": [(2_442, 171_138), (305, 21_098), (319, 22_028)],
}


def test_declarations_are_whole_and_clean():
    declarations = data.declarations()
    assert len(declarations) == 52
    assert {declaration.script for declaration in declarations.values()} == set(data.SCRIPTS)
    assert declarations["eng"].language == "English"
    assert declarations["eng"].articles[3] == (
        "Everyone has the right to life, liberty and the security of person."
    )
    assert declarations["eng"].articles[0].startswith("Whereas recognition")
    assert declarations["rus"].articles[1].startswith("Все люди рождаются свободными")
    assert declarations["cmn_hans"].articles[1].startswith("人人生而自由")
    for declaration in declarations.values():
        assert len(declaration.articles) == 31
        for article in declaration.articles:
            assert article == unicodedata.normalize("NFC", article).strip()
            assert article
            assert "  " not in article
            assert not set(article) & set("\t\r\u00a0\u00ad\u200b\ufeff")


def test_a_declaration_is_written_in_its_script():
    names = {"Latin": "LATIN", "Cyrillic": "CYRILLIC", "Han": "CJK"}
    for declaration in data.declarations().values():
        letters = [c for article in declaration.articles for c in article if c.isalpha()]
        own = sum(unicodedata.name(c).startswith(names[declaration.script]) for c in letters)
        assert own > 0.99 * len(letters)


def test_poems_are_plain_and_distinct():
    poems = data.poems()
    assert sum(len(poem.encode("utf-8")) for poem in poems) <= 500_000
    lines = [line for poem in poems for line in dict.fromkeys(poem.split("\n"))]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("script", data.SCRIPTS)
def test_splits_have_their_sizes_and_share_no_document(script):
    splits = data.demo_splits(script)
    parts = [splits.train, splits.validation, splits.test]
    assert [(len(part), sum(map(len, part))) for part in parts] == SIZES[script]
    # A few dialects share an article word for word; across the splits nothing is shared.
    assert set(splits.train).isdisjoint(splits.validation)
    assert set(splits.test).isdisjoint(splits.train + splits.validation)


def test_the_same_articles_are_held_out_in_every_language():
    held_out = set()
    for script in data.SCRIPTS:
        splits = data.demo_splits(script)
        for declaration in data.declarations().values():
            if declaration.script == script:
                where = [
                    next(
                        name
                        for name in ("train", "validation", "test")
                        if article in getattr(splits, name)
                    )
                    for article in declaration.articles
                ]
                held_out.add(tuple(where))
    assert len(held_out) == 1
    where = next(iter(held_out))
    assert [number for number, name in enumerate(where) if name == "validation"] == [4, 11, 18]
    assert [number for number, name in enumerate(where) if name == "test"] == [7, 16, 20, 22]


def test_another_script_is_refused():
    with pytest.raises(DataError, match="script 'Greek'; expected one of Latin, Cyrillic, Han"):
        data.demo_splits("Greek")


def test_a_compact_vocabulary_covers_the_text():
    characters = data.demo_characters()
    assert characters == sorted(set(characters))
    assert sum("\u4e00" <= character <= "\u9fff" for character in characters) <= 2_300
    vocabulary = Vocabulary.compact(characters, max_size=3_000)
    tokenizer = Tokenizer(vocabulary)
    documents = [
        document
        for script in data.SCRIPTS
        for splits in [data.demo_splits(script)]
        for document in splits.train + splits.validation + splits.test
    ]
    encoded = tokenizer.encode_batch(documents)
    assert [tokenizer.decode(ids) for ids in encoded] == documents


def test_the_files_are_small():
    folder = Path(data.__file__).parent
    assert (folder / "text.json.xz").stat().st_size < 500_000
    assert (folder / "ngrams-udhr.json.xz").stat().st_size < 100_000


@pytest.mark.parametrize("name", ["text.json.xz", "ngrams-udhr.json.xz", "unicode-sets.json.xz"])
def test_a_changed_file_is_refused(monkeypatch, name):
    read_bytes = _bundled._bytes

    def flipped(asked: str) -> bytes:
        content = bytearray(read_bytes(asked))
        if asked == name:
            content[len(content) // 2] ^= 1
        return bytes(content)

    data.read(name)
    monkeypatch.setattr(_bundled, "_bytes", flipped)
    with pytest.raises(DataError, match=f"fastgrow/data/{name}: SHA-256 is .*, expected "):
        data.read(name)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"fastgrow/data/absent.xz: no such file"):
        data.read("absent.xz")
