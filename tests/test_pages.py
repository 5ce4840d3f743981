"""The code on the pages about growing and composing runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import fastgrow as fg
from fastgrow.data import demo_characters, demo_splits
from fastgrow.growth.length import stage_length
from fastgrow.growth.setup import check_fits

DOCS = Path(__file__).resolve().parent.parent / "docs"


def code(page: str) -> str:
    """The one Python block of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_schedule_on_the_page_fits_a_model() -> None:
    names: dict = {}
    exec(compile(code("growth.md"), "growth.md", "exec"), names)
    # The nine-layer study's shape, for which the budget is written.
    config = fg.DecoderConfig(65_536, 1_024, n_head=32)
    shapes = [fg.growth.stage_shape(names["schedule"], i, config) for i in range(5)]
    assert [shape.depth for shape in shapes] == [3, 6, 6, 8, 8]
    assert shapes[2].adapted == tuple(range(6))
    assert shapes[3].new == (2, 5)
    assert shapes[4].trained == tuple(range(8))
    # And the default learning-rate schedule.
    train = fg.TrainConfig()
    lengths = [
        stage_length(stage, shape, config, train, 1_024)
        for stage, shape in zip(names["schedule"].stages, shapes, strict=True)
    ]
    check_fits(lengths, train)


def test_composing_as_on_the_page(tmp_path: Path, monkeypatch) -> None:
    sub = fg.Substrate.build(characters=demo_characters(), n_ngrams=0, n_components=16)
    config = fg.DecoderConfig(len(sub), 32, n_layer=1, n_head=2, max_seq_len=16)
    torch.manual_seed(0)
    names: dict = {name: fg.Decoder(config, sub) for name in ("ru", "zh", "code")}
    texts = vars(demo_splits("Cyrillic"))
    names["text"] = fg.TextData.from_splits(**texts, substrate=sub)
    written = code("composition.md")
    assert written.count("tokens=100_000") == 1
    monkeypatch.chdir(tmp_path)
    small = written.replace("tokens=100_000", "tokens=512").replace(
        'duo.offload("code")', 'duo.offload("code"); duo.recall("code")'
    )
    exec(compile(small, "composition.md", "exec"), names)
    back = fg.load("runs/duo")
    assert back.names == ("ru", "zh", "code")
    assert back.adapter is not None
