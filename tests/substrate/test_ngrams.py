from __future__ import annotations

import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgrow.errors import SubstrateError
from fastgrow.substrate.ngrams import (
    LanguageNgrams,
    bundled,
    largest_k,
    ranked,
    read_lines,
    read_lists,
    top,
)

LISTS = [
    LanguageNgrams("x", {2: ["ab", "bc", "cd"], 3: ["abc", "bcd", "cde"]}),
    LanguageNgrams("y", {2: ["bc", "xy", "ab"], 3: ["xyz"]}),
]

strings = st.text(st.characters(exclude_categories=["Cs"]), min_size=2, max_size=2)
languages = st.lists(
    st.tuples(st.text("ab'\"\\\n", max_size=3), st.lists(strings, max_size=5)), min_size=1
)


@given(languages)
def test_reads_whatever_repr_writes(tmp_path_factory, languages):
    literal = [
        {"lang": name, "language_name": "ж'\"", "top_ngrams": {2: [(s, 7) for s in ngrams], 3: []}}
        for name, ngrams in languages
    ]
    path = tmp_path_factory.mktemp("ngrams") / "lists.txt"
    path.write_bytes(repr(literal).encode("utf-8"))
    assert read_lists(path) == [
        LanguageNgrams(name, {2: ngrams, 3: []}) for name, ngrams in languages
    ]


HEAD = "[{'lang': 'x', 'language_name': 'X', 'top_ngrams': {2: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected '\\['.*end of the file"),
        ("[]", "expected \\{'lang'"),
        ("[{'lang': 'x'}]", "expected \\{'lang'.* at character 1"),
        (HEAD + "[('ab', 3)]", "expected '}}', found the end of the file"),
        (HEAD + "[('ab', 3)]}}", "expected ']', found the end"),
        (HEAD + "[('ab', 3)]}}] + 1", "expected the end at character"),
        (HEAD + "[('ab', 3]}}]", "expected a length and its list .* at character 52"),
        (HEAD + "[('abc', 3)]}}]", "'abc' among the 2-grams"),
        (HEAD + r"[('\x', 3)]}}]", "broken escape"),
        (HEAD + "[(__import__('os'), 3)]}}]", "expected a length and its list"),
        (HEAD + "[('a" + "b" * 100_000, "expected a length and its list"),
    ],
)
def test_a_malformed_file_is_named_with_the_error(tmp_path, text, message):
    path = tmp_path / "broken.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SubstrateError, match=f"broken.txt: not a list of n-grams: .*{message}"):
        read_lists(path)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    with pytest.raises(SubstrateError, match=r"gone.txt: No such file"):
        read_lists(tmp_path / "gone.txt")
    truncated = tmp_path / "cut.txt.xz"
    truncated.write_bytes(lzma.compress(b"[{'lang'")[:-9])
    with pytest.raises(SubstrateError, match=r"cut.txt.xz: damaged or not xz"):
        read_lists(truncated)
    latin1 = tmp_path / "latin1.txt"
    latin1.write_bytes("é".encode("latin-1"))
    with pytest.raises(SubstrateError, match=r"latin1.txt: not UTF-8 .* at byte 0"):
        read_lines(latin1)


def test_lines_keep_everything_but_newlines(tmp_path):
    path = tmp_path / "lines.txt.xz"
    path.write_bytes(lzma.compress("\nab\na\n c\n\u2028d\n\x0cx\n".encode()))
    assert read_lines(path) == ["ab", " c", "\u2028d", "\x0cx"]


def test_top_counts_per_language_and_length():
    assert top(LISTS, 1, (2, 3)) == {"ab", "bc", "abc", "xyz"}
    assert top(LISTS, 2, (2,)) == {"ab", "bc", "xy"}


@pytest.mark.parametrize(("places", "k"), [(3, 0), (4, 1), (5, 1), (6, 2), (7, 2), (8, 3), (99, 3)])
def test_largest_k_fills_the_places_without_overflowing(places, k):
    assert largest_k(LISTS, places, (2, 3)) == k
    assert len(top(LISTS, k, (2, 3))) <= places


def test_ranked_goes_by_the_best_rank_in_any_language():
    assert ranked(LISTS) == ["ab", "bc", "abc", "xyz", "xy", "bcd", "cd", "cde"]


def test_bundled_lists():
    lists = bundled()
    assert len(lists) == 32
    assert [language.language for language in lists[:5]] == ["en", "ru", "fr", "de", "zh"]
    for language in lists:
        for length, ngrams in language.by_length.items():
            assert len(ngrams) == len(set(ngrams)) > 204
            assert all(len(ngram) == length for ngram in ngrams)
            assert not any(character.isspace() for ngram in ngrams for character in ngram)
    assert "th" in lists[0].by_length[2][:5]
    assert "the" in lists[0].by_length[3][:5]


@pytest.mark.acceptance
def test_the_authors_lists(development_data):
    folder = development_data / "bvv241"
    short = read_lists(folder / "ngrams-2-3.txt.xz")
    assert len(top(short, 338, (2, 3))) == 8_177
    long = top(read_lists(folder / "ngrams-2-3-4-5.txt.xz"), 906, (2, 3, 4, 5))
    assert len(long) == 59_955
    assert len(long.union(read_lines(folder / "ngrams-intersection.txt.xz"))) == 73_768
