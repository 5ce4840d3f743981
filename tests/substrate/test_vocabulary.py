from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgrow.errors import SubstrateError
from fastgrow.substrate.tokenizer import Tokenizer
from fastgrow.substrate.vocabulary import SPECIALS, Kind, Vocabulary, reachable
from fastgrow.substrate.vocabulary_recipes import build_vocabulary


def test_full_layout():
    vocabulary = Vocabulary.full(["ab", "the", "Ж1", "th", "the"])
    assert len(vocabulary) == 65_536
    for point in (0, ord("a"), 0xD7FF, 0xF900, 0xFFFE):
        assert vocabulary.tokens[point] == chr(point)
        assert vocabulary.kinds[point] == Kind.CHARACTER
    assert vocabulary.tokens[0xD800:0xD804] == ("the", "ab", "th", "Ж1")
    assert vocabulary.tokens[0xD804] == "<unused_55300>"
    assert vocabulary.tokens[0xFFFF] == "<unused_65535>"
    assert vocabulary.tokens[0xE000:0xE004] == ("<pad>", "<s>", "</s>", "<unk>")
    assert vocabulary.tokens[0xE016] == "[FILE_SEP]"
    assert vocabulary.tokens[0xE017] == "<special_token_57367>"
    assert vocabulary.tokens[0xE0FF] == "<special_token_57599>"
    assert (vocabulary.pad_id, vocabulary.bos_id) == (57344, 57345)
    assert (vocabulary.eos_id, vocabulary.unk_id) == (57346, 57347)
    assert np.bincount(vocabulary.kinds).tolist() == [57_087, 4, 256, 8_189]
    assert len(vocabulary.specials) == 256
    assert vocabulary.n_characters.dtype == np.int32
    assert vocabulary.n_characters[[97, 0xD800, 0xD801, 0xD804, 57344]].tolist() == [1, 3, 2, 0, 0]
    assert vocabulary.ids["Ж1"] == 0xD803


def test_full_layout_runs_over_into_the_second_plane():
    pairs = [chr(0x4E00 + i // 200) + chr(0x4E00 + i % 200) for i in range(8_194)]
    vocabulary = Vocabulary.full(pairs, size=0x20000)
    assert len(vocabulary) == 131_072
    assert vocabulary.tokens[0xDFFF] == pairs[2_047]
    assert vocabulary.tokens[0xE100] == pairs[2_048]
    assert vocabulary.tokens[0xF8FF] == pairs[8_191]
    assert vocabulary.tokens[0x10000:0x10002] == (pairs[8_192], pairs[8_193])
    assert vocabulary.tokens[0x1FFFF] == "<unused_131071>"
    with pytest.raises(SubstrateError, match=r"8,194 n-grams do not fit into the 8,192 ids"):
        Vocabulary.full(pairs)
    assert Vocabulary.full(pairs, truncate=True).tokens[0xF8FF] == pairs[8_191]


@pytest.mark.parametrize(
    ("ngrams", "message"),
    [
        (["ab", "a\ue000"], r"'a\\ue000' contains '\\ue000' \(U\+E000\), which is not a character"),
        (["a😀"], r"contains '😀' \(U\+1F600\)"),
        (["a\ud800"], r"contains '\\ud800' \(U\+D800\)"),
        (["<s>"], r"the token '<s>' twice"),
        (["a"], r"the token 'a' twice"),
        ([""], r"empty string"),
    ],
)
def test_full_refuses_an_ngram_that_cannot_be_a_token(ngrams, message):
    with pytest.raises(SubstrateError, match=message):
        Vocabulary.full(ngrams)


def test_full_rejects_an_unsupported_size():
    with pytest.raises(SubstrateError, match=r"size=1,024: .* 65,536 or 131,072 tokens"):
        Vocabulary.full([], size=1024)


def test_merges_are_every_split_longest_ngram_first():
    vocabulary = Vocabulary.full(["th", "he", "the", "hey", "they", "xyz"])
    assert vocabulary.merges() == [
        ("t", "hey"),
        ("the", "y"),
        ("he", "y"),
        ("t", "he"),
        ("th", "e"),
        ("h", "e"),
        ("t", "h"),
    ]


def test_compact_layout():
    vocabulary = Vocabulary.compact("Жba", ["ab", "aЖb", "Жb", "az"], specials=["[EOT]"])
    assert vocabulary.tokens == (
        *("<pad>", "<s>", "</s>", "<unk>", "[EOT]"),
        *("a", "b", "Ж"),
        *("aЖb", "ab", "Жb"),
    )
    assert vocabulary.specials == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "[EOT]": 4}
    assert vocabulary.kinds.tolist() == [2] * 5 + [0] * 3 + [1] * 3
    assert vocabulary.n_characters.tolist() == [0] * 5 + [1] * 3 + [3, 2, 2]


def test_compact_can_hold_all_special_tokens():
    vocabulary = Vocabulary.compact("a", specials=SPECIALS)
    assert tuple(vocabulary.specials) == SPECIALS
    assert vocabulary.ids["a"] == len(SPECIALS)


def test_compact_limits_keep_the_best_ngrams():
    candidates = ["bc", "ab", "ca", "abc"]
    assert Vocabulary.compact("abc", candidates, n_ngrams=2).ngrams == ["ab", "bc"]
    assert Vocabulary.compact("abc", candidates, max_size=8).ngrams == ["bc"]
    assert Vocabulary.compact("abc", candidates, max_size=8, n_ngrams=0).ngrams == []
    with pytest.raises(SubstrateError, match=r"4 special tokens and 3 characters do not fit"):
        Vocabulary.compact("abc", candidates, max_size=6)


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        ([], "at least one character"),
        (["ab"], "'ab': expected a single character"),
        (["\ud800"], r"'\\ud800': expected a single character"),
    ],
)
def test_compact_refuses_what_is_no_character(characters, message):
    with pytest.raises(SubstrateError, match=message):
        Vocabulary.compact(characters)


