"""A configuration as planning sees it: no substrate is drawn where the file states its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgrow.cli.config import read_config
from fastgrow.cli.settings import GrowthSettings, find_config, read_demo, read_growth
from fastgrow.data import demo_characters
from fastgrow.demo import DemoSettings
from fastgrow.errors import FastgrowError
from fastgrow.growth import GrowthSchedule, Trunk
from fastgrow.nn import DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.substrate.codes import Code
from fastgrow.training import TrainConfig
from fastgrow.training.data.sources import open_source

# Bytes of text that are read to count them, and documents that are encoded.
READ_AT_MOST, SAMPLE = 64 << 20, 200


@dataclass(frozen=True)
class Planned:
    """What a plan is made of.

    Attributes:
        model: with vocab_size and n_embed settled.
        schedule: of the run, or of one of the demo's specialists.
        train: how it is trained.
        table_bytes: of the frozen table.
        corpus_tokens: in the training text, about; None where it is not at hand.
        trunk: how the frozen trunk is run; None where the file does not say.
    """

    model: DecoderConfig
    schedule: GrowthSchedule
    train: TrainConfig
    table_bytes: int
    corpus_tokens: int | None = None
    trunk: Trunk | None = None


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
        return Planned(
            settings.model,
            settings.schedule,
            settings.train,
            _stated_table(settings),
            trunk=settings.trunk,
        )
    substrate = settings.substrate.build()
    model = settings.model_config(substrate)
    return Planned(
        model,
        settings.schedule,
        settings.train,
        table_bytes(substrate),
        _corpus_tokens(settings, substrate),
        settings.trunk,
    )


def is_demo(name: str) -> bool:
    """Whether a file holds the settings of the demo: only a growth run's names its data."""
    tree = read_config(find_config(name))
    return "data" not in tree and "blocks" in tree


def table_bytes(substrate: Substrate) -> int:
    """Of the frozen table that models on the substrate hold."""
    packed = substrate.packed_table
    return 4 * len(substrate) * substrate.n_embed if packed is None else packed.nbytes


def _corpus_tokens(settings: GrowthSettings, substrate: Substrate) -> int | None:
    """Tokens of the training split, from all its characters and the first documents' tokens.

    None where a source is on the Hub or takes long to read, or a document cannot be encoded.
    """
    total = 0.0
    for source in settings.data:
        path = Path(source.source)
        if not path.exists() or _size(path) > READ_AT_MOST:
            return None
        opened = open_source(path, text_field=source.text_field, sample_by=source.sample_by)
        texts = [document.text for document in opened.documents()]
        try:
            ids = substrate.encode_batch(texts[:SAMPLE], unknown=source.unknown)
        except FastgrowError:
            return None
        # Each document has a token before it and one behind.
        a_character = sum(map(len, ids)) / max(sum(map(len, texts[:SAMPLE])), 1)
        total += source.split[0] * (sum(map(len, texts)) * a_character + 2 * len(texts))
    return round(total) or None


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _stated_table(settings: GrowthSettings) -> int:
    model, codes = settings.model, settings.substrate.codes
    if codes is None or Code.parse(codes).real:
        return 4 * model.vocab_size * model.embed_width
    return model.vocab_size * -(-model.embed_width // 8)


def demo_config(settings: DemoSettings, substrate: Substrate) -> DecoderConfig:
    """The models of the demo, before their first stage."""
    return DecoderConfig(
        vocab_size=len(substrate),
        d_model=settings.d_model,
        n_head=settings.n_head,
        n_embed=substrate.n_embed,
        max_seq_len=settings.seq_len,
    )


def _of_demo(settings: DemoSettings) -> Planned:
    substrate = Substrate.build(
        characters=demo_characters(), n_ngrams=0, n_components=settings.d_model
    )
    model = demo_config(settings, substrate)
    return Planned(model, settings.schedule, settings.train, table_bytes(substrate))
