"""A study's runs: their settings, and folder names that are hashes of these settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastgrow._records import left_out
from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule
from fastgrow.nn import DecoderConfig
from fastgrow.study.controls import CONTROLS, Plan
from fastgrow.study.cost import plan_flops
from fastgrow.study.settings import (
    RuleSettings,
    StudySettings,
    StudySubstrate,
    TrainingSettings,
    changed,
    train_config,
)
from fastgrow.study.texts import Corpus, Documents, build_substrate, read_documents
from fastgrow.training import TrainConfig


@dataclass(frozen=True)
class Run:
    """One training for one seed.

    Attributes:
        name: name of the training.
        training: settings of the training.
        plan: stages of the run.
        model: configuration of the initial model, which has `plan.random_blocks` blocks.
        train: training settings, with the seed.
        key: hash of everything that affects the run's results.
        folder: folder of the run.
    """

    name: str
    training: TrainingSettings
    plan: Plan
    model: DecoderConfig
    train: TrainConfig
    key: str
    folder: Path

    @property
    def seed(self) -> int:
        return self.train.seed

    @property
    def seq_len(self) -> int:
        """Length of the run's sequences in tokens."""
        return self.train.seq_len or self.model.max_seq_len

    @property
    def result(self) -> Path:
        """Path of the file that is written when the run is finished."""
        return self.folder / "result.json"


@dataclass(frozen=True)
class Composition:
    """One ensemble for one seed, with a separate result file for each rule."""

    name: str
    seed: int
    experts: tuple[Run, ...]
    rules: dict[str, RuleSettings]
    results: dict[str, Path]

    @property
    def finished(self) -> bool:
        return all(path.exists() for path in self.results.values())


class Study:
    """A study's settings together with its texts.

    Args:
        settings: settings in the study's file.
        folders: folders in which the texts' files are searched.
        out: folder of the study.
    """

    def __init__(self, settings: StudySettings, folders: Sequence[Path], out: Path) -> None:
        self.settings = settings
        self.folders = list(folders)
        self.out = out
        self._corpora: dict[StudySubstrate, Corpus] = {}

    @cached_property
    def texts(self) -> dict[str, Documents]:
        """The study's texts by name."""
        return {
            name: read_documents(name, text, self.settings.documents, self.folders)
            for name, text in self.settings.texts.items()
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {name: documents.digest for name, documents in self.texts.items()}

    def corpus(self, training: TrainingSettings) -> Corpus:
        """Return all texts, tokenized with the substrate of a training."""
        plain = dataclasses.asdict(self.settings.substrate)
        if training.substrate.get("codes") is not None:
            # n_components is for glyph bitmaps; codes define their own width.
            plain["n_components"] = None
        settings = changed(StudySubstrate, "substrate", plain, training.substrate)
        if settings not in self._corpora:
            substrate = build_substrate(self.texts, settings)
            self._corpora[settings] = Corpus(self.texts, substrate, self.out / "tokens")
        return self._corpora[settings]

    def run(self, name: str, seed: int) -> Run:
        """Return the run of a training for a seed."""
        training = self.settings.trainings[name]
        train = train_config(self.settings, training, seed)
        substrate = self.corpus(training).substrate
        plan = self._plan(training)
        model = replace(self._model(training), n_layer=plan.random_blocks)
        decides = {
            "model": stated(model),
            "substrate": substrate.fingerprint,
            "stages": [stated(stage) for stage in plan.schedule.stages],
            "train": {**stated(train), "log_every": None, "checkpoint_every": None},
            "texts": {text: [w, self._digests[text]] for text, w in training.texts.items()},
            "part": training.part,
            "evaluate": self._evaluated,
        }
        if plan.schedule.moments is not None:
            decides["moments"] = dataclasses.asdict(plan.schedule.moments)
        key = _hash(decides)
        folder = self.out / "runs" / f"{name}-{seed}-{key[:10]}"
        return Run(name, training, plan, model, train, key, folder)

    def composition(self, name: str, seed: int) -> Composition:
        """Return an ensemble for a seed."""
        settings = self.settings.ensembles[name]
        experts = tuple(self.run(expert, seed) for expert in settings.experts)
        results = {}
        for rule, what in settings.rules.items():
            key = _hash(
                {
                    "experts": [[run.name, run.key] for run in experts],
                    "rule": stated(what),
                    "evaluate": self._evaluated,
                }
            )
            results[rule] = self.out / "ensembles" / f"{name}-{rule}-{seed}-{key[:10]}.json"
        return Composition(name, seed, experts, settings.rules, results)

    @cached_property
    def _evaluated(self) -> dict[str, str]:
        return {name: self._digests[name] for name in self.settings.evaluate}

    def _model(self, training: TrainingSettings) -> DecoderConfig:
        """Return the configuration of a training's model, without blocks."""
        substrate = self.corpus(training).substrate
        size = {"vocab_size": len(substrate), "n_embed": substrate.n_embed}
        return changed(DecoderConfig, "model", self.settings.model, training.model, size)

    def _plan(self, training: TrainingSettings) -> Plan:
        schedule = training.schedule or self.settings.schedule
        if schedule is None:
            raise ConfigError("schedule: is missing; give one for the study or for each training")
        config = self._model(training)
        plan = CONTROLS[training.control](_scaled(schedule, training.tokens), config)
        if training.equal_flops_to is None:
            return plan
        other = self.settings.trainings[training.equal_flops_to]
        factor = self._flops(other, self._plan(other)) / self._flops(training, plan)
        return replace(plan, schedule=_scaled(plan.schedule, factor))

    def _flops(self, training: TrainingSettings, plan: Plan) -> float:
        config = self._model(training)
        train = train_config(self.settings, training, seed=0)
        return plan_flops(config, plan, train.seq_len or config.max_seq_len)


def _scaled(schedule: GrowthSchedule, factor: float) -> GrowthSchedule:
    if factor == 1:
        return schedule
    stages = [
        replace(stage, tokens=max(1, round(stage.tokens * factor))) for stage in schedule.stages
    ]
    return replace(schedule, stages=stages)


def stated(value: Any) -> Any:
    """Convert dataclasses to JSON values, without the fields that records omit: mostly defaults.

    Hashes and records then stay the same if a class gets a new field that changes no result.
    """
    if dataclasses.is_dataclass(value):
        return {
            field.name: stated(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != left_out(field)
        }
    if isinstance(value, Mapping):
        return {name: stated(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [stated(item) for item in value]
    return value


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