def test_compact_refuses_a_special_token_that_is_a_character():
    with pytest.raises(SubstrateError, match="'x' is too short"):
        Vocabulary.compact("x", specials=["x"])


def test_reachable_drops_what_no_merge_makes_and_orders_by_the_weakest_link():
    # "abcd" needs "ab" and "cd", so it gets the worse rank of the two; "xyz" has no half.
    candidates = ["abcd", "cd", "xyz", "ca", "ab", "q"]
    assert reachable(candidates, "abcdxyz") == ["cd", "ca", "ab", "abcd"]
    # Of two ways to make "abcd" the better one counts: "ab" + "cd", and not "abc" + "d".
    candidates = ["abcd", "ab", "cd", "ca", "abc"]
    assert reachable(candidates, "abcd") == ["ab", "cd", "abcd", "ca", "abc"]


@given(st.lists(st.text("abc", min_size=2, max_size=5), max_size=40), st.integers(0, 40))
def test_every_prefix_of_reachable_is_made_by_its_own_merges(candidates, limit):
    vocabulary = Vocabulary.compact("abc", candidates, n_ngrams=limit)
    made = {left + right for left, right in vocabulary.merges()}
    assert made == set(vocabulary.ngrams)


def test_difference_names_the_first_one():
    base = Vocabulary.compact("abc", ["ab"])
    assert base.difference(Vocabulary.compact("abc", ["ab"])) == ""
    assert base == Vocabulary.compact("cba", ["ab"])
    assert hash(base) == hash(Vocabulary.compact("cba", ["ab"]))
    other = Vocabulary.compact("abd", ["ab"])
    assert base.difference(other) == "first difference at id 6: 'c' against 'd'"
    assert base != other
    assert base.difference(Vocabulary.compact("ab")) == "8 tokens against 6"
    marked = Vocabulary.compact("abc", specials=["ab"])
    shuffled = Vocabulary.from_ids({**marked.ids}, ["<pad>", "<s>", "</s>", "<unk>"])
    assert marked.difference(shuffled) == "first difference at id 4: 'ab' is special against ngram"


def test_a_vocabulary_does_not_change():
    vocabulary = Vocabulary.compact("abc")
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.kinds[0] = Kind.HOLE
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.n_characters[0] = 3
    with pytest.raises(TypeError):
        vocabulary.tokens[0] = "x"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 5}, "no token has id 4"),
        ({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 3}, "no token has id 4"),
        ({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, "'<unk>' has no id"),
    ],
)
def test_from_ids_refuses_gaps(ids, message):
    with pytest.raises(SubstrateError, match=message):
        Vocabulary.from_ids(ids, ["<pad>", "<s>", "</s>", "<unk>"])


