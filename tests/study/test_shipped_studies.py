"""The shipped studies have the documented settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgrow.cli.settings import read_study, shipped_configs
from fastgrow.compose import Rule
from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, Moments
from fastgrow.nn import Block, DecoderConfig
from fastgrow.study.compose import make_rule
from fastgrow.study.controls import CONTROLS
from fastgrow.study.settings import StudySettings, changed
from fastgrow.training import TrainConfig

STUDIES = shipped_configs("studies")


def study(name: str) -> StudySettings:
    return read_study(name, [])[1]


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_is_read(name: str) -> None:
    settings = study(name)
    assert settings.name == name
    assert len(settings.seeds) >= 3
    # `fastgrow grow` lists its own configurations only.
    assert name not in shipped_configs()


def test_the_composition_study_has_every_rule() -> None:
    settings = study("composition")
    # Other tests register rules of their own.
    ours = {kind for kind, rule in Rule.registry.items() if rule.__module__.startswith("fastgrow.")}
    for ensemble in settings.ensembles.values():
        kinds = set()
        for rule in ensemble.rules.values():
            for options in rule.choose or [rule.rule or {}]:
                kinds.add(make_rule(options, ensemble.experts).kind)
        assert kinds == ours - {"per_request"}


def size(settings: StudySettings, training: str) -> int:
    """Return the number of parameters of a training's model without the token table."""
    width: dict[str, Any] = {
        "vocab_size": settings.substrate.max_size,
        "n_embed": settings.substrate.n_components,
    }
    model = settings.trainings[training].model
    config = changed(DecoderConfig, training, settings.model, model, width)
    assert settings.schedule is not None
    block = sum(p.numel() for p in Block(config, device="meta").parameters())
    head = config.vocab_size * (config.d_model + 1) + 2 * config.d_model
    return settings.schedule.n_blocks * block + head


def test_the_union_has_the_experts_size_and_tokens() -> None:
    settings = study("composition")
    experts = settings.ensembles["experts"].experts
    for union in ("union-grown", "union-monolith"):
        together = sum(size(settings, expert) for expert in experts)
        assert size(settings, union) == pytest.approx(together, rel=0.025)
        assert settings.trainings[union].tokens == len(experts)


def test_the_union_reads_what_the_experts_read() -> None:
    settings = study("composition")
    read: dict[str, float] = {}
    for expert in settings.ensembles["experts"].experts:
        texts = settings.trainings[expert].texts
        for text, weight in texts.items():
            read[text] = read.get(text, 0) + weight / sum(texts.values())
    for other in ("union-grown", "union-monolith", "random-1", "random-2", "random-3"):
        texts = settings.trainings[other].texts
        shares = {text: 3 * weight / sum(texts.values()) for text, weight in texts.items()}
        assert shares == pytest.approx(read)
    parts = [settings.trainings[f"random-{i}"].part for i in (1, 2, 3)]
    assert parts == [(0, 3), (1, 3), (2, 3)]


def test_the_first_growth_study_has_every_control_at_equal_tokens_or_operations() -> None:
    settings = study("growth-per-stage")
    assert {training.control for training in settings.trainings.values()} == set(CONTROLS)
    assert settings.schedule is not None
    for name, training in settings.trainings.items():
        # Without a separate factor, so that these are the tokens it trains on, or those that are
        # scaled to as many FLOPs as the grown model's.
        assert training.tokens == 1
        assert training.equal_flops_to == ("grown" if "flops" in name else None)
        schedule = training.schedule or settings.schedule
        shallower = name.startswith(("never-grown", "monolith")) and name[-1] in "23"
        depth = int(name[-1]) if shallower else 6
        assert schedule.tokens == pytest.approx(depth * 524_288, rel=1e-4), name


def test_the_first_growth_study_grows_in_the_librarys_windows() -> None:
    schedule = study("growth-per-stage").schedule
    assert schedule == GrowthSchedule.blocks(6, tokens=524_288, recipe="windows")


def test_the_growth_study_reads_ten_tokens_a_parameter_wherever_it_does_not_say_otherwise() -> None:
    settings = study("growth")
    tokens = 6 * 524_288
    assert tokens / size(settings, "grown") == pytest.approx(10, rel=0.05)
    for name, training in settings.trainings.items():
        schedule = training.schedule or settings.schedule
        assert schedule is not None
        assert schedule.n_blocks == 6, name
        assert schedule.tokens == tokens, name
        scaled = training.tokens != 1 or training.equal_flops_to is not None
        assert scaled == name.endswith(("flops", "-60", "half", "quarter"))
    assert {name for names in settings.lines.values() for name in names} < set(settings.trainings)


def near(ours: GrowthSchedule, study: GrowthSchedule | None) -> bool:
    """The same stages; the study's are of whole steps."""
    assert study is not None
    pairs = list(zip(ours.stages, study.stages, strict=True))
    return all(
        replace(mine, tokens=1) == replace(theirs, tokens=1)
        and mine.tokens == pytest.approx(theirs.tokens, rel=0.003)
        for mine, theirs in pairs
    )


def test_the_growth_study_grows_by_the_librarys_recipe() -> None:
    settings, ours = study("growth"), GrowthSchedule.blocks(6, tokens=524_288)
    assert settings.schedule is not None
    assert near(ours, settings.schedule)
    assert settings.schedule.moments == (ours.moments or Moments())
    # And by the library's schedule of the learning rate.
    stated, usual = changed(TrainConfig, "train", settings.train), TrainConfig()
    for name in ("schedule", "warmup", "decay", "min_lr_ratio", "optimizer"):
        assert getattr(stated, name) == getattr(usual, name)


def test_the_arms_of_the_growth_study_are_recipes_by_name() -> None:
    trainings = study("growth").trainings
    tokens = 6 * 524_288
    for name, recipe in (
        ("doubling", GrowthSchedule.doubling(6, tokens=tokens)),
        ("doubling-middle", GrowthSchedule.doubling(6, tokens=tokens, place="middle")),
        ("doubling-old-half-rests", GrowthSchedule.doubling(6, tokens=tokens, train="new")),
        ("from-one", GrowthSchedule.gradual(6, tokens=tokens, start=1, grown_by=5 / 6)),
        ("jump-25", GrowthSchedule.jump(6, tokens=tokens, at=0.25)),
        ("jump-75", GrowthSchedule.jump(6, tokens=tokens, at=0.75)),
        ("window-3", GrowthSchedule.blocks(6, tokens=524_288, recipe="windows")),
        (
            "window-3-from-two",
            GrowthSchedule.gradual(6, tokens=tokens, start=2, window=3, grown_by=0.82),
        ),
    ):
        assert near(recipe, trainings[name].schedule), name


def test_a_study_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shipped configurations: composition, growth"):
        read_study("compositoin", [])
