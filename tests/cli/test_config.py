"""Configuration: every name and type is checked, and an error names the entry."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from fastgrow.cli.config import apply_overrides, read_config, typed
from fastgrow.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    steps: int = 10
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps: expected at least 1, got {self.steps}")


@dataclass(frozen=True)
class Outer:
    train: Inner = field(default_factory=Inner)
    stages: list[Inner] = field(default_factory=list)
    name: str | None = None
    extra: Inner | None = None


def test_yaml_and_toml_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {lr: 1e-3, steps: 5}\nstages: [{steps: 1}]\n")
    (tmp_path / "a.toml").write_text("[train]\nlr = 1e-3\nsteps = 5\n[[stages]]\nsteps = 1\n")
    expected = Outer(Inner(lr=0.001, steps=5), [Inner(steps=1)])
    for name in ("a.yaml", "a.toml"):
        assert typed(read_config(tmp_path / name), Outer, name) == expected


def test_overrides_are_typed_and_reach_into_lists() -> None:
    tree: dict = {"stages": [{}, {}]}
    apply_overrides(tree, ["train.lr=1e-3", "stages.1.steps=1_000", "name=x", "extra.mode=b"])
    config = typed(tree, Outer, "test")
    assert config.train.lr == 0.001
    assert config.stages[1].steps == 1000
    assert config.stages[0].steps == 10
    assert config.name == "x"
    assert config.extra == Inner(mode="b")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trian": {}}, "f.yaml: trian: unknown name; did you mean 'train'?"),
        ({"train": {"lrr": 1}}, "f.yaml: train.lrr: unknown name; did you mean 'lr'?"),
        (
            {"stages": [{}, {"qq": 1}]},
            "f.yaml: stages.1.qq: unknown name; expected one of lr, steps, mode",
        ),
        ({"extra": {"stepz": 1}}, "f.yaml: extra.stepz: unknown name; did you mean 'steps'?"),
        ({"train": {"steps": "many"}}, "f.yaml: train.steps: expected an integer, got 'many'"),
        ({"train": {"mode": "c"}}, "f.yaml: train.mode: expected one of a, b, got 'c'"),
        ({"train": {"steps": 0}}, "f.yaml: train: steps: expected at least 1, got 0"),
    ],
)
def test_errors_say_where(tree: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed(tree, Outer, "f.yaml")
    assert str(error.value) == message


@pytest.mark.parametrize(
    "override",
    [
        "train.lr",
        "=3",
        "name.x.y=1",
        "stages.7.lr=1",
        "stages.x=1",
        "train.lr=[1",
        "train.lr=2020-13-45",
    ],
)
def test_bad_overrides_are_rejected(override: str) -> None:
    tree: dict = {"stages": [{}], "name": "n"}
    with pytest.raises(ConfigError, match="override"):
        apply_overrides(tree, [override])


def test_bad_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: 2")
    listing = tmp_path / "list.yaml"
    listing.write_text("- 1\n")
    date = tmp_path / "date.yml"
    date.write_text("a: 2020-13-45\n")
    unfinished = tmp_path / "unfinished.toml"
    unfinished.write_text("a = \n")
    other = tmp_path / "config.json"
    other.write_text("{}")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe")
    for path in (broken, listing, date, unfinished, other, binary, tmp_path / "absent.toml"):
        with pytest.raises(ConfigError) as error:
            read_config(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
