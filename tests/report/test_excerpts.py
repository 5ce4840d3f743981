"""The text for samples is test text of the run, identified by its hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastgrow as fg
from fastgrow.report.inside.excerpts import Excerpt, bundled_excerpts, own_excerpt


def test_the_runs_own_test_text(runs: Path, substrate: fg.Substrate) -> None:
    settings = json.loads((runs / "grown" / "run.json").read_text())
    found = own_excerpt(runs / "grown", settings, substrate)
    assert found is not None
    assert found.origin == "the text “test” of grown"
    assert found.text in (runs / "corpus.txt").read_text().splitlines()
    del settings["evaluate_on"]["test"]
    validation = own_excerpt(runs / "grown", settings, substrate)
    assert validation is not None
    assert validation.origin == "the text “validation” of grown"
    assert validation.text != found.text


@pytest.mark.parametrize("damage", ["hash", "short", "manifest", "foreign"])
def test_damaged_or_foreign_token_files_are_not_used(
    runs: Path, substrate: fg.Substrate, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs / "empty"))
    settings = json.loads((runs / "grown" / "run.json").read_text())
    settings["evaluate_on"].pop("validation")
    (entry,) = (runs / "tokens").iterdir()
    if damage == "hash":
        settings["evaluate_on"]["test"] = "0" * 64
    elif damage == "short":
        file = entry / "test.bin"
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "manifest":
        (entry / "manifest.json").write_text("[]")
    else:
        substrate = fg.Substrate.build(characters="ab", n_ngrams=0, n_components=4)
    assert own_excerpt(runs / "grown", settings, substrate) is None


def test_bundled_texts_fit_the_substrate(substrate: fg.Substrate) -> None:
    assert bundled_excerpts(substrate) == []
    whole = fg.Substrate.build(characters=fg.data.demo_characters(), n_ngrams=0, n_components=4)
    found = bundled_excerpts(whole)
    assert [e.origin for e in found] == [
        f"bundled {script} test text" for script in ("Latin", "Cyrillic", "Han")
    ]
    for excerpt in found:
        assert 0 < len(whole.encode(excerpt.text)) <= 90


def test_a_prompt_ends_with_a_whole_word() -> None:
    assert Excerpt("All are equal before the law", "").prompt == "All are equal before "
    assert Excerpt("法律之前人人平等并有权", "").prompt == "法律之前人人平等"
    assert Excerpt("", "").prompt == ""
