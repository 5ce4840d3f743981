"""The settings in configuration files of `fastgrow grow`, the demo and studies."""

from __future__ import annotations

import difflib
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

# Names of recipes that make a schedule from a few numbers: class methods of `GrowthSchedule`.
RECIPES = ("blocks", "gradual", "doubling", "jump")
# Placeholder for a vocabulary size that is read from the substrate; no vocabulary has one token.
_FROM_SUBSTRATE = 1


@dataclass(frozen=True)
class SubstrateSettings:
    """A saved substrate (`path`), or the options of `Substrate.build` to draw one.

    Attributes:
        path: folder of a saved substrate or model; the other options are then ignored.
        recipe: how to choose the vocabulary: default, bvv241-2-3, bvv241-max or bvv241-abs.
        ngrams: file or folder of the author's n-gram lists, for a bvv241 recipe.
        scripts, blocks, characters: include only characters of these Unicode scripts or blocks, or
            only these characters.
        n_ngrams: maximum number of n-grams in the vocabulary.
        max_size: maximum size of the vocabulary; fewer n-grams are included to reach it.
        n_components: width of the token table (number of PCA components).
        newline: how to draw the newline: blank, as in the papers, or glyph.
        cell: side of the glyph bitmaps in pixels.
        font: TTF, OTF or BDF font file, instead of the embedded Unifont.
        codes: token codes to use instead of glyphs, such as id-16.
        seed: random seed of random codes.
    """

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
        """Load or draw the substrate.

        Raises:
            ConfigError: the path in `ngrams` does not exist.
            FastgrowError: see `Substrate.load` and `Substrate.build`.
        """
        if self.ngrams is not None and not Path(self.ngrams).exists():
            raise ConfigError(
                f"{self.ngrams}: no such file or folder; give the path of the author's n-gram "
                "lists by --ngrams PATH, or in a configuration by substrate.ngrams=PATH"
            )
        if self.path is not None:
            return Substrate.load(self.path)
        options = {
            name: value for name, value in asdict(self).items() if name not in ("path", "recipe")
        }
        return Substrate.build(self.recipe, **options)


