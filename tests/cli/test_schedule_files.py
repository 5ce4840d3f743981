"""Stages of every kind come through a configuration file as they are in Python."""

from __future__ import annotations

import re

import pytest
import yaml

from fastgrow.cli.config import typed
from fastgrow.errors import ConfigError
from fastgrow.growth import Budget, GrowthSchedule, LoRA, Plateau, Stage

FILE = """
stages:
  - {blocks: 2, tokens: 100, lr: 1e-3}
  - {blocks: 0, lora: {budget: 5_000, blocks: [0, 1], targets: [mlp.up]}}
  - {blocks: 1, insertion: copy, at: [0], copy_of: [1], until: {flops: 1e15}, head: tied}
  - {lora: {rank: 8, alpha: 16}, final_norm: false, until: {patience: 2, min_delta: 1e-3}}
  - {blocks: 1, window: 2, until: {seconds: 60}}
  - {blocks: 1, insertion: copy, train: none, lora: {rank: 2, blocks: new}}
"""


def test_a_file_says_what_python_says() -> None:
    assert typed(yaml.safe_load(FILE), GrowthSchedule, "f.yaml").stages == (
        Stage(2, 100, lr=1e-3),
        Stage(0, lora=LoRA(budget=5_000, blocks=(0, 1), targets=("mlp.up",))),
        Stage(1, insertion="copy", at=(0,), copy_of=(1,), until=Budget(flops=1e15), head="tied"),
        Stage(lora=LoRA(rank=8, alpha=16.0), final_norm=False, until=Plateau(2, 1e-3)),
        Stage(1, window=2, until=Budget(seconds=60.0)),
        Stage(1, insertion="copy", train="none", lora=LoRA(rank=2, blocks="new")),
    )


FORMS = "a mapping with the keys {patience, min_delta, cooldown} or {flops, seconds}, or null"
# Stop criteria that other tests in this process defined.
OTHER_FORMS = re.compile(r"(?<=\{flops, seconds\})( or \{[^}]*\})+")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"lora": {"rnk": 3}}, "stages.0.lora.rnk: unknown name; did you mean 'rank'?"),
        ({"lora": {}}, "stages.0.lora: LoRA: expected exactly one of rank and budget"),
        (
            {"until": {"pace": 2}},
            f"stages.0.until: expected {FORMS}, got {{'pace': 2}}",
        ),
        ({"until": 3}, f"stages.0.until: expected {FORMS}, got 3"),
        ({"until": {}}, f"stages.0.until: expected {FORMS}, got {{}}"),
        (
            {"until": {"patience": "x"}},
            "stages.0.until.patience: expected an integer of at least 1, got 'x'",
        ),
        (
            {"until": {"flops": 1, "seconds": 1}},
            "stages.0.until: Budget: expected exactly one of flops and seconds",
        ),
    ],
)
def test_errors_say_where_in_the_file(stage: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed({"stages": [stage]}, GrowthSchedule, "f.yaml")
    assert OTHER_FORMS.sub("", str(error.value)) == f"f.yaml: {message}"
