"""The schedule on docs/growth.md fits a model of the papers."""

from __future__ import annotations

import re
from pathlib import Path

import fastgrow as fg
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
