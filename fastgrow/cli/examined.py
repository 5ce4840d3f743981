"""What `fastgrow doctor` examines: the run of a configuration, or a narrow stand-in for it."""

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

# Enough for a few steps, and read in a moment.
DOCUMENTS, CHARACTERS = 400, 400_000


@dataclass(frozen=True)
class Examined:
    """A run as far as it is examined.

    Attributes:
        config: the model's, before the first stage.
        substrate, data, schedule, train: of the run.
        notes: in what it differs from the configuration.
        trunk: how the frozen trunk is run; None where the configuration does not say.
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
    """Open a configuration's substrate and the beginning of its data.

    Args:
        name: of a file or a shipped configuration, of a growth run or of the demo.
        overrides: settings to change.
        folder: a temporary one, for whatever has to be written.
        synthetic: stand in for them, even if they are at hand.

    Raises:
        ConfigError: as `read_growth` and `read_demo`.
    """
    if is_demo(name):
        return _of_demo(read_demo(name, overrides), folder, synthetic)
    settings = read_growth(name, overrides)
    examined = _stand_in_of(settings) if synthetic else _of_run(settings)
    return replace(examined, trunk=settings.trunk)


def _of_run(settings: GrowthSettings) -> Examined:
    try:
        substrate = settings.substrate.build()
        data = _beginning(settings, substrate)
    except (FastgrowError, OSError) as error:
        reason = str(error).split("; ")[0].split(". ")[0]
        return _stand_in_of(settings, reason)
    config = settings.model_config(substrate)
    return Examined(config, substrate, data, settings.schedule, settings.train, [])


def _stand_in_of(settings: GrowthSettings, reason: str = "") -> Examined:
    return _stand_in(
        settings.model, settings.schedule, settings.train, settings.substrate.codes, reason
    )


def _of_demo(settings: DemoSettings, folder: Path, synthetic: bool) -> Examined:
    texts = prepare_texts(settings.d_model, folder / "tokens")
    config = demo_config(settings, texts.substrate)
    if synthetic:
        return _stand_in(config, settings.schedule, settings.train, None)
    data = texts.specialist(SCRIPTS[0], settings.own_share)
    notes = [f"the demo's specialist of {SCRIPTS[0]}"]
    return Examined(config, texts.substrate, data, settings.schedule, settings.train, notes)


def _stand_in(
    config: DecoderConfig,
    schedule: GrowthSchedule,
    train: TrainConfig,
    codes: str | None,
    reason: str = "",
) -> Examined:
    substrate = synthetic_substrate(codes)
    narrow = narrow_config(config, substrate)
    note = (
        f"SYNTHETIC: random text, and the model {narrow.d_model} wide in place of "
        f"{config.d_model}, with {len(substrate)} tokens; stages and settings are the run's"
    )
    notes = [note, f"because: {reason}"] if reason else [note]
    return Examined(
        narrow, substrate, random_text(substrate), narrow_schedule(schedule), train, notes
    )


def _beginning(settings: GrowthSettings, substrate: Substrate) -> TextData | Mixture:
    """The first documents of every source, in memory: the run's own cache is left alone."""
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
