from __future__ import annotations

import copy
import itertools
import json
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrow import data
from fastgrow.errors import SubstrateError
from fastgrow.substrate import tokenizer as tokenizer_module
from fastgrow.substrate.tokenizer import Tokenizer
from fastgrow.substrate.vocabulary import SPECIALS, Kind, Vocabulary
from fastgrow.substrate.vocabulary_recipes import build_vocabulary

SMALL = Vocabulary.compact(
    "abc <s>/",
    ["ab", "bc", "ca", "abc", "cab", "bca", "abca", "aa", "<s", "s>"],
    specials=["[EOT]", "<s>x"],
)


@pytest.fixture(scope="module")
def full() -> Tokenizer:
    return Tokenizer(build_vocabulary())


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer(SMALL)


def merged_one_by_one(vocabulary: Vocabulary, text: str) -> list[int]:
    """Byte-pair merging by its definition: apply the first possible merge, leftmost pair first."""
    rank = {pair: position for position, pair in enumerate(vocabulary.merges())}
    tokens = list(text)
    while True:
        pairs = list(itertools.pairwise(tokens))
        best = min(pairs, key=lambda pair: rank.get(pair, len(rank)), default=None)
        if best not in rank:
            return [vocabulary.ids[token] for token in tokens]
        at = pairs.index(best)
        tokens[at : at + 2] = ["".join(best)]


@given(st.text("abc <s>/", max_size=30))
@settings(max_examples=300)
def test_ids_are_those_of_the_merges(text):
    assert Tokenizer(SMALL).encode(text) == merged_one_by_one(SMALL, text)


KNOWN = st.characters(
    max_codepoint=0xFFFE, exclude_categories=["Cs", "Co"], include_characters="\x00\r\n\u2028\ufeff"
)


@given(
    st.text(KNOWN, max_size=60)
    | st.lists(
        st.sampled_from(["<s>", "</s>", "<pad>", "<unk>", "[INST]", " ", "tha", "статья"])
    ).map("".join)
)
@settings(max_examples=300)
def test_decoding_gives_the_text_back(full, text):
    ids = full.encode(text)
    assert full.decode(ids) == text
    assert full.decode(ids, skip_special=False) == text
    assert set(full.vocabulary.kinds[ids].tolist()) <= {Kind.CHARACTER, Kind.NGRAM}
    lengths = full.vocabulary.n_characters[ids]
    assert lengths.sum() == len(text)


def test_every_character_of_the_vocabulary_is_encoded_as_itself(full):
    for character in full.vocabulary.characters:
        if full.encode(character) != [full.vocabulary.ids[character]]:
            pytest.fail(f"U+{ord(character):04X} is not its own id")


def test_a_batch_is_its_texts(full):
    texts = ["", "hello the test", "Все люди", "", "人人生而自由", "x" * 20_000]
    assert full.encode_batch(texts) == [full.encode(text) for text in texts]
    assert full.encode_batch([]) == []


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
@pytest.mark.parametrize("group", [1, 3])
def test_cutting_long_texts_changes_no_id(full, small, monkeypatch, piece, group):
    texts = data.demo_splits("Latin").test[:8] + data.demo_splits("Han").test[:8]
    joined = "".join(texts)
    whole = full._backend.encode(joined).ids
    tight = "abcab caabbcabca" * 5
    whole_tight = small._backend.encode(tight).ids
    monkeypatch.setattr(tokenizer_module, "PIECE", piece)
    monkeypatch.setattr(tokenizer_module, "GROUP", group)
    assert full.encode(joined) == whole
    assert small.encode(tight) == whole_tight


def test_unknown_characters_are_named_with_their_position(small):
    with pytest.raises(SubstrateError, match=r"unknown character 'é' \(U\+00E9\) at position 4;"):
        small.encode("ab bé")
    with pytest.raises(SubstrateError, match=r"'😀' \(U\+1F600\) at position 1 of text 2"):
        small.encode_batch(["a", "", "b😀"])
    with pytest.raises(SubstrateError, match=r"'x' \(U\+0078\) at position 20000;"):
        small.encode("ab" * 10_000 + "x" + "ab" * 10_000)


def test_unknown_characters_can_be_the_unknown_token(small, full):
    unk = small.vocabulary.unk_id
    ids = [small.vocabulary.ids[token] for token in ("ab", "a")]
    assert small.encode("abééa", unknown="unk") == [ids[0], unk, unk, ids[1]]
    # The full layout uses the private use ids for special tokens and n-grams.
    assert full.encode("\ue002\ue200😀\uffff", unknown="unk") == [57347] * 4
    with pytest.raises(SubstrateError, match=r"U\+E002"):
        full.encode("\ue002")
    with pytest.raises(SubstrateError, match="unknown='skip': expected 'error' or 'unk'"):
        small.encode("a", unknown="skip")


@pytest.mark.parametrize("unknown", ["error", "unk"])
def test_lone_surrogates_are_refused(small, unknown):
    text = b"ab\xff".decode("utf-8", "surrogateescape")
    with pytest.raises(SubstrateError, match=r"surrogate U\+DCFF at position 2 of text 1"):
        small.encode_batch(["a", text], unknown=unknown)


