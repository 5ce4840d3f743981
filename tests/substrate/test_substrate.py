"""The substrate: options, identity, files and errors."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgrow.errors import CheckpointError, SubstrateError
from fastgrow.substrate import Recipe, Substrate

TEXT = "Hello, Привет, Ελλάδα 汉字!\n\u00a0"
PACKED, RECIPE, TOKENIZER = "substrate.safetensors", "substrate.json", "tokenizer.json"


def build(**options: Any) -> Substrate:
    return Substrate.build(characters=TEXT + "AΑА", **options)


@pytest.fixture(scope="module")
def substrate() -> Substrate:
    return build()


# Attributes


def test_parts_fit_together(substrate: Substrate) -> None:
    n_tokens = len(substrate.vocabulary)
    assert len(substrate) == n_tokens
    assert substrate.bitmaps.shape == (n_tokens, 128)
    assert substrate.table.shape == (n_tokens, 1024) == (len(substrate), substrate.n_embed)
    assert substrate.table.dtype == np.float32
    assert substrate.table is substrate.table
    assert (substrate.pad_id, substrate.bos_id, substrate.eos_id, substrate.unk_id) == (0, 1, 2, 3)
    assert substrate.decode(substrate.encode(TEXT)) == TEXT
    assert substrate.encode_batch([TEXT, "H"]) == [substrate.encode(TEXT), substrate.encode("H")]


def test_bitmap_by_token_and_by_id(substrate: Substrate) -> None:
    id_ = substrate.vocabulary.ids["汉"]
    bitmap = substrate.bitmap("汉")
    assert bitmap.shape == (32, 32)
    assert bitmap.dtype == bool
    np.testing.assert_array_equal(bitmap, substrate.bitmap(id_))
    assert bitmap.sum() == np.unpackbits(substrate.bitmaps[id_]).sum()
    with pytest.raises(SubstrateError, match="no token 'Я'"):
        substrate.bitmap("Я")
    with pytest.raises(SubstrateError, match="id 9999 is outside the vocabulary"):
        substrate.bitmap(9999)


def test_bits_cannot_be_written_to(substrate: Substrate) -> None:
    with pytest.raises(ValueError, match="read-only"):
        substrate.bits[0, 0] = 1


def test_narrow_table_is_the_leading_components(substrate: Substrate) -> None:
    narrow = build(n_components=16)
    assert narrow.n_embed == 16
    leading = substrate.table[:, :16]
    leading = leading / np.linalg.norm(leading, axis=1, keepdims=True)
    np.testing.assert_allclose(narrow.table, leading, atol=1e-5)


def test_cells_and_recipes(substrate: Substrate) -> None:
    assert build(cell=16).table.shape == (len(substrate), 256)
    with pytest.raises(
        SubstrateError, match="cell: expected an integer of at least 8 and at most 128, got 4"
    ):
        build(cell=4)
    with pytest.raises(SubstrateError, match=r"cell=24: .* multiples of 16 pixels"):
        build(cell=24)


# Collisions


def test_collisions_list_tokens_that_look_the_same(substrate: Substrate) -> None:
    tokens = substrate.vocabulary.tokens
    groups = [{tokens[id_] for id_ in group} for group in substrate.collisions()]
    assert {"A", "Α", "А"} in groups
    assert {" ", "\u00a0", "\n"} in groups
    for group in substrate.collisions():
        assert (substrate.table[group] == substrate.table[group[0]]).all()
    distinct = len(substrate) - sum(len(group) - 1 for group in groups)
    assert distinct == len(np.unique(substrate.bits, axis=0))
    report = substrate.describe_collisions(limit=1)
    assert f"{distinct} distinct vectors for {len(substrate)} tokens" in report
    assert f"and {len(groups) - 1} more groups" in report


def test_newline_glyph_ends_its_collision() -> None:
    shown = build(newline="glyph")
    newline = shown.vocabulary.ids["\n"]
    assert all(newline not in group for group in shown.collisions())
    with pytest.raises(SubstrateError, match="newline: expected one of blank, glyph, got 'drawn'"):
        build(newline="drawn")


# Codes


@pytest.mark.parametrize("codes", ["id-16", "random-16", "random-64", "random-256", "random-1024"])
def test_codes_replace_glyphs(codes: str) -> None:
    n_bits = int(codes.split("-")[1])
    binary, real = build(codes=codes), build(codes=f"{codes}-float")
    assert binary.n_embed == real.n_embed == n_bits
    assert set(np.unique(binary.table)) == {0.0, 1.0}
    assert len(np.unique(binary.table, axis=0)) == len(binary)
    np.testing.assert_allclose(np.linalg.norm(real.table, axis=1), 1, atol=1e-6)
    assert binary.collisions() == []
    assert "tokens have distinct vectors" in binary.describe_collisions()
    with pytest.raises(SubstrateError, match="has no glyph bitmaps"):
        _ = binary.bitmaps


def test_codes_cannot_be_combined_with_every_option() -> None:
    assert build(codes="random-64-float", n_components=8).table.shape[1] == 8
    with pytest.raises(SubstrateError, match="use 'random-64-float'"):
        build(codes="random-64", n_components=8)
    with pytest.raises(SubstrateError, match="cannot be combined with font="):
        build(codes="random-64", font="any.ttf")
    with pytest.raises(SubstrateError, match="no codes 'random-65'"):
        build(codes="random-65")
    with pytest.raises(SubstrateError, match=r"n_components=2000: expected 1 to 1,024"):
        build(n_components=2000)


# Identity


def test_same_options_give_the_same_fingerprint(substrate: Substrate) -> None:
    again = build()
    assert again is not substrate
    assert again.fingerprint == substrate.fingerprint
    assert again.difference(substrate) == ""
    assert len(substrate.fingerprint) == 64


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"newline": "glyph"}, r"glyph bitmaps of 1 tokens, first at id \d+ \('\\n'\)"),
        ({"n_components": 64}, "n_components: 1024 against 64"),
        ({"cell": 16}, "n_bits: 1024 against 256"),
        ({"codes": "random-1024"}, "source: glyphs against codes"),
        ({"specials": ["<think>"]}, r"vocabularies: \d+ tokens against \d+"),
    ],
)
def test_every_option_is_part_of_the_fingerprint(
    substrate: Substrate, options: dict[str, Any], difference: str
) -> None:
    other = build(**options)
    assert other.fingerprint != substrate.fingerprint
    assert re.fullmatch(f"{difference}.*", substrate.difference(other))


def test_seed_and_form_of_codes_are_part_of_the_fingerprint() -> None:
    first, second = build(codes="random-64"), build(codes="random-64", seed=1)
    assert first.difference(second).startswith("codes of ")
    assert first.difference(build(codes="random-64-float")) == "n_components: None against 64"


def test_no_digit_of_the_table_is_part_of_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch, substrate: Substrate
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the table was computed")

    monkeypatch.setattr("fastgrow.substrate.substrate.principal_axes", refuse)
    assert build().fingerprint == substrate.fingerprint


# Texts that raise an error


def test_unknown_character_is_named_or_becomes_unk(substrate: Substrate) -> None:
    with pytest.raises(SubstrateError, match=r"'Я' \(U\+042F\) at position 2"):
        substrate.encode("HeЯ")
    assert substrate.encode("HЯ", unknown="unk")[-1] == substrate.unk_id
    assert substrate.encode_batch(["Я"], unknown="unk") == [[substrate.unk_id]]
    with pytest.raises(SubstrateError, match="U\\+D800 at position 1"):
        substrate.encode("H\ud800")


def test_author_recipe_needs_its_ngrams(tmp_path: Path) -> None:
    with pytest.raises(SubstrateError, match="requires ngrams="):
        Substrate.build("bvv241-2-3")
    with pytest.raises(SubstrateError, match=r"absent\.txt: No such file"):
        Substrate.build("bvv241-2-3", ngrams=tmp_path / "absent.txt")
    (tmp_path / "broken.txt").write_text("[{'lang': 'en', 'language_name'")
    with pytest.raises(SubstrateError, match=r"broken\.txt: not a list of n-grams"):
        Substrate.build("bvv241-2-3", ngrams=tmp_path / "broken.txt")
    with pytest.raises(SubstrateError, match="no recipe 'bvv'"):
        Substrate.build("bvv")


# Files


@pytest.mark.parametrize(
    ("options", "as_recipe"),
    [
        ({}, False),
        ({}, True),
        ({"n_components": 40, "newline": "glyph"}, False),
        ({"codes": "random-64"}, False),
        ({"codes": "random-64-float", "seed": 3}, True),
        ({"codes": "id-16-float"}, False),
    ],
)
def test_saved_substrate_is_loaded_unchanged(
    tmp_path: Path, options: dict[str, Any], as_recipe: bool
) -> None:
    saved = build(**options)
    saved.save(tmp_path / "s", as_recipe=as_recipe)
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {TOKENIZER, RECIPE if as_recipe else PACKED}
    loaded = Substrate.load(tmp_path / "s")
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.recipe == saved.recipe
    assert loaded.vocabulary == saved.vocabulary
    np.testing.assert_array_equal(loaded.bits, saved.bits)
    np.testing.assert_array_equal(loaded.table, saved.table)
    assert loaded.encode(TEXT) == saved.encode(TEXT)


def test_loading_packed_draws_and_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, substrate: Substrate
) -> None:
    substrate.save(tmp_path / "s")

    def refuse(*_: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("fastgrow.substrate.substrate.principal_axes", refuse)
    monkeypatch.setattr(Recipe, "make_bits", refuse)
    np.testing.assert_array_equal(Substrate.load(tmp_path / "s").table, substrate.table)


def test_saving_again_changes_the_form_and_keeps_other_files(
    tmp_path: Path, substrate: Substrate
) -> None:
    substrate.save(tmp_path / "s")
    substrate.save(tmp_path / "s", as_recipe=True)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {TOKENIZER, RECIPE}
    (tmp_path / "s" / "model.safetensors").write_text("a model's")
    substrate.save(tmp_path / "s")
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {TOKENIZER, PACKED, "model.safetensors"}
    assert Substrate.load(tmp_path / "s").fingerprint == substrate.fingerprint


def test_recipe_of_a_font_file_is_refused(tmp_path: Path) -> None:
    import matplotlib

    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    drawn = Substrate.build(characters="abc", font=font)
    with pytest.raises(SubstrateError, match=r"DejaVuSans\.ttf, which a recipe does not contain"):
        drawn.save(tmp_path / "s", as_recipe=True)
    drawn.save(tmp_path / "s")
    assert Substrate.load(tmp_path / "s").fingerprint == drawn.fingerprint
    with pytest.raises(SubstrateError, match=r"none\.ttf: no such font file"):
        Substrate.build(characters="abc", font=tmp_path / "none.ttf")


def test_missing_files_are_named(tmp_path: Path, substrate: Substrate) -> None:
    with pytest.raises(CheckpointError, match="absent: no substrate found"):
        Substrate.load(tmp_path / "absent")
    substrate.save(tmp_path / "s")
    (tmp_path / "s" / TOKENIZER).unlink()
    with pytest.raises(SubstrateError, match=r"tokenizer\.json: no such file"):
        Substrate.load(tmp_path / "s")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", [PACKED, RECIPE, TOKENIZER])
def test_truncated_files_are_detected(
    tmp_path: Path, substrate: Substrate, name: str, kept: float
) -> None:
    substrate.save(tmp_path / "s", as_recipe=name == RECIPE)
    file = tmp_path / "s" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises((CheckpointError, SubstrateError), match=name.replace(".", r"\.")):
        Substrate.load(tmp_path / "s")


@pytest.mark.parametrize("name", [PACKED, RECIPE, TOKENIZER])
def test_flipped_bits_are_detected_or_harmless(tmp_path: Path, name: str) -> None:
    substrate = Substrate.build(characters="abж", cell=16, n_components=3)
    substrate.save(tmp_path / "s", as_recipe=name == RECIPE)
    file = tmp_path / "s" / name
    content = file.read_bytes()
    generator = random.Random(0)
    caught = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            loaded = Substrate.load(tmp_path / "s")
        except (CheckpointError, SubstrateError):
            caught += 1
        else:
            assert loaded.fingerprint == substrate.fingerprint
            np.testing.assert_array_equal(loaded.table, substrate.table)
            assert loaded.recipe == substrate.recipe
    assert caught > 200


@pytest.mark.parametrize(
    ("written", "edited", "message"),
    [
        (b'rotation\\": 4.0', b'rotation\\": 5.0', "recipe changed"),
        (b'n_components\\": 3', b'n_components\\": 4', "recipe changed"),
        (b'\\"fingerprint\\": \\"', b'\\"fingerprint\\": \\"0', "fingerprint is"),
    ],
)
def test_edited_description_is_detected(
    tmp_path: Path, written: bytes, edited: bytes, message: str
) -> None:
    Substrate.build(characters="abж", n_components=3).save(tmp_path / "s")
    file = tmp_path / "s" / PACKED
    content = file.read_bytes()
    assert content.count(written) == 1
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(written, edited)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(CheckpointError, match=message):
        Substrate.load(tmp_path / "s")


def test_files_of_two_substrates_do_not_mix(tmp_path: Path, substrate: Substrate) -> None:
    substrate.save(tmp_path / "a")
    Substrate.build(characters=TEXT).save(tmp_path / "b")
    (tmp_path / "b" / TOKENIZER).replace(tmp_path / "a" / TOKENIZER)
    with pytest.raises(CheckpointError, match=r"expected \[\d+, 128\] for the tokens of tokenizer"):
        Substrate.load(tmp_path / "a")
    substrate.save(tmp_path / "a", as_recipe=True)
    Substrate.build(characters=TEXT).save(tmp_path / "b")
    (tmp_path / "b" / TOKENIZER).replace(tmp_path / "a" / TOKENIZER)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: vocabulary changed"):
        Substrate.load(tmp_path / "a")


def test_later_format_is_refused(tmp_path: Path, substrate: Substrate) -> None:
    substrate.save(tmp_path / "s", as_recipe=True)
    file = tmp_path / "s" / RECIPE
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(CheckpointError, match="format 2, this version of fastgrow reads format 1"):
        Substrate.load(tmp_path / "s")


def test_import_and_default_glyphs_load_neither_torch_nor_pillow_nor_freetype() -> None:
    program = (
        "import sys; from fastgrow.substrate import Substrate\n"
        "Substrate.build(characters='abc').table\n"
        "print([name for name in ('torch', 'PIL', 'freetype') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