def test_from_ids_needs_the_required_specials():
    with pytest.raises(SubstrateError, match="has no special token '</s>'"):
        Vocabulary.from_ids({"<pad>": 0, "<s>": 1, "a": 2}, ["<pad>", "<s>"])


def test_default_recipe_is_the_same_everywhere():
    vocabulary = build_vocabulary()
    assert len(vocabulary) == 65_536
    assert np.bincount(vocabulary.kinds).tolist() == [57_087, 8_164, 256, 29]
    assert len(vocabulary.merges()) == 12_408
    joined = "\0".join(vocabulary.tokens).encode("utf-8")
    assert hashlib.sha256(joined).hexdigest() == GOLDEN_DEFAULT


GOLDEN_DEFAULT = "fcfdd101152c53a2a83c41c90806ef13a2a18cc611671dc167f4ba5999e1bc1c"


def test_compact_recipe_holds_the_default_ngrams_of_its_characters():
    vocabulary = build_vocabulary(scripts=["Cyrillic"])
    characters = set(vocabulary.characters)
    default = {ngram for ngram in build_vocabulary().ngrams if characters.issuperset(ngram)}
    assert set(vocabulary.ngrams) <= default
    assert {"ра", "ст", "ого"} <= set(vocabulary.ngrams)
    larger = build_vocabulary(scripts=["Cyrillic"], n_ngrams=len(vocabulary.ngrams) + 100)
    assert len(larger.ngrams) == len(vocabulary.ngrams) + 100


def test_recipe_takes_its_ngrams_from_a_file(tmp_path):
    path = tmp_path / "ngrams.txt"
    path.write_text("ab\nbc\nxy\n", encoding="utf-8")
    assert build_vocabulary(characters="abc", ngrams=path).ngrams == ["ab", "bc"]
    assert build_vocabulary(ngrams=path).ngrams == ["ab", "bc", "xy"]
    assert build_vocabulary(characters="abc", ngrams=["bc", "ab"], n_ngrams=1).ngrams == ["bc"]
    path.write_text(
        "[{'lang': 'x', 'language_name': 'X', 'top_ngrams': {2: [('bc', 9), ('ab', 3)]}}]"
    )
    assert build_vocabulary(characters="abc", ngrams=path, n_ngrams=1).ngrams == ["bc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "bvv"}, "no recipe 'bvv'; expected one of default, bvv241-2-3"),
        ({"recipe": "bvv241-2-3"}, "requires ngrams="),
        ({"recipe": "bvv241-2-3", "ngrams": "x", "scripts": ["Latin"]}, "has fixed characters"),
        ({"recipe": "bvv241-abs", "ngrams": "x"}, "requires 2 n-gram files"),
        ({"recipe": "bvv241-2-3", "ngrams": "nowhere.txt"}, "nowhere.txt: No such file"),
        ({"n_ngrams": 4}, "options of compact vocabularies"),
        ({"specials": ["[EOT]"]}, "options of compact vocabularies"),
        ({"scripts": ["Latni"]}, "did you mean 'Latin'"),
        ({"characters": ""}, "at least one character"),
    ],
)
def test_recipes_refuse_options_that_cannot_be_combined(options, message):
    with pytest.raises(SubstrateError, match=message):
        build_vocabulary(**options)


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("recipe", "size", "ngrams", "merges", "ids"),
    [
        ("bvv241-2-3", 65_536, 8_177, 12_224, [104, 56035, 111, 32, 57811, 32, 116, 56117]),
        ("bvv241-abs", 131_072, 73_727, 182_678, [70960, 32, 113757, 32, 99060]),
    ],
)
def test_the_authors_vocabularies(development_data, recipe, size, ngrams, merges, ids):
    vocabulary = build_vocabulary(recipe, ngrams=development_data / "bvv241")
    tokenizer = Tokenizer(vocabulary)
    assert len(vocabulary) == size
    assert len(vocabulary.ngrams) == ngrams
    assert len(vocabulary.merges()) == merges
    assert tokenizer.encode("hello the test") == ids
