"""A configuration as planning sees it: no substrate is drawn where the file states its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastgrow.cli.config import read_config
from fastgrow.cli.settings import GrowthSettings, find_config, read_demo, read_growth
from fastgrow.data import demo_characters
from fastgrow.demo import DemoSettings
from fastgrow.growth import GrowthSchedule
from fastgrow.nn import DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.substrate.codes import Code
from fastgrow.training import TrainConfig


@dataclass(frozen=True)
class Planned:
    """What a plan is made of.

    Attributes:
        model: with vocab_size and n_embed settled.
        schedule: of the run, or of one of the demo's specialists.
        train: how it is trained.
        table_bytes: of the frozen table.
    """

    model: DecoderConfig
    schedule: GrowthSchedule
    train: TrainConfig
    table_bytes: int


def read_planned(name: str, overrides: Sequence[str]) -> Planned:
    """Read the configuration of a growth run, or of the demo.

    Raises:
        ConfigError: as `read_growth` and `read_demo`.
        FastgrowError: the file states no vocabulary size, and the substrate cannot be built.
    """
    if is_demo(name):
        return _of_demo(read_demo(name, overrides))
    settings = read_growth(name, overrides)
    if settings.states_sizes:
        model = replace(settings.model)
        return Planned(model, settings.schedule, settings.train, _stated_table(settings))
    substrate = settings.substrate.build()
    model = settings.model_config(substrate)
    return Planned(model, settings.schedule, settings.train, table_bytes(substrate))


def is_demo(name: str) -> bool:
    """Whether a file holds the settings of the demo: only a growth run's names its data."""
    return "data" not in read_config(find_config(name)) and "stages" in read_config(
        find_config(name)
    )


def table_bytes(substrate: Substrate) -> int:
    """Of the frozen table that models on the substrate hold."""
    packed = substrate.packed_table
    return 4 * len(substrate) * substrate.n_embed if packed is None else packed.nbytes


def _stated_table(settings: GrowthSettings) -> int:
    model, codes = settings.model, settings.substrate.codes
    if codes is None or Code.parse(codes).real:
        return 4 * model.vocab_size * model.embed_width
    return model.vocab_size * -(-model.embed_width // 8)


def _of_demo(settings: DemoSettings) -> Planned:
    substrate = Substrate.build(
        characters=demo_characters(), n_ngrams=0, n_components=settings.d_model
    )
    model = DecoderConfig(
        vocab_size=len(substrate),
        d_model=settings.d_model,
        n_head=settings.n_head,
        n_embed=substrate.n_embed,
        max_seq_len=settings.seq_len,
    )
    return Planned(model, settings.schedule, settings.train, table_bytes(substrate))
