"""What a study file holds."""

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
        max_characters: the text is cut to about this many; its documents are chosen at random.
    """

    files: list[str]
    max_characters: PositiveInt | None = None


@dataclass(frozen=True)
class DocumentSettings:
    """How files become documents, and how much of a text is kept from training.

    Attributes:
        characters: consecutive lines of a file are joined into documents of at least this many,
            line ends included.
        validation, test, tuning: characters of each text, at least, that pick the best weights of a
            stage, that are measured, and that rules of composition are fitted to.
    """

    characters: PositiveInt = 1000
    validation: PositiveInt = 6000
    test: PositiveInt = 30_000
    tuning: PositiveInt = 60_000

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class StudySubstrate:
    """The frozen substrate: the commonest characters of the study's texts.

    Attributes:
        max_size: largest vocabulary; rarer characters become `<unk>`.
        n_components, codes, seed: as for `Substrate.build`; codes in place of glyphs are a control.
    """

    max_size: PositiveInt = 4096
    n_components: PositiveInt | None = None
    codes: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class TrainingSettings:
    """A training, which is run once for each seed.

    Attributes:
        texts: the share of each text.
        schedule: stages; the study's where it is not given.
        control: what is made of the schedule, see `fastgrow.study.controls`.
        part: (i, n) trains on the i-th of n random parts of each text's documents only.
        tokens: factor on the tokens of every stage.
        equal_flops_to: another training; the tokens of every stage are scaled so that both cost
            the same number of floating-point operations.
        seeds: how many of the study's seeds it is run for, the first ones; None for all.
        model, train, substrate: changes to the study's.
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
    """Fitting a rule's parameters to the tuning text, by gradient: `fastgrow.compose.tune`."""

    what: Literal["weights", "adapter", "head"]
    tokens: PositiveInt
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleSettings:
    """A rule of composition.

    Attributes:
        rule: its kind and options, as in a saved model's config.json. Where an option names
            experts, a list gives their values in order and `against` may be an expert's number.
        choose: several such rules; the one that is best on the tuning text is taken.
        tune: fit the rule's parameters to the tuning text.
    """

    rule: dict[str, Any] | None = None
    choose: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tune: TuneSettings | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if (self.rule is None) == (self.choose is None):
            raise ConfigError("a rule is given by either rule or choose")
        if self.choose is not None and self.tune is not None:
            raise ConfigError("choose: cannot be combined with tune")


@dataclass(frozen=True)
class EnsembleSettings:
    """Trainings that are composed, under each of several rules."""

    experts: Annotated[list[str], Meta(min_length=1)]
    rules: Annotated[dict[str, RuleSettings], Meta(min_length=1)]

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class StudySettings:
    """A study: every training and every ensemble for every seed.

    Attributes:
        evaluate: the texts that everything is measured on, each and all together.
        reference: the training that all else is compared with in the report.
        lines: names of lines in a figure of bits against operations, and the trainings on each.

    Raises:
        ConfigError: a name that is none, or one that refers to nothing.
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
                        f"{kind}: {name!r} is no name; expected letters, digits, '-' and '_'"
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
                raise ConfigError(f"trainings.{name}: neither it nor the study has a schedule")
            if training.equal_flops_to is not None:
                where = f"trainings.{name}.equal_flops_to"
                self._refer(where, [training.equal_flops_to], self.trainings)
                if self.trainings[training.equal_flops_to].equal_flops_to is not None:
                    raise ConfigError(f"{where}: that training is itself scaled to another")
        for name, ensemble in self.ensembles.items():
            self._refer(f"ensembles.{name}.experts", ensemble.experts, self.trainings)
            for expert in ensemble.experts:
                if self.trainings[expert].seeds is not None:
                    raise ConfigError(
                        f"trainings.{expert}.seeds: the ensemble {name!r} needs it for every seed"
                    )

    @staticmethod
    def _refer(where: str, names: Any, known: Mapping[str, Any]) -> None:
        for name in names:
            if name not in known:
                raise ConfigError(f"{where}: there is no {name!r}; known: {', '.join(known)}")


def changed(kind: type[T], where: str, *trees: Mapping[str, Any]) -> T:
    """The dataclass `kind` from plain values; those of later trees replace earlier ones.

    Raises:
        ConfigError: a name is unknown, or a value is of the wrong type or range.
    """
    merged = {name: value for tree in trees for name, value in tree.items()}
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in merged:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"{where}: {name}: unknown name; {hint}")
    return convert(merged, kind, where)


def train_config(settings: StudySettings, training: TrainingSettings, seed: int) -> TrainConfig:
    """How a training is run for a seed."""
    return changed(TrainConfig, "train", settings.train, training.train, {"seed": seed})
