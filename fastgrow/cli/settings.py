"""What a configuration file of `fastgrow grow` holds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from fastgrow._checked import NonNegativeInt, PositiveFloat, PositiveInt, Proportion
from fastgrow.cli.config import apply_overrides, read_config, typed
from fastgrow.demo import DemoSettings
from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, Trunk
from fastgrow.nn import DecoderConfig
from fastgrow.study.settings import StudySettings
from fastgrow.substrate import Substrate
from fastgrow.training import HubDataset, Mixture, TextData, TrainConfig

# Schedules that are made and not written out; class methods of `GrowthSchedule`.
RECIPES = ("blocks", "gradual", "doubling", "jump")
# Stands for a vocabulary size that the file leaves to the substrate; no vocabulary has one token.
_FROM_SUBSTRATE = 1


@dataclass(frozen=True)
class SubstrateSettings:
    """A saved substrate (`path`), or how to draw one: the options of `Substrate.build`."""

    path: str | None = None
    recipe: str = "default"
    ngrams: str | None = None
    scripts: list[str] | None = None
    blocks: list[str] | None = None
    characters: str | None = None
    n_ngrams: NonNegativeInt | None = None
    max_size: PositiveInt | None = None
    n_components: PositiveInt | None = None
    newline: Literal["blank", "glyph"] = "blank"
    cell: Annotated[int, Meta(ge=8, le=128)] | None = None
    font: str | None = None
    codes: str | None = None
    seed: int = 0

    def build(self) -> Substrate:
        """Load or draw it.

        Raises:
            ConfigError: the n-gram lists are not where `ngrams` says.
            FastgrowError: as `Substrate.load` and `Substrate.build`.
        """
        if self.ngrams is not None and not Path(self.ngrams).exists():
            raise ConfigError(
                f"{self.ngrams}: no such file or folder; give the author's n-gram lists by "
                "--ngrams PATH, or in a configuration by substrate.ngrams=PATH"
            )
        if self.path is not None:
            return Substrate.load(self.path)
        options = {
            name: value for name, value in asdict(self).items() if name not in ("path", "recipe")
        }
        return Substrate.build(self.recipe, **options)


@dataclass(frozen=True)
class SourceSettings:
    """One text source and its share of the training.

    Attributes:
        source: a file, a folder or the "owner/name" of a Hub dataset.
        weight: share, relative to the other sources.
        split: shares of documents for training, validation and test.
        text_field: field or column that holds the text of a row.
        sample_by: what a document of a text file is.
        unknown: a character outside the vocabulary is an error, or becomes `<unk>`.
        config, revision, hub_split, streaming: which part of a Hub dataset to read, and how; see
            `HubDataset`. They do not go with files.
    """

    source: str
    weight: PositiveFloat = 1.0
    split: tuple[Proportion, Proportion, Proportion] = (0.98, 0.01, 0.01)
    text_field: str = "text"
    sample_by: Literal["line", "paragraph", "document"] = "line"
    unknown: Literal["error", "unk"] = "error"
    config: str | None = None
    revision: str | None = None
    hub_split: str = "train"
    streaming: bool = False

    def open(self) -> str | HubDataset:
        """What `TextData` is given.

        Raises:
            ConfigError: an option of Hub datasets beside a file or folder.
        """
        dataset = HubDataset(
            self.source, self.config, self.hub_split, self.revision, self.streaming
        )
        if dataset == HubDataset(self.source):
            return self.source
        if Path(self.source).exists():
            raise ConfigError(
                f"{self.source}: is a file or folder; config, revision, hub_split and streaming "
                "are of Hub datasets"
            )
        return dataset


@dataclass(frozen=True)
class GrowthSettings:
    """A growth run: substrate, model, data, schedule, training and the folder to write to."""

    data: list[SourceSettings]
    schedule: GrowthSchedule
    out: str
    model: DecoderConfig
    substrate: SubstrateSettings = field(default_factory=SubstrateSettings)
    train: TrainConfig = field(default_factory=TrainConfig)
    cache: str = "runs/tokens"
    trunk: Trunk | None = None

    @property
    def states_sizes(self) -> bool:
        """Whether the file says how large vocabulary and table are."""
        return self.model.vocab_size != _FROM_SUBSTRATE and self.model.n_embed is not None

    def model_config(self, substrate: Substrate) -> DecoderConfig:
        """The model's configuration on `substrate`.

        Raises:
            ConfigError: the file states another vocabulary size or table width than it has.
        """
        stated = self.model.vocab_size
        if stated not in (_FROM_SUBSTRATE, len(substrate)):
            raise ConfigError(
                f"model.vocab_size: {stated} is stated, the substrate has {len(substrate)} tokens"
            )
        if self.model.n_embed not in (None, substrate.n_embed):
            raise ConfigError(
                f"model.n_embed: {self.model.n_embed} is stated, the substrate's table is "
                f"{substrate.n_embed} wide"
            )
        return replace(self.model, vocab_size=len(substrate), n_embed=substrate.n_embed)

    def open_data(self, substrate: Substrate) -> TextData | Mixture:
        """The run's text, tokenized (or taken from the cache)."""
        opened = [
            TextData(
                source.open(),
                substrate,
                split=source.split,
                seed=self.train.seed,
                text_field=source.text_field,
                sample_by=source.sample_by,
                unknown=source.unknown,
                cache_dir=self.cache,
            )
            for source in self.data
        ]
        if len(opened) == 1:
            return opened[0]
        weights = [source.weight for source in self.data]
        return Mixture(list(zip(opened, weights, strict=True)))


