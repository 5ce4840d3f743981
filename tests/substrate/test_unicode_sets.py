from __future__ import annotations

import unicodedata

import pytest

from fastgrow.errors import SubstrateError
from fastgrow.substrate.unicode_sets import (
    block_characters,
    block_names,
    characters_of,
    script_characters,
    script_names,
)


@pytest.mark.parametrize(
    ("script", "prefix"),
    [("Latin", "LATIN"), ("Cyrillic", "CYRILLIC"), ("Greek", "GREEK"), ("Hangul", "HANGUL")],
)
def test_a_script_holds_the_letters_that_unicode_names_after_it(script, prefix):
    letters = {
        chr(point)
        for point in range(0x3000)
        if unicodedata.name(chr(point), "").startswith(f"{prefix} ")
        and unicodedata.category(chr(point)) in ("Lu", "Ll")
    }
    assert letters <= script_characters(script)


def test_a_script_brings_what_its_text_needs_and_no_other_script():
    cyrillic = script_characters("Cyrillic")
    assert set("Все люди — 30 «статей», №\u00a07:\tп'ять\n") <= cyrillic
    assert cyrillic.isdisjoint("abcXYZ汉αא。")
    han = script_characters("Han")
    assert set("汉漢、。，！（）《》") <= han
    assert han.isdisjoint("ぁж")
    assert "।" in script_characters("Devanagari")
    assert "\x00" not in cyrillic
    assert "\u200b" not in cyrillic


def test_blocks_hold_assigned_characters_only():
    assert block_characters("Basic Latin") == set(map(chr, range(128)))
    greek = block_characters("Greek and Coptic")
    assert "α" in greek
    assert "\u0378" not in greek


def test_names_are_found_whatever_their_case():
    assert script_characters("latin") == script_characters("LATIN") == script_characters("Latin")
    assert block_characters("basic_latin") == block_characters("Basic Latin")
    assert {"Latin", "Cyrillic", "Han"} <= set(script_names())
    assert "Cyrillic" in block_names()


def test_the_union_is_sorted_and_distinct():
    assert characters_of(characters=["ba", "Ж", "a"]) == ["a", "b", "Ж"]
    both = characters_of(blocks=["Basic Latin"], characters="aЖ")
    assert both == sorted({*map(chr, range(128)), "Ж"})
    assert characters_of() == []


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(SubstrateError, match=r"no Unicode script 'Latni'.*did you mean 'Latin'"):
        script_characters("Latni")
    with pytest.raises(SubstrateError, match="no Unicode block 'Emoticons'"):
        block_characters("Emoticons")