@dataclass(frozen=True)
class SourceSettings:
    """One text source and its weight in training.

    Attributes:
        source: a file, a folder or the "owner/name" of a Hub dataset.
        weight: sampling weight, relative to the other sources.
        split: fractions of the documents used for training, validation and test.
        text_field: JSON field or column that holds the text of a row.
        sample_by: whether a document of a text file is a line, a paragraph or the file.
        unknown: whether a character outside the vocabulary is an error or becomes `<unk>`.
        config: name of the configuration of a Hub dataset.
        revision: branch, tag or commit of a Hub dataset; None for the default branch.
        hub_split: split of a Hub dataset to read.
        streaming: whether to stream a Hub dataset without storing it on disk.
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
        """Return the source in the form that `TextData` accepts.

        Raises:
            ConfigError: an option for Hub datasets is set, but the source is a file or folder.
        """
        dataset = HubDataset(
            self.source, self.config, self.hub_split, self.revision, self.streaming
        )
        if dataset == HubDataset(self.source):
            return self.source
        if Path(self.source).exists():
            raise ConfigError(
                f"{self.source}: is a file or folder; config, revision, hub_split and streaming "
                "are for Hub datasets only"
            )
        return dataset


@dataclass(frozen=True)
class GrowthSettings:
    """A growth run: substrate, model, data, schedule, training and the folder to write to.

    Attributes:
        data: text sources; several sources are mixed by their weights.
        schedule: the growth schedule: `stages`, or a recipe with its arguments.
        out: folder of the run.
        model: configuration of the model before the first stage.
        substrate: the substrate.
        train: training settings.
        cache: folder for tokenized text.
        trunk: how the frozen trunk is run and its output cached; None for the defaults.
    """

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
        """Whether the file states the vocabulary size and the width of the token table."""
        return self.model.vocab_size != _FROM_SUBSTRATE and self.model.n_embed is not None

    def model_config(self, substrate: Substrate) -> DecoderConfig:
        """Return the model's configuration on `substrate`.

        Raises:
            ConfigError: the vocabulary size or table width in the file is not the substrate's.
        """
        stated = self.model.vocab_size
        if stated not in (_FROM_SUBSTRATE, len(substrate)):
            raise ConfigError(
                f"model.vocab_size: expected {len(substrate)}, the substrate's number of tokens, "
                f"got {stated}"
            )
        if self.model.n_embed not in (None, substrate.n_embed):
            raise ConfigError(
                f"model.n_embed: expected {substrate.n_embed}, the width of the substrate's token "
                f"table, got {self.model.n_embed}"
            )
        if self.model.d_model % substrate.n_embed:
            raise ConfigError(
                f"substrate: the token table has width {substrate.n_embed} (n_components); "
                f"expected a divisor of model.d_model {self.model.d_model}"
            )
        return replace(self.model, vocab_size=len(substrate), n_embed=substrate.n_embed)

    def open_data(self, substrate: Substrate) -> TextData | Mixture:
        """Return the run's tokenized text, read from the cache if it is there."""
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
    """Expand a schedule that names a recipe, such as `{doubling: {n_blocks: 6, …}}`, to its stages.

    Raises:
        ConfigError: the schedule names several recipes, or the recipe's arguments are not valid.
    """
    named = [name for name in RECIPES if name in schedule]
    if not named:
        stray = [key for key in schedule if key not in ("stages", "moments")]
        if stray and "stages" not in schedule:
            near = difflib.get_close_matches(str(stray[0]), RECIPES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(RECIPES)}"
            raise ConfigError(
                f"{origin}: schedule.{stray[0]}: expected stages or the name of a recipe; {hint}"
            )
        return schedule
    (name, *more), recipe = named, getattr(GrowthSchedule, named[0])
    rest = {key: value for key, value in schedule.items() if key != name}
    if more or "stages" in rest:
        raise ConfigError(
            f"{origin}: schedule: expected either stages or one of {', '.join(RECIPES)}, "
            f"got {', '.join(schedule)}; to change single stages of a recipe, write out all stages"
        )
    arguments = schedule[name]
    known = list(inspect.signature(recipe).parameters)
    if isinstance(arguments, dict) and (stray := [key for key in arguments if key not in known]):
        near = difflib.get_close_matches(str(stray[0]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        raise ConfigError(f"{origin}: schedule.{name}.{stray[0]}: unknown name; {hint}")
    if not isinstance(arguments, dict):
        raise ConfigError(
            f"{origin}: schedule.{name}: expected a mapping with some of the names "
            f"{', '.join(known)}, got {arguments!r}"
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
    """Read a study by file or shipped name, and apply overrides.

    Returns:
        The path of the file, and the settings.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or out of range.
    """
    path = find_config(name, shipped_configs("studies"))
    tree = read_config(path)
    apply_overrides(tree, overrides)
    # "pieces" holds parts that several trainings share by YAML anchors.
    tree.pop("pieces", None)
    return path, typed(tree, StudySettings, str(path))


def find_config(name: str, shipped: Mapping[str, Path] | None = None) -> Path:
    """Return the path of a configuration file, given its path or the name of a shipped one.

    Args:
        name: path of a file, or name of a shipped configuration.
        shipped: the shipped configurations by name; None for those of growth and the demo.

    Raises:
        ConfigError: neither exists; the message lists the shipped configurations.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_configs() if shipped is None else shipped
    if name in shipped:
        return shipped[name]
    raise ConfigError(f"{name}: no such file; shipped configurations: {', '.join(shipped)}")


def shipped_configs(kind: str = "") -> dict[str, Path]:
    """Return the shipped configurations by name: of growth and the demo, or of "studies"."""
    folder = Path(str(resources.files("fastgrow") / "configs")) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
