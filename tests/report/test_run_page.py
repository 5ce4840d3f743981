"""The page of a run folder is complete and self-contained, and lists what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from page_text import PageText

import fastgrow as fg
from fastgrow.errors import ConfigError
from fastgrow.report.inside import FOLDERS, FolderKind, PageOptions, write_page

EVIL = "<script>alert(1)</script>"


def demo_of(runs: Path) -> Path:
    """Turn `runs` into a folder of runs such as the demo writes it."""
    demo = runs / "demo"
    demo.mkdir()
    (runs / "tokens").rename(demo / "tokens")
    (runs / "grown").rename(demo / "en-grown")
    (runs / "duo").rename(demo / "composed")
    record = {
        "settings": {"stages": 2, "seed": 0},
        "matrix": {
            "columns": ["en", "mixed"],
            "rows": {"expert en": [2.125, 4.5], "posterior": [2.25, 3.0], "uniform": [5.0, 5.0]},
        },
        "samples": {"en": {"expert en": "the cat", "composed": "the dog"}},
        "findings": ["Growing lost."],
        "seconds": 12.5,
    }
    (demo / "demo.json").write_text(json.dumps(record))
    return demo


def test_a_growth_run(made: Path) -> None:
    page = write_page(made / "grown")
    assert page == made / "grown" / "report.html"
    text = PageText(page)
    assert text.headings == [
        "Growth",
        "Samples by depth",
        "Nearest glyphs",
        "Settings and environment",
    ]
    assert "grown: a growth run" in text.words
    for stage in json.loads((made / "grown" / "growth.json").read_text()):
        for number in (stage["active_parameters"], stage["total_parameters"], stage["tokens"]):
            assert f"{number:,}" in text.cells
        for bits in (*stage["bits"].values(), stage["bits_at_start"]):
            assert f"{bits:.3f}" in text.cells
    for words in ("Growth curve", "Training loss by stage", "Speed", "Parameters", "tokens/s"):
        assert words in text.words
    assert "1 of 2 blocks" in text.words
    assert "all 2 blocks" in text.words
    assert "were last trained for the full depth" in text.words
    assert "from the text “test” of grown" in text.words
    assert "train.batch_size" in text.cells
    assert "environment.torch" in text.cells
    assert torch.__version__ in text.cells


def test_a_composed_model(made: Path) -> None:
    page = write_page(made / "duo", options=PageOptions(text="the cat sat"))
    # A page in the folder would prevent the model from being saved there again.
    assert page == made / "duo-report.html"
    fg.load(made / "duo").save(made / "duo")
    text = PageText(page)
    assert text.headings == [
        "Experts",
        "Which expert supports which token",
        "Samples of the ensemble",
        "Samples by depth",
        "Nearest glyphs",
        "Settings and environment",
    ]
    assert text.tags.count("svg") == 3 * 8
    assert "The given text" in text.words
    titles = [value for name, value in text.attributes if name == "title"]
    assert len(titles) == len("the cat sat")
    assert all(
        re.fullmatch(r"en .* bits; other .* bits; ensemble .* bits", title) for title in titles
    )


def test_bundled_texts_are_used_without_a_text(made: Path) -> None:
    substrate = fg.Substrate.build(
        characters=sorted(set("".join(fg.data.demo_splits("Han").test))),
        n_ngrams=0,
        n_components=16,
    )
    config = fg.DecoderConfig(
        vocab_size=len(substrate), d_model=16, n_head=2, n_layer=1, max_seq_len=32
    )
    fg.Ensemble({"zh": fg.Decoder(config, substrate)}).save(made / "zh")
    text = PageText(write_page(made / "zh"))
    assert "Bundled Han test text" in text.words
    assert "bundled Latin" not in text.words.lower()


def test_a_folder_of_runs(runs: Path) -> None:
    demo = demo_of(runs)
    (demo / "report.html").write_text("the demo's own")
    page = write_page(demo)
    assert page == demo / "page.html"
    assert (demo / "report.html").read_text() == "the demo's own"
    text = PageText(page)
    assert text.headings == [
        "Findings",
        "Growth",
        "Expert matrix",
        "Samples of the run",
        "Which expert supports which token",
        "Samples by depth",
        "Nearest glyphs",
        "Settings and environment",
    ]
    for cell in ("2.125", "3.000", "en-grown", "12.5"):
        assert cell in text.cells
    assert "Growing lost." in text.words
    # The best value of a column is the darkest, and the worst has no shade.
    shades = re.findall(r'hsl\(205 85% 50% / ([\d.]+)\)">([\d.]+)<', text.source)
    shade = {value: float(strength) for strength, value in shades}
    assert (shade["2.125"], shade["5.000"]) == (0.55, 0.0)
    assert "The text “test” of en-grown" in text.words


def test_the_same_seed_gives_the_same_page(made: Path, tmp_path: Path) -> None:
    pages = [
        write_page(
            made / "grown", tmp_path / f"{name}.html", options=PageOptions(seed=seed)
        ).read_text()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert pages[0] == pages[1]
    assert pages[0] != pages[2]


def test_the_page_refers_to_no_other_file(runs: Path) -> None:
    texts = [PageText(write_page(folder)) for folder in (runs / "grown", runs / "duo")]
    texts.append(PageText(write_page(demo_of(runs))))
    for text in texts:
        assert "script" not in text.tags
        for name, value in text.attributes:
            if name in ("src", "href", "srcset", "data", "xlink:href"):
                assert value.startswith(("data:", "#")), (name, value)
        assert "url(" not in text.source
        assert "@import" not in text.source
        assert len(text.source.encode()) < 1_500_000


def test_every_text_is_escaped(runs: Path) -> None:
    demo = demo_of(runs)
    demo = demo.rename(runs / "<script>demo")
    record = json.loads((demo / "demo.json").read_text())
    record["findings"] = [EVIL]
    record["settings"] = {EVIL: EVIL}
    record["samples"] = {EVIL: {EVIL: EVIL}}
    record["matrix"] = {"columns": [EVIL], "rows": {EVIL: [1.0]}}
    (demo / "demo.json").write_text(json.dumps(record))
    run = demo / "en-grown"
    stages = json.loads((run / "growth.json").read_text())
    for stage in stages:
        stage["bits"] = {EVIL: 1.0}
        stage["stage"] = EVIL
        stage[EVIL] = EVIL
        stage[f"drift{EVIL}"] = EVIL
    (run / "growth.json").write_text(json.dumps(stages))
    settings = json.loads((run / "run.json").read_text())
    settings["evaluate_on"] = {EVIL: settings["evaluate_on"]["test"]}
    settings["environment"] = {EVIL: EVIL}
    (run / "run.json").write_text(json.dumps(settings))
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        rows + json.dumps({"event": EVIL, "global_step": 1, EVIL: EVIL}) + "\n"
    )
    options = PageOptions(text=EVIL, neighbours=EVIL + "é")
    texts = [PageText(write_page(folder, options=options)) for folder in (demo, run)]
    # Tokens and characters are single: an unescaped "<" makes no tag, but is an error.
    assert ">&lt;</span>" in texts[0].source
    assert "<b>&lt; U+003C</b>" in texts[0].source
    texts.append(PageText(write_page(demo)))
    assert f"The text “{EVIL}” of en-grown" in texts[-1].words
    for text in texts:
        assert "script" not in text.tags
        assert text.words.count(EVIL) > 5
        assert all("script" not in name for name, _ in text.attributes)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def _write(name: str, content: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(content)


def _flip(run: Path) -> None:
    file = run / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (_remove("growth.json"), "growth.json: no such file"),
    (_remove("metrics.jsonl"), "metrics.jsonl is missing"),
    (_remove("run.json"), "run.json: no such file"),
    (_write("growth.json", "[{"), "growth.json: not valid JSON"),
    (_write("growth.json", "7"), "growth.json contains no list of stages"),
    (_write("growth.json", '[3, {"stage": [], "bits": 4, "depth": "x"}]'), "are not JSON objects"),
    (_write("run.json", "[]"), "run.json is not a JSON object of settings"),
    (_write("metrics.jsonl", '{"step": 1}\n{"st'), "1 of 2 lines are damaged"),
    (
        _write("metrics.jsonl", '{"step": 1e300, "global_step": NaN, "stage": {}, "loss": -1}\n'),
        "There are no metrics to plot",
    ),
    (_flip, "model.safetensors: damaged"),
    (_remove("model/config.json"), "config.json: no such file"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[words for _, words in DAMAGES])
def test_the_page_names_missing_and_damaged_files(
    runs: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(runs / "grown")
    text = PageText(write_page(runs / "grown"))
    assert any(words in note for note in text.notes), text.notes
    assert text.headings[0] == "Growth"
    assert text.headings[-1] == "Settings and environment"


def test_an_unfinished_demo(runs: Path) -> None:
    demo = demo_of(runs)
    (demo / "demo.json").unlink()
    (demo / "composed" / "config.json").unlink()
    text = PageText(write_page(demo))
    assert any("has not finished" in note for note in text.notes)
    assert any("The sections about the model are missing" in note for note in text.notes)
    assert "en-grown" in text.cells


def test_a_damaged_model_still_has_a_page(runs: Path) -> None:
    (runs / "duo" / "config.json").write_text("{")
    text = PageText(write_page(runs / "duo"))
    assert any("not valid JSON" in note for note in text.notes)


def test_a_text_that_the_model_cannot_read(made: Path, tmp_path: Path) -> None:
    options = PageOptions(text="日本", neighbours="é")
    text = PageText(write_page(made / "duo", tmp_path / "p.html", options=options))
    assert any("U+65E5" in note for note in text.notes)
    assert "Not in this vocabulary: é U+00E9." in text.notes


def test_records_alone(made: Path, tmp_path: Path) -> None:
    page = write_page(made / "grown", tmp_path / "p.html", options=PageOptions(models=False))
    text = PageText(page)
    assert text.headings == ["Growth", "Settings and environment"]
    assert any("No model was loaded" in note for note in text.notes)


def test_only_pages_of_fastgrow_are_replaced(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    options = PageOptions(models=False)
    write_page(made / "grown", page, options=options)
    first = page.read_text()
    write_page(made / "duo", page, options=options)
    assert page.read_text() != first
    for content in ("", "<html>mine</html>", "<!doctype html>\n" + "fastgrow report" * 5):
        page.write_text(content)
        with pytest.raises(ConfigError, match=r"p\.html: exists and was not written by"):
            write_page(made / "grown", page, options=options)
        assert page.read_text() == content
    with pytest.raises(ConfigError, match="exists and was not written"):
        write_page(made / "grown", tmp_path)


def test_a_folder_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: no such folder"):
        write_page(tmp_path / "absent")
    for name, content in (("config.json", '{"model_type": "gpt2"}'), ("notes.txt", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(
            ConfigError, match="not a run folder; expected the folder of a growth run"
        ):
            write_page(tmp_path)
        assert not list(tmp_path.glob("*.html"))


def test_further_kinds_of_folders(tmp_path: Path) -> None:
    kind = FolderKind(
        "a study",
        lambda folder: (folder / "study.json").is_file(),
        lambda report, folder, options: report.heading(f"Cells of {folder.name}"),
        lambda folder: folder / "study.html",
    )
    (tmp_path / "study.json").write_text("{}")
    page = write_page(tmp_path, kinds=(kind, *FOLDERS))
    assert PageText(page).headings == [f"Cells of {tmp_path.name}"]
