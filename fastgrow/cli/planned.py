"""Read a configuration for planning; no substrate is drawn if the file states its size."""

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

# Largest text (in bytes) that is read to count its tokens, and number of documents to encode.
READ_AT_MOST, SAMPLE = 64 << 20, 200


@dataclass(frozen=True)
class Planned:
    """The inputs of a plan.

    Attributes:
        model: configuration of the model, with its final vocab_size and n_embed.
        schedule: schedule of the run, or of one of the demo's specialists.
        train: training settings.
        table_bytes: size of the token table in bytes.
        corpus_tokens: approximate number of tokens in the training text; None if the text is not
            available.
        trunk: settings of the trunk; None if the file has none.
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
        ConfigError: see `read_growth` and `read_demo`.
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
    """Whether a file holds the demo's settings, which unlike a growth run's have no `data`."""
    tree = read_config(find_config(name))
    return "data" not in tree and "blocks" in tree


def table_bytes(substrate: Substrate) -> int:
    """Return the size in bytes of the token table of a model on the substrate."""
    packed = substrate.packed_table
    return 4 * len(substrate) * substrate.n_embed if packed is None else packed.nbytes


def _corpus_tokens(settings: GrowthSettings, substrate: Substrate) -> int | None:
    """Estimate the tokens of the training split from its characters and a sample of documents.

    Returns None if a source is on the Hub or too large to read quickly, or if a document cannot be
    encoded.
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
        # Each document has one token before it and one after it.
        per_character = sum(map(len, ids)) / max(sum(map(len, texts[:SAMPLE])), 1)
        total += source.split[0] * (sum(map(len, texts)) * per_character + 2 * len(texts))
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
    """Return the configuration of the demo's models before their first stage."""
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
