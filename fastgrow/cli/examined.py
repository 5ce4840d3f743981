"""Build the run that `fastgrow doctor` checks: a configuration's, or a narrow substitute."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastgrow.cli.planned import demo_config, is_demo
from fastgrow.cli.settings import GrowthSettings, SourceSettings, read_demo, read_growth
from fastgrow.demo import DemoSettings
from fastgrow.demo.settings import SCRIPTS
from fastgrow.demo.specialists import prepare_texts
from fastgrow.errors import FastgrowError
from fastgrow.growth import GrowthSchedule, Trunk
from fastgrow.growth.doctor.synthetic import (
    narrow_config,
    narrow_schedule,
    random_text,
    synthetic_substrate,
)
from fastgrow.nn import DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.training import Mixture, TextData, TrainConfig
from fastgrow.training.data.sources import open_source

# Enough for a few training steps, and quick to read.
DOCUMENTS, CHARACTERS = 400, 400_000


@dataclass(frozen=True)
class Examined:
    """The parts of a run that `fastgrow doctor` needs.

    Attributes:
        config: configuration of the model before the first stage.
        substrate: substrate of the model.
        data: training text.
        schedule: growth schedule.
        train: training settings.
        notes: differences from the configuration file.
        trunk: settings of the trunk; None if the configuration has none.
    """

    config: DecoderConfig
    substrate: Substrate
    data: TextData | Mixture
    schedule: GrowthSchedule
    train: TrainConfig
    notes: list[str]
    trunk: Trunk | None = None


def read_examined(
    name: str, overrides: Sequence[str], folder: Path, *, synthetic: bool = False
) -> Examined:
    """Build a configuration's substrate and read the beginning of its data.

    If they cannot be opened, a synthetic substrate and random text are used instead.

    Args:
        name: a file or the name of a shipped configuration, of a growth run or of the demo.
        overrides: settings to change.
        folder: temporary folder for files that have to be written.
        synthetic: use a synthetic substrate and random text even if the configuration's are
            available.

    Raises:
        ConfigError: see `read_growth` and `read_demo`.
    """
    if is_demo(name):
        return _of_demo(read_demo(name, overrides), folder, synthetic)
    settings = read_growth(name, overrides)
    examined = _synthetic_run(settings) if synthetic else _of_run(settings)
    return replace(examined, trunk=settings.trunk)


def _of_run(settings: GrowthSettings) -> Examined:
    try:
        substrate = settings.substrate.build()
        data = _beginning(settings, substrate)
    except (FastgrowError, OSError) as error:
        reason = str(error).split("; ")[0].split(". ")[0]
        return _synthetic_run(settings, reason)
    config = settings.model_config(substrate)
    return Examined(config, substrate, data, settings.schedule, settings.train, [])


def _synthetic_run(settings: GrowthSettings, reason: str = "") -> Examined:
    return _synthetic(
        settings.model, settings.schedule, settings.train, settings.substrate.codes, reason
    )


def _of_demo(settings: DemoSettings, folder: Path, synthetic: bool) -> Examined:
    texts = prepare_texts(settings.d_model, folder / "tokens")
    config = demo_config(settings, texts.substrate)
    if synthetic:
        return _synthetic(config, settings.schedule, settings.train, None)
    data = texts.specialist(SCRIPTS[0], settings.own_share)
    notes = [f"checked: the demo's specialist for {SCRIPTS[0]}"]
    return Examined(config, texts.substrate, data, settings.schedule, settings.train, notes)


def _synthetic(
    config: DecoderConfig,
    schedule: GrowthSchedule,
    train: TrainConfig,
    codes: str | None,
    reason: str = "",
) -> Examined:
    substrate = synthetic_substrate(codes)
    narrow = narrow_config(config, substrate)
    note = (
        f"SYNTHETIC: random text, {len(substrate)} tokens, and a model of width {narrow.d_model} "
        f"instead of {config.d_model}; stages and training settings are those of the configuration"
    )
    notes = [note, f"reason: {reason}"] if reason else [note]
    return Examined(
        narrow, substrate, random_text(substrate), narrow_schedule(schedule), train, notes
    )


def _beginning(settings: GrowthSettings, substrate: Substrate) -> TextData | Mixture:
    """Read the first documents of every source into memory, without touching the run's cache."""
    parts = [(_first_documents(source, substrate), source.weight) for source in settings.data]
    return parts[0][0] if len(parts) == 1 else Mixture(parts)


def _first_documents(source: SourceSettings, substrate: Substrate) -> TextData:
    opened = open_source(source.open(), text_field=source.text_field, sample_by=source.sample_by)
    texts: list[str] = []
    characters = 0
    for document in itertools.islice(opened.documents(), DOCUMENTS):
        texts.append(document.text[:CHARACTERS])
        characters += len(document.text)
        if characters > CHARACTERS:
            break
    return TextData.from_splits(train=texts, substrate=substrate, unknown=source.unknown)