def read_growth(name: str, overrides: Sequence[str]) -> GrowthSettings:
    """Read a configuration file, or a shipped one by its name, and apply overrides.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or out of range.
    """
    path = find_config(name)
    tree = read_config(path)
    apply_overrides(tree, overrides)
    model = tree.get("model")
    if isinstance(model, dict):
        model.setdefault("vocab_size", _FROM_SUBSTRATE)
    trunk = tree.get("trunk")
    if isinstance(trunk, dict) and trunk.get("cache") is False:
        # YAML reads a bare `off` as false.
        trunk["cache"] = "off"
    if isinstance(tree.get("schedule"), dict):
        tree["schedule"] = _stages_of(tree["schedule"], str(path))
    return typed(tree, GrowthSettings, str(path))


def _stages_of(schedule: dict[str, Any], origin: str) -> dict[str, Any]:
    """A schedule that names a recipe, such as `{doubling: {n_blocks: 6, …}}`, as its stages.

    Raises:
        ConfigError: it names several, or the recipe does not take what it is given.
    """
    named = [name for name in RECIPES if name in schedule]
    if not named:
        return schedule
    (name, *more), recipe = named, getattr(GrowthSchedule, named[0])
    rest = {key: value for key, value in schedule.items() if key != name}
    if more or "stages" in rest:
        raise ConfigError(
            f"{origin}: schedule: expected either stages or one of {', '.join(RECIPES)}, "
            f"got {', '.join(schedule)}; to change a recipe's stages, write them out"
        )
    arguments = schedule[name]
    known = list(inspect.signature(recipe).parameters)
    if not isinstance(arguments, dict) or not set(arguments) <= set(known):
        raise ConfigError(
            f"{origin}: schedule.{name}: expected some of {', '.join(known)} with their values, "
            f"got {arguments!r}"
        )
    try:
        return {**asdict(recipe(**arguments)), **rest}
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{origin}: schedule.{name}: {error}") from None


def read_demo(name: str, overrides: Sequence[str]) -> DemoSettings:
    """Read the settings of the demo, by file or shipped name, and apply overrides.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or out of range.
    """
    path = find_config(name)
    tree = read_config(path)
    apply_overrides(tree, overrides)
    return typed(tree, DemoSettings, str(path))


def read_study(name: str, overrides: Sequence[str]) -> tuple[Path, StudySettings]:
    """Read a study by file or shipped name, and apply overrides; also gives the file.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or out of range.
    """
    path = find_config(name, shipped_configs("studies"))
    tree = read_config(path)
    apply_overrides(tree, overrides)
    # A place for pieces that several trainings share by YAML's anchors.
    tree.pop("pieces", None)
    return path, typed(tree, StudySettings, str(path))


def find_config(name: str, shipped: Mapping[str, Path] | None = None) -> Path:
    """A file of that name, or else the shipped configuration.

    Args:
        name: of the file or configuration.
        shipped: the configurations to look among, by name; those of growth without.

    Raises:
        ConfigError: neither exists; the message lists the shipped ones.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_configs() if shipped is None else shipped
    if name in shipped:
        return shipped[name]
    raise ConfigError(f"{name}: no such file; shipped configurations: {', '.join(shipped)}")


def shipped_configs(kind: str = "") -> dict[str, Path]:
    """The configurations inside the package by name: of growth and the demo, or the "studies"."""
    folder = Path(str(resources.files("fastgrow") / "configs")) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
