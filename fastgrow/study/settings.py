"""The settings in a study's file."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta

from fastgrow._checked import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_types,
    convert,
)
from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule
from fastgrow.study.controls import ControlName
from fastgrow.training import TrainConfig

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class TextSettings:
    """A text of the study.

    Attributes:
        files: UTF-8 files, relative to the data folder or to the study's file.
        max_characters: approximate size of the training text; its documents are chosen at random.
            None uses all.
    """

    files: list[str]
    max_characters: PositiveInt | None = None


@dataclass(frozen=True)
class DocumentSettings:
    """How files are split into documents, and how much of a text is held out from training.

    Attributes:
        characters: consecutive lines of a file are joined into documents of at least this many
            characters, including line ends.
        validation: minimum number of characters of each text for validation, which selects the best
            weights of a stage.
        test: minimum number of characters of each text for the reported results.
        tuning: minimum number of characters of each text for fitting the rules of ensembles.
    """

    characters: PositiveInt = 1000
    validation: PositiveInt = 6000
    test: PositiveInt = 30_000
    tuning: PositiveInt = 60_000

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class StudySubstrate:
    """The substrate, whose vocabulary is the most frequent characters of the study's texts.

    Attributes:
        max_size: maximum size of the vocabulary; less frequent characters become `<unk>`.
        n_components: width of the token table (number of PCA components).
        codes: token codes to use instead of glyphs, such as id-16; a control.
        seed: random seed of random codes.
    """

    max_size: PositiveInt = 4096
    n_components: PositiveInt | None = None
    codes: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class TrainingSettings:
    """A training, which is run once for each seed.

    Attributes:
        texts: names of the texts to train on, each with its sampling weight.
        schedule: growth schedule; None for the study's.
        control: how the schedule is changed, see `fastgrow.study.controls`.
        part: (i, n) trains only on part i of n random parts of each text's documents, 0 ≤ i < n.
        tokens: factor by which the tokens of every stage are multiplied.
        equal_flops_to: name of another training; the tokens of every stage are scaled so that both
            trainings cost the same number of FLOPs.
        seeds: run only the first `seeds` of the study's seeds; None for all.
        model, train, substrate: changes to the study's settings of the same names.
    """

    texts: Annotated[dict[str, PositiveFloat], Meta(min_length=1)]
    schedule: GrowthSchedule | None = None
    control: ControlName = "grown"
    part: tuple[NonNegativeInt, NonNegativeInt] | None = None
    tokens: PositiveFloat = 1.0
    equal_flops_to: str | None = None
    seeds: PositiveInt | None = None
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    substrate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if self.part is not None and self.part[0] >= self.part[1]:
            raise ConfigError(f"part: expected [i, n] with 0 ≤ i < n, got {list(self.part)}")


@dataclass(frozen=True)
class TuneSettings:
    """How a rule's parameters are trained on the tuning text, see `fastgrow.compose.tune`.

    Attributes:
        what: what to train: the experts' weights, an adapter, or the experts' heads.
        tokens: number of tokens to train on.
        train: options of `TrainConfig`.
    """

    what: Literal["weights", "adapter", "head"]
    tokens: PositiveInt
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleSettings:
    """A rule of an ensemble.

    Attributes:
        rule: kind and options of the rule, as in a saved ensemble's config.json. An option with a
            value for each expert may be a list in the experts' order, and `against` may be an
            expert's index.
        choose: several such rules, of which the best on the tuning text is used.
        tune: how to train the rule's parameters on the tuning text; None does not train them.
    """

    rule: dict[str, Any] | None = None
    choose: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tune: TuneSettings | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if (self.rule is None) == (self.choose is None):
            raise ConfigError("expected exactly one of rule and choose")
        if self.choose is not None and self.tune is not None:
            raise ConfigError("choose: cannot be combined with tune")


@dataclass(frozen=True)
class EnsembleSettings:
    """Trainings whose models are combined, under each of several rules.

    Attributes:
        experts: names of the trainings.
        rules: rules by name; the ensemble is measured with each.
    """

    experts: Annotated[list[str], Meta(min_length=1)]
    rules: Annotated[dict[str, RuleSettings], Meta(min_length=1)]

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class StudySettings:
    """A study: every training and every ensemble for every seed.

    Attributes:
        name: name of the study.
        texts: texts by name.
        trainings: trainings by name.
        evaluate: names of the texts on which all models are measured, each and all together.
        seeds: random seeds.
        model: options of `DecoderConfig` for all trainings.
        train: options of `TrainConfig` for all trainings.
        schedule: growth schedule of the trainings that have none.
        substrate: settings of the substrate.
        documents: how the texts are split into documents.
        ensembles: ensembles by name.
        reference: name of the training with which all others are compared in the report.
        lines: lines in the figure of bits per character against FLOPs: each line's name and the
            names of its trainings.

    Raises:
        ConfigError: a name has other characters than allowed, or refers to nothing.
    """

    name: str
    texts: dict[str, TextSettings]
    trainings: dict[str, TrainingSettings]
    evaluate: Annotated[list[str], Meta(min_length=1)]
    seeds: Annotated[list[int], Meta(min_length=1)]
    model: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    schedule: GrowthSchedule | None = None
    substrate: StudySubstrate = field(default_factory=StudySubstrate)
    documents: DocumentSettings = field(default_factory=DocumentSettings)
    ensembles: dict[str, EnsembleSettings] = field(default_factory=dict)
    reference: str | None = None
    lines: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        for kind in ("texts", "trainings", "ensembles"):
            for name in getattr(self, kind):
                if not _NAME.fullmatch(name):
                    raise ConfigError(
                        f"{kind}: {name!r} is not a valid name; expected letters, digits, '-' and "
                        "'_'"
                    )
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds: expected different numbers, got {self.seeds}")
        self._refer("evaluate", self.evaluate, self.texts)
        if self.reference is not None:
            self._refer("reference", [self.reference], self.trainings)
        for line, names in self.lines.items():
            self._refer(f"lines.{line}", names, self.trainings)
        for name, training in self.trainings.items():
            self._refer(f"trainings.{name}.texts", training.texts, self.texts)
            if training.schedule is None and self.schedule is None:
                raise ConfigError(
                    f"trainings.{name}.schedule: is missing, and the study has no schedule either"
                )
            if training.equal_flops_to is not None:
                where = f"trainings.{name}.equal_flops_to"
                self._refer(where, [training.equal_flops_to], self.trainings)
                if self.trainings[training.equal_flops_to].equal_flops_to is not None:
                    raise ConfigError(
                        f"{where}: expected a training without equal_flops_to, got "
                        f"{training.equal_flops_to!r}, which is itself scaled to another"
                    )
        for name, ensemble in self.ensembles.items():
            self._refer(f"ensembles.{name}.experts", ensemble.experts, self.trainings)
            for expert in ensemble.experts:
                if self.trainings[expert].seeds is not None:
                    raise ConfigError(
                        f"trainings.{expert}.seeds: cannot be set, because the ensemble {name!r} "
                        "needs the training for every seed"
                    )

    @staticmethod
    def _refer(where: str, names: Any, known: Mapping[str, Any]) -> None:
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{where}: there is no {name!r}; expected one of {', '.join(known)}"
                )


def changed(kind: type[T], where: str, *trees: Mapping[str, Any]) -> T:
    """Build the dataclass `kind` from plain values; later trees override earlier ones.

    Raises:
        ConfigError: a name is unknown, or a value is of the wrong type or range.
    """
    merged = {name: value for tree in trees for name, value in tree.items()}
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in merged:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
            raise ConfigError(f"{where}: {name}: unknown name; {hint}")
    return convert(merged, kind, where)


def train_config(settings: StudySettings, training: TrainingSettings, seed: int) -> TrainConfig:
    """Return the training settings of a training for a seed."""
    return changed(TrainConfig, "train", settings.train, training.train, {"seed": seed})
