"""Growing a model: for each stage freeze, stack, train; and survive being stopped anywhere.

Source: "Growing Transformers: Modular Composition and Layer-wise Expansion on a Frozen Substrate"
(arXiv 2507.07129), §3: train the newest blocks and the head, freeze, stack the next, repeat; and in
its third version phases of LoRA in between, merged at their ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fastgrow import _files
from fastgrow.errors import ConfigError, FastgrowError, Interrupted
from fastgrow.evaluation import bits_per_character
from fastgrow.growth.active import stage_shape
from fastgrow.growth.boundary import begin_stage, rebuild
from fastgrow.growth.freeze import frozen_digest, select_active
from fastgrow.growth.length import Length, stage_length
from fastgrow.growth.lora import Drift, adapters, merge_lora
from fastgrow.growth.peft_format import save_adapters
from fastgrow.growth.result import GrowthResult, StageResult
from fastgrow.growth.schedule import GrowthSchedule, Stage
from fastgrow.growth.when import Plateau
from fastgrow.nn import Decoder
from fastgrow.training import (
    Batches,
    Checkpointer,
    InterruptGuard,
    MixedStream,
    Mixture,
    Resume,
    RunLog,
    TextData,
    TokenStream,
    TrainConfig,
    Trainer,
    claim_folder,
)
from fastgrow.training.run_folder import RECORD as RUN_RECORD

Text = TokenStream | MixedStream
_RECORD, _MODEL = "growth.json", "model"


@dataclass
class _Progress:
    """Where a run stands; all of it goes into every checkpoint."""

    stage: int = 0
    results: list[StageResult] = field(default_factory=list)
    seconds: float = 0.0
    bits_at_start: float | None = None


def grow(
    model: Decoder,
    data: TextData | Mixture,
    schedule: GrowthSchedule,
    *,
    train: TrainConfig | None = None,
    out: Path | str | None = None,
    resume: Resume = "auto",
    evaluate_on: Mapping[str, Text] | None = None,
    name: str | None = None,
    quiet: bool = False,
) -> GrowthResult:
    """Grow `model` by `schedule`: stack blocks, train them with the final norm and head, freeze.

    Blocks that `model` has already are the first frozen ones. Within a stage the optimizer holds
    the active parameters and nothing else, and its learning rate warms up and decays anew. LoRA is
    merged into the weights when its stage ends, so that the next one sees a plain model.

    Args:
        model: grown in place, on the device where it stands.
        data: `TextData` or `Mixture`; its validation text picks the best weights of each stage.
        schedule: the stages.
        train: how to train; its defaults suit small models.
        out: folder for checkpoints, logs, the record (`growth.json`), the model (`model/`) and,
            in PEFT's format, the LoRA of each stage that had one (`adapters/stage-2/`). None keeps
            everything in memory.
        resume: `"auto"` goes on with the run that stands in `out`, at the step where it stopped,
            and returns at once if it is finished; `"never"` refuses a folder that holds a run.
        evaluate_on: further texts to measure at every boundary, by name.
        name: what the progress line calls this run; defaults to the folder's name.
        quiet: print nothing.

    Returns:
        The model and one `StageResult` a stage. A run that was stopped and resumed gives the same
        bits as one that was not (on a CPU).

    Raises:
        ConfigError: `out` holds a run of other settings, or one at all under `resume="never"`; or
            a stage does not fit the model (`stage_shape`), or waits for a plateau and there is no
            validation text.
        Interrupted: the user stopped the run (SIGINT or SIGTERM); its state is saved. A second
            signal stops at once, by KeyboardInterrupt, and leaves the last checkpoint.
        FastgrowError: a frozen tensor changed during a stage.
    """
    run = _Run(
        model=model,
        data=data,
        schedule=schedule,
        train=train or TrainConfig(),
        out=None if out is None else Path(out),
        evaluate_on=dict(evaluate_on or {}),
        name=name or ("grow" if out is None else Path(out).name),
        quiet=quiet,
    )
    run.open(resume)
    with run.log, run.interrupt:
        while run.progress.stage < len(schedule.stages):
            run.one_stage()
    return run.finish()


class _Run:
    """The moving parts of one call of `grow`; a stateful object for the checkpointer."""

    def __init__(
        self,
        *,
        model: Decoder,
        data: TextData | Mixture,
        schedule: GrowthSchedule,
        train: TrainConfig,
        out: Path | None,
        evaluate_on: dict[str, Text],
        name: str,
        quiet: bool,
    ) -> None:
        self.model = model
        self.data = data
        self.schedule = schedule
        self.train = train
        self.out = out
        self.evaluate_on = evaluate_on
        self.validation = data.validation if len(data.validation) else None
        if self.validation is not None:
            self.evaluate_on = {"validation": self.validation, **evaluate_on}
        self.name = name
        self.quiet = quiet
        self.first_depth = model.n_layer
        # All of them now: a late stage that cannot be is better refused before the first one.
        self.shapes = [
            stage_shape(schedule, index, model.config, self.first_depth)
            for index in range(len(schedule.stages))
        ]
        if self.validation is None and any(isinstance(s.until, Plateau) for s in schedule.stages):
            raise ConfigError("Stage.until: a plateau needs validation text, and the data has none")
        self.progress = _Progress()
        self.trainer: Trainer | None = None
        # The trainer's state of a stage that was stopped in the middle, until its trainer exists.
        self.unfinished: dict[str, Any] | None = None
        self.checkpointer: Checkpointer | None = None
        self.log = RunLog(quiet=quiet)
        # Within a stage the trainer has a guard of its own; this one is for what lies between.
        self.interrupt = InterruptGuard()

    # -- opening and closing -------------------------------------------------------------------

    def open(self, resume: Resume) -> None:
        """Start anew, or take up the run that stands in the output folder."""
        if self.out is None:
            return
        claim_folder(self.out, self._settings(), resume)
        for name in (
            RUN_RECORD,
            _RECORD,
            _MODEL,
            *(_adapters_folder(i) for i in range(len(self.shapes))),
        ):
            _files.remove_leftovers(self.out / name)
        self.log = RunLog(self.out, quiet=self.quiet)
        self.checkpointer = Checkpointer(self.out / "checkpoints")
        # A run that was stopped before its first checkpoint may have left rows in the log.
        state = RunLog().state_dict()
        latest = self.checkpointer.latest()
        if latest is not None:
            saved = self.checkpointer.load(latest)["growth"]
            self.load_state_dict(saved)
            state = saved["log"]
        self.log.load_state_dict(state)

    def _settings(self) -> dict[str, Any]:
        """All that decides what the run computes, as JSON values."""
        substrate = self.model.substrate
        config = asdict(self.model.config)
        # A model that is resumed has grown; the depth that counts is the one it started from.
        config["n_layer"] = self.first_depth
        return {
            "kind": "growth",
            "model": config,
            "substrate": None if substrate is None else substrate.fingerprint,
            "schedule": [_stage_settings(stage) for stage in self.schedule.stages],
            "train": self.train.identity(),
            "data": self.data.train.digest,
            "evaluate_on": {name: text.digest for name, text in self.evaluate_on.items()},
        }

    def finish(self) -> GrowthResult:
        if self.out is not None:
            _files.write_json(
                self.out / _RECORD, [asdict(result) for result in self.progress.results]
            )
            self.model.save(self.out / _MODEL)
        return GrowthResult(self.model, self.progress.results, self.out)

    # -- one stage -----------------------------------------------------------------------------

    def one_stage(self) -> None:
        """Train the stage that is due, from its beginning or from where it was stopped."""
        index = self.progress.stage
        stage, shape = self.schedule.stages[index], self.shapes[index]
        resumed, self.unfinished = self.unfinished, None
        if resumed is None:
            begin_stage(self.model, stage, shape, _stage_seed(self.train.seed, index))
            if self.validation is not None:
                self.progress.bits_at_start = self._bits(self.validation)
            self.progress.seconds = 0.0
        active = select_active(self.model, shape)
        frozen = frozen_digest(self.model)
        length = stage_length(stage, shape, self.model.config, self.train, self._seq_len())
        self.trainer = self._new_trainer(index, active, length)
        if resumed is not None:
            self.trainer.load_state_dict(resumed)
        self._stop_if_asked()
        started = time.perf_counter() - self.progress.seconds

        def on_checkpoint(_: Trainer) -> Path | None:
            self.progress.seconds = time.perf_counter() - started
            return self._save()

        trained = self.trainer.run(None if self.checkpointer is None else on_checkpoint)
        if frozen_digest(self.model) != frozen:
            raise FastgrowError(
                f"stage {index + 1}: a frozen tensor changed during training; "
                "the model in memory is not to be trusted, the last checkpoint is"
            )
        drift = self._merge(index)
        self.progress.results.append(
            StageResult(
                stage=index + 1,
                depth=self.model.n_layer,
                active_parameters=sum(p.numel() for p in active.values()),
                total_parameters=self.model.num_parameters(),
                tokens=trained.tokens,
                seconds=time.perf_counter() - started,
                bits={name: self._bits(text) for name, text in self.evaluate_on.items()},
                bits_at_start=self.progress.bits_at_start,
                rank=shape.rank,
                drift=None if drift is None else drift.largest,
                relative_drift=None if drift is None else drift.relative,
                decision=trained.decision or length.decision,
            )
        )
        self.trainer = None
        self.progress.stage += 1
        self._save()
        self._stop_if_asked()

    def _merge(self, index: int) -> Drift | None:
        """End a stage's LoRA: keep the adapters as files, put their sums into the weights."""
        if self.out is not None and adapters(self.model):
            save_adapters(self.model, self.out / _adapters_folder(index))
        drift = merge_lora(self.model)
        if drift is not None:
            self.log.event("merged", drift=drift.largest, relative_drift=drift.relative)
        return drift

    def _stop_if_asked(self) -> None:
        """Act on a signal that came outside the training proper, where all is saved."""
        signal, done = self.interrupt.requested, self.progress.stage
        if signal is None or done == len(self.schedule.stages):
            return
        stopped = f"stopped by {signal.name} after {done} of {len(self.schedule.stages)} stages"
        if self.checkpointer is None:
            raise Interrupted(f"{stopped}; this run keeps no checkpoints, so it starts anew")
        raise Interrupted(
            f"{stopped}; what was done is saved in {self.checkpointer.folder}. Start the same run "
            'again, by the same command or with resume="auto", to go on'
        )

    def _new_trainer(
        self, index: int, active: dict[str, torch.nn.Parameter], length: Length
    ) -> Trainer:
        stage, shape = self.schedule.stages[index], self.shapes[index]
        config = self.train if stage.lr is None else replace(self.train, lr=stage.lr)
        seed = _stage_seed(self.train.seed, index)
        batches = Batches(self.data.train, config.batch_size, self._seq_len(), seed=seed)
        return Trainer(
            self.model,
            active,
            batches,
            config,
            steps=length.steps,
            until=length.rule,
            validation=self.validation,
            log=self.log,
            labels={
                "run": self.name,
                "stage": f"{index + 1}/{len(self.schedule.stages)}",
                "depth": self.model.n_layer,
                # Beside the parameters the frozen table counts, as in the published totals.
                "total_parameters": self.model.num_parameters(),
                **({} if shape.rank is None else {"lora_rank": shape.rank}),
            },
        )

    def _bits(self, text: Text) -> float:
        return bits_per_character(
            self.model,
            text,
            batch_size=self.train.batch_size,
            seq_len=self._seq_len(),
            # As far as training reads the validation text; other texts are measured whole.
            max_tokens=self.train.eval_tokens if text is self.validation else None,
        ).bits_per_character

    # -- counting ------------------------------------------------------------------------------

    def _seq_len(self) -> int:
        return self.train.seq_len or self.model.max_seq_len

    def _global_step(self) -> int:
        per_step = self.train.batch_size * self.train.accumulate * self._seq_len()
        before = sum(result.tokens for result in self.progress.results) // per_step
        return before + (self.trainer.step if self.trainer is not None else 0)

    # -- saving and loading --------------------------------------------------------------------

    def _save(self) -> Path | None:
        if self.checkpointer is None:
            return None
        return self.checkpointer.save(self._global_step(), {"growth": self})

    def state_dict(self) -> dict[str, Any]:
        return {
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "trainer": None if self.trainer is None else self.trainer.state_dict(),
            "log": self.log.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        progress = dict(state["progress"])
        progress["results"] = [StageResult(**result) for result in progress["results"]]
        self.progress = _Progress(**progress)
        self.unfinished = state["trainer"]
        last = self.progress.stage - (self.unfinished is None)
        if last >= 0:
            begun = None if self.unfinished is None else self.schedule.stages[last]
            rebuild(self.model, begun, self.shapes[last])
        self.model.load_state_dict(state["model"])


def _stage_settings(stage: Stage) -> dict[str, Any]:
    """A stage as JSON values.

    What is left at its default is left out, beyond the fields that stages have always had: a run
    begun by an earlier version is still known as the same.
    """
    usual, always = asdict(Stage()), ("blocks", "tokens", "insertion", "lr")
    values = asdict(stage)
    return {name: v for name, v in values.items() if name in always or v != usual[name]}


def _adapters_folder(index: int) -> str:
    return f"adapters/stage-{index + 1}"


def _stage_seed(seed: int, index: int) -> int:
    # A large odd multiplier keeps the seeds of one run's stages apart from those of the next run's.
    return (seed * 1_000_003 + index) % 2**63
