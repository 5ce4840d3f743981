"""The life of one stage: begun, trained, found to have left the frozen part alone, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fastgrow.errors import FastgrowError
from fastgrow.evaluation import bits_per_character
from fastgrow.growth.boundary import begin_stage
from fastgrow.growth.carried import Carried, block_of
from fastgrow.growth.folder import RunFolder
from fastgrow.growth.freeze import frozen_digest, select_active
from fastgrow.growth.length import Length, stage_length
from fastgrow.growth.lora import Drift, merge_lora
from fastgrow.growth.result import StageResult
from fastgrow.growth.setup import Setup, Text
from fastgrow.growth.sharing import separate_blocks
from fastgrow.growth.trunk.engine import StageTrunk, TrunkEngine
from fastgrow.growth.trunk.load import stage_loads
from fastgrow.training import Trainer, TrainResult
from fastgrow.training.activations import block_forwards, training_mode
from fastgrow.training.optimizer import Rate


class StageRun:
    """One stage of a run.

    Args:
        setup: the run's.
        index: of the stage, from 0.
        steps_before: of the optimizer, in the stages before it.
        folder: of the run.
        engine: runs the frozen trunk.
        carried: the optimizer's state from the stages before.

    Attributes:
        trainer: None until training begins.
        seconds: that the stage has taken, up to the last checkpoint.
        bits_at_start: of the validation text before any training; None without one.
    """

    def __init__(
        self,
        setup: Setup,
        index: int,
        steps_before: int,
        folder: RunFolder,
        engine: TrunkEngine,
        carried: Carried,
    ) -> None:
        self.setup = setup
        self.index = index
        self.steps_before = steps_before
        self.stage, self.shape = setup.schedule.stages[index], setup.shapes[index]
        self.trainer: Trainer | None = None
        self.seconds = 0.0
        self.bits_at_start: float | None = None
        self._folder = folder
        self._engine = engine
        self._carried = carried
        self._trunk: StageTrunk | None = None

    def run(
        self,
        resumed: dict[str, Any] | None,
        save: Callable[[], Path | None],
        stop_if_asked: Callable[[], None],
    ) -> StageResult:
        """Train it from its beginning, or from where it was stopped, to its end.

        Args:
            resumed: the trainer's state; None at the beginning.
            save: writes a checkpoint.
            stop_if_asked: acts on a signal that came before training.

        Raises:
            FastgrowError: a frozen tensor changed.
        """
        try:
            return self._run(resumed, save, stop_if_asked)
        finally:
            # Also where it is stopped: the model is the caller's.
            separate_blocks(self.setup.model)

    def _run(
        self,
        resumed: dict[str, Any] | None,
        save: Callable[[], Path | None],
        stop_if_asked: Callable[[], None],
    ) -> StageResult:
        model = self.setup.model
        if resumed is None:
            begin_stage(model, self.stage, self.shape, self.setup.seed_of(self.index))
        active = select_active(model, self.shape)
        began = time.perf_counter()
        self._trunk = self._begin_trunk()
        preparing = time.perf_counter() - began
        if resumed is None and self.setup.validation is not None:
            self.bits_at_start = self._bits(self.setup.validation)
        frozen = frozen_digest(model)
        length = stage_length(
            self.stage, self.shape, model.config, self.setup.train, self.setup.seq_len
        )
        self.trainer = self._new_trainer(active, length)
        if resumed is None:
            self.trainer.optimizer.adopt(self._carried.begin(self.index, list(active)))
        else:
            self.trainer.load_state_dict(resumed)
        stop_if_asked()
        started = time.perf_counter() - preparing - self.seconds

        def on_checkpoint(_: Trainer) -> Path | None:
            self.seconds = time.perf_counter() - started
            return save()

        saves = self._folder.checkpoints is not None
        trained = self.trainer.run(on_checkpoint if saves else None)
        if frozen_digest(model) != frozen:
            raise FastgrowError(
                f"stage {self.index + 1}: a frozen tensor changed during training; "
                "the model in memory is not to be trusted, the last checkpoint is"
            )
        self._carried.end(self.index, self.trainer.optimizer.state_dict())
        drift = self._merge()
        numbers = sum(parameter.numel() for parameter in active.values())
        result = self._result(trained, length, drift, numbers, started)
        self._trunk.close()
        return result

    # -- beginning -----------------------------------------------------------------------------

    def _begin_trunk(self) -> StageTrunk:
        setup, index = self.setup, self.index
        train = setup.train
        batches = setup.batches(index, self.steps_before)
        loads = stage_loads(
            setup.schedule.stages[index:],
            setup.shapes[index:],
            setup.model.config,
            train,
            n_windows=batches.n_windows,
            seq_len=batches.seq_len,
        )
        # As in training, so that rows have the bits that a step would compute.
        compiled = block_forwards(setup.model, compile=train.compile)
        with training_mode(setup.model), compiled:
            return self._engine.begin(index + 1, loads, batches)

    def _new_trainer(self, active: dict[str, nn.Parameter], length: Length) -> Trainer:
        assert self._trunk is not None
        setup, stage = self.setup, self.stage
        rank = self.shape.rank
        return Trainer(
            setup.model,
            active,
            self._trunk.batches,
            setup.train if stage.lr is None else replace(setup.train, lr=stage.lr),
            steps=length.steps,
            until=length.rule,
            place=setup.place(self.index, self.steps_before),
            finish=partial(self._folder.finish_asked, self.index),
            rates=self._rates(active),
            objective=self._trunk.objective,
            validation=setup.validation,
            log=self._folder.log,
            labels={
                "run": setup.name,
                "stage": f"{self.index + 1}/{setup.n_stages}",
                "depth": setup.model.n_layer,
                # Beside the parameters the frozen table counts, as in the published totals.
                "total_parameters": setup.model.num_parameters(),
                **({} if rank is None else {"lora_rank": rank}),
            },
        )

    def _rates(self, active: Mapping[str, nn.Parameter]) -> dict[str, Rate]:
        rates, new = self.stage.rates, self.shape.new

        def of(name: str) -> Rate:
            if name.startswith(("lm_head.", "final_norm.")):
                return rates.head
            is_new = block_of(name) in new or name.endswith((".lora_A", ".lora_B"))
            return rates.new if is_new else rates.old

        return {name: of(name) for name in active}

    # -- ending --------------------------------------------------------------------------------

    def _merge(self) -> Drift | None:
        """End the stage's LoRA: keep the adapters as files, put their sums into the weights."""
        self._folder.save_adapters(self.setup.model, self.index)
        drift = merge_lora(self.setup.model)
        if drift is not None:
            self._folder.log.event("merged", drift=drift.largest, relative_drift=drift.relative)
        return drift

    def _result(
        self,
        trained: TrainResult,
        length: Length,
        drift: Drift | None,
        active_parameters: int,
        started: float,
    ) -> StageResult:
        model = self.setup.model
        return StageResult(
            stage=self.index + 1,
            depth=model.n_layer,
            active_parameters=active_parameters,
            total_parameters=model.num_parameters(),
            tokens=trained.tokens,
            seconds=time.perf_counter() - started,
            bits={name: self._bits(text) for name, text in self.setup.evaluate_on.items()},
            bits_at_start=self.bits_at_start,
            rank=self.shape.rank,
            drift=None if drift is None else drift.largest,
            relative_drift=None if drift is None else drift.relative,
            decision=trained.decision or length.decision,
        )

    def _bits(self, text: Text) -> float:
        setup = self.setup
        objective = None if self._trunk is None else self._trunk.objective
        return bits_per_character(
            setup.model if objective is None else objective,
            text,
            batch_size=setup.train.batch_size,
            seq_len=setup.seq_len,
            # As far as training reads the validation text; other texts are measured whole.
            max_tokens=setup.train.eval_tokens if text is setup.validation else None,
        ).bits_per_character
