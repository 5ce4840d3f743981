"""`fastgrow plan` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgrow.cli import main
from fastgrow.cli.plan import duration, short
from fastgrow.cli.planned import read_planned
from fastgrow.cli.settings import shipped_configs
from fastgrow.substrate import Substrate

PUBLISHED = {"nine-layers-unicode": 247_614_464, "nine-layers-16-bit": 181_554_176}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["plan", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_configuration(capsys, monkeypatch, name: str) -> None:
    if not name.startswith("demo"):
        monkeypatch.setattr(Substrate, "build", lambda *a, **k: pytest.fail("drawn for a plan"))
    status, out, _ = run(capsys, name, "--no-measure")
    assert status == 0
    assert "monolith" in out
    assert "not measured (not requested)" in out


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_numbers(capsys, name: str) -> None:
    status, out, _ = run(capsys, name, "--no-measure", "--json")
    plan = json.loads(out)
    assert status == 0
    last = plan["stages"][-1]
    assert last["active_parameters"] == 104_952_832
    assert last["total_parameters"] == PUBLISHED[name]
    assert plan["monolith"]["active_parameters"] == 180_505_600


def test_codes_take_the_bytes_of_bits() -> None:
    codes, glyphs = (read_planned(f"nine-layers-{n}", []) for n in ("16-bit", "unicode"))
    assert (codes.table_bytes, glyphs.table_bytes) == (65_536 * 2, 65_536 * 1_024 * 4)


def test_a_file_with_overrides_is_timed(capsys, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        """
substrate: {characters: "abc ", n_ngrams: 0, n_components: 16}
model: {d_model: 32, n_head: 2, max_seq_len: 32}
data: [{source: is/not-there}]
schedule: {stages: [{tokens: 512}, {tokens: 512}]}
out: nowhere
"""
    )
    status, out, _ = run(capsys, str(path), "train.batch_size=2", "--corpus-tokens", "64", "--json")
    assert status == 0
    plan = json.loads(out)
    assert plan["measured"]
    assert plan["micro_batch"] == [2, 32]
    assert plan["seconds"] > 0
    assert plan["stages"][1]["cache"]["passes"] == 8
    assert list(tmp_path.iterdir()) == [path]


def test_the_trunk_that_the_file_asks_for_is_counted(capsys, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        """
substrate: {characters: "abc ", n_ngrams: 0, n_components: 16}
model: {d_model: 32, n_head: 2, max_seq_len: 32}
data: [{source: is/not-there}]
schedule: {stages: [{tokens: 512}, {tokens: 512}]}
trunk: {cache: ram}
out: nowhere
"""
    )
    arguments = (str(path), "--no-measure", "--corpus-tokens", "65")
    kept = json.loads(run(capsys, *arguments, "--json")[1])["stages"][1]
    off = json.loads(run(capsys, *arguments, "trunk.cache='off'", "--json")[1])["stages"][1]
    # Two windows of 32 tokens, 32 numbers of 4 bytes each.
    assert kept["peak"] - off["peak"] == kept["cache"]["bytes"] == 2 * 32 * 32 * 4
    assert "caches in ram" in run(capsys, *arguments)[1]
    assert (
        "recomputes the trunk: trunk.cache is off"
        in run(capsys, *arguments, "trunk.cache='off'")[1]
    )


def test_the_text_is_counted_where_it_is_a_file(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc cab\n" * 500)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
substrate: {{characters: "abc ", n_ngrams: 0, n_components: 16}}
model: {{d_model: 32, n_head: 2, max_seq_len: 32}}
data: [{{source: {text}, split: [0.8, 0.1, 0.1]}}]
schedule: {{stages: [{{tokens: 512}}]}}
out: nowhere
"""
    )
    # Of each line 7 characters, and a token at either end; the split takes 0.8 of them.
    assert read_planned(str(path), []).corpus_tokens == 500 * 9 * 8 // 10
    assert read_planned(str(path), ["data.0.source=no/where"]).corpus_tokens is None


def test_an_unknown_configuration_is_an_error(capsys) -> None:
    status, _, error = run(capsys, "no-such")
    assert status == 1
    assert "shipped configurations" in error


def test_numbers_and_times_read_well() -> None:
    assert [short(n) for n in (7, 999, 1_234, 12_345_678, 3.64e18)] == [
        "7", "999", "1.23 k", "12.3 M", "3.64 E",
    ]  # fmt: skip
    assert [duration(s) for s in (1.5, 300, 9_000, 400_000)] == [
        "1.5 s",
        "5.0 min",
        "2.5 h",
        "4.6 d",
    ]