@pytest.mark.parametrize("text", [b"ab", None, 3, ["a"]])
def test_values_other_than_strings_are_rejected(small, text):
    with pytest.raises(SubstrateError, match=rf"text 0 of 1 is {type(text).__name__}"):
        small.encode(text)


def test_special_tokens_in_a_text_are_text_unless_allowed(small, full):
    assert small.vocabulary.bos_id not in small.encode("a<s>b")
    specials = small.vocabulary.specials
    a, b = small.vocabulary.ids["a"], small.vocabulary.ids["b"]
    assert small.encode("a<s>b", allow_special=True) == [a, specials["<s>"], b]
    # The longest name has precedence, and the names may have unknown characters.
    assert small.encode("<s>x[EOT]<unk>", allow_special=True) == [
        *(specials["<s>x"], specials["[EOT]"], specials["<unk>"]),
    ]
    with pytest.raises(SubstrateError, match=r"'é' \(U\+00E9\) at position 4;"):
        small.encode("<s>aé", allow_special=True)
    text = "".join(SPECIALS) + "the"
    assert full.decode(full.encode(text)) == text
    allowed = full.encode(text, allow_special=True)
    assert allowed[: len(SPECIALS)] == list(range(0xE000, 0xE000 + len(SPECIALS)))
    assert full.decode(allowed) == "the"
    assert full.decode(allowed, skip_special=False) == text


def test_copies_and_pickles_keep_specials_in_a_text_as_text(small):
    ids = small.encode("a<s>b")
    assert pickle.loads(pickle.dumps(small)).encode("a<s>b") == ids
    assert copy.deepcopy(small).encode("a<s>b") == ids


def test_decoding_leaves_out_specials_and_unused_ids(full):
    ids = [57345, 97, 0xFFFF, 57346, 57344]
    assert full.decode(ids) == "a"
    assert full.decode(ids, skip_special=False) == "<s>a<unused_65535></s><pad>"
    assert full.decode([]) == ""
    assert full.decode(iter([97, 98])) == "ab"


@pytest.mark.parametrize("bad", [-1, 65_536])
def test_decoding_refuses_ids_out_of_range(full, bad):
    with pytest.raises(SubstrateError, match=rf"id {bad} at position 1 .* of 65,536 tokens"):
        full.decode([97, bad])


@pytest.mark.parametrize("name", ["full", "small"])
def test_a_saved_tokenizer_is_the_same_here_and_in_the_library(request, tmp_path, name):
    tokenizer = request.getfixturevalue(name)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.vocabulary.difference(tokenizer.vocabulary) == ""
    assert loaded.vocabulary.specials == tokenizer.vocabulary.specials

    plain = tokenizers.Tokenizer.from_file(str(path))
    assert plain.get_vocab_size() == len(tokenizer.vocabulary)
    for text in ("ab cabca", "a  b\x0b" if name == "full" else "a  b", ""):
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == ids
        assert plain.encode(text).ids == ids
        assert plain.decode(ids) == text
    assert plain.encode("<s>").ids == [tokenizer.vocabulary.bos_id]
    assert loaded.encode("<s>") == tokenizer.encode("<s>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model"), "not a tokenizer.json"),
        (lambda c: c["model"].update(type="WordPiece"), "type 'WordPiece', expected 'BPE'"),
        (lambda c: c.update(normalizer={"type": "NFC"}), "has normalizer"),
        (lambda c: c["model"].update(dropout=0.1), "dropout = 0.1"),
        (lambda c: c["model"]["merges"].pop(2), "difference at merge 2"),
        (lambda c: c["model"]["merges"].pop(), "difference at merge"),
        (lambda c: c["model"]["vocab"].pop("ab"), "no token has id"),
        (lambda c: c["model"]["vocab"].pop("<unk>"), "'<unk>' has no id"),
        (lambda c: c.update(added_tokens=[]), "has no special token '<pad>'"),
        (lambda c: c.update(added_tokens=None), "not a tokenizer.json"),
    ],
)
def test_loading_refuses_another_construction(small, tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    small.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SubstrateError, match=message) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(str(path))


def test_loading_rejects_files_that_are_not_json(small, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(SubstrateError, match=r"tokenizer.json: no such file"):
        Tokenizer.load(path)
    small.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SubstrateError, match=r"tokenizer.json: not a tokenizer.json"):
        Tokenizer.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(SubstrateError, match=r"tokenizer.json: not a tokenizer.json"):
        Tokenizer.load(path)


def test_a_long_text_is_encoded_in_pieces(full, monkeypatch):
    """The library's merging takes more than linear time in the length of a text."""
    given_lengths = []

    class Backend:
        def encode_batch_fast(self, pieces):
            given_lengths.append([len(piece) for piece in pieces])
            return backend.encode_batch_fast(pieces)

    backend = full._backend
    text = "".join(data.demo_splits("Latin").train)[:100_000] * 50
    expected = full.encode(text)
    monkeypatch.setattr(full, "_backend", Backend())
    assert full.encode(text) == expected
    lengths = [length for group in given_lengths for length in group]
    assert sum(lengths) == len(text)
    # A cut is made between two characters that are in no token: in words, some characters later.
    assert max(lengths) < tokenizer_module.PIECE + 100
    assert max(map(len, given_lengths)) == tokenizer_module.GROUP
