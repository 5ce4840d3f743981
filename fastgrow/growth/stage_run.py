"""One stage of a run, from its boundary to its record.

`StageRun.run` does this, in order:

1. Insert the stage's blocks and attach its LoRA (`begin_stage` in boundary.py).
2. Select the active parameters and freeze all others (`select_active` in freeze.py).
3. Prepare the frozen trunk: the blocks below the lowest active parameter (`TrunkEngine`).
4. Train the active parameters (`fastgrow.training.Trainer`) from the optimizer state that earlier
   stages handed over (`OptimizerStates`), until `Stage.tokens` are used up, `Stage.until` ends the
   stage, or the user ends the run. `LRController` computes the learning rate of a step: a schedule
   with the peak `Stage.lr`, or else `TrainConfig.lr`. The schedule covers the whole run, in which
   the stage has a position (`Setup.position`), or with `TrainConfig.schedule` "per-stage" the stage
   only. The rate is multiplied by the factor of each group of parameters (`Stage.rates`).
   Checkpoints are written in between (`GrowthRun.state_dict`).
5. Check that no frozen tensor changed: their hash (`frozen_digest` in freeze.py) is the same as
   before training.
6. Hand the optimizer state over to the next stages (`OptimizerStates`), merge the LoRA into the
   weights, and evaluate.
"""

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
from fastgrow.growth.folder import RunFolder
from fastgrow.growth.freeze import frozen_digest, select_active
from fastgrow.growth.length import stage_length
from fastgrow.growth.lora import Drift, merge_lora
from fastgrow.growth.optimizer_state import OptimizerStates, block_of
from fastgrow.growth.result import StageResult
from fastgrow.growth.setup import Setup, Text
from fastgrow.growth.sharing import separate_blocks
from fastgrow.growth.stop_criteria import StageLength
from fastgrow.growth.trunk.engine import StageTrunk, TrunkEngine
from fastgrow.growth.trunk.placement import stage_loads
from fastgrow.training import Trainer, TrainResult
from fastgrow.training.activations import block_forwards, training_mode
from fastgrow.training.optimizer import Rate


class StageRun:
    """Runs one stage.

    Args:
        setup: the settings of the run.
        index: index of the stage, from 0.
        steps_before: number of optimizer steps in the stages before it.
        folder: folder of the run.
        engine: runs the frozen trunk.
        optimizer_states: optimizer state of the stages before.

    Attributes:
        trainer: the stage's trainer; None until training starts.
        seconds: time that the stage has taken up to the last checkpoint.
        bits_at_start: bits per character of the validation text before any training; None without
            validation text.
    """

    def __init__(
        self,
        setup: Setup,
        index: int,
        steps_before: int,
        folder: RunFolder,
        engine: TrunkEngine,
        optimizer_states: OptimizerStates,
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
        self._optimizer_states = optimizer_states
        self._trunk: StageTrunk | None = None

    def run(
        self,
        resumed: dict[str, Any] | None,
        save: Callable[[], Path | None],
        stop_if_interrupted: Callable[[], None],
    ) -> StageResult:
        """Run the stage to its end, from its start or from where it was interrupted.

        Args:
            resumed: the state of the trainer; None starts the stage.
            save: writes a checkpoint.
            stop_if_interrupted: raises if a signal came before training.

        Raises:
            FastgrowError: a frozen tensor changed.
        """
        try:
            return self._run(resumed, save, stop_if_interrupted)
        finally:
            # Also after an interruption, because the caller keeps the model.
            separate_blocks(self.setup.model)

    def _run(
        self,
        resumed: dict[str, Any] | None,
        save: Callable[[], Path | None],
        stop_if_interrupted: Callable[[], None],
    ) -> StageResult:
        model = self.setup.model
        if resumed is None:
            begin_stage(model, self.stage, self.shape, self.setup.seed_of(self.index))
        active = select_active(model, self.shape)
        before_trunk = time.perf_counter()
        self._trunk = self._prepare_trunk()
        preparing = time.perf_counter() - before_trunk
        if resumed is None and self.setup.validation is not None:
            self.bits_at_start = self._bits(self.setup.validation)
        frozen = frozen_digest(model)
        length = self._length()
        self.trainer = self._new_trainer(active, length)
        if resumed is None:
            states = self._optimizer_states.start_stage(self.index, list(active))
            self.trainer.optimizer.adopt(states)
        else:
            self.trainer.load_state_dict(resumed)
        stop_if_interrupted()
        started = time.perf_counter() - preparing - self.seconds
        trained = self._train(self.trainer, started, save)
        if frozen_digest(model) != frozen:
            raise FastgrowError(
                f"stage {self.index + 1}: a frozen tensor changed during training. Do not use the "
                "model in memory; the last checkpoint is intact"
            )
        self._optimizer_states.end_stage(self.index, self.trainer.optimizer.state_dict())
        drift = self._merge_lora()
        n_active = sum(parameter.numel() for parameter in active.values())
        result = self._result(trained, length, drift, n_active, started)
        self._trunk.close()
        return result

    # -- preparing -----------------------------------------------------------------------------

    def _prepare_trunk(self) -> StageTrunk:
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
        # In training mode, so that cached activations have the bits that a step would compute.
        compiled = block_forwards(setup.model, compile=train.compile)
        with training_mode(setup.model), compiled:
            return self._engine.begin(index + 1, loads, batches)

    def _length(self) -> StageLength:
        setup = self.setup
        return stage_length(self.stage, self.shape, setup.model.config, setup.train, setup.seq_len)

    # -- training ------------------------------------------------------------------------------

    def _new_trainer(self, active: dict[str, nn.Parameter], length: StageLength) -> Trainer:
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
            position=setup.position(self.index, self.steps_before),
            finish=partial(self._folder.finish_requested, self.index),
            rates=self._rates(active),
            objective=self._trunk.objective,
            validation=setup.validation,
            log=self._folder.log,
            labels={
                "run": setup.name,
                "stage": f"{self.index + 1}/{setup.n_stages}",
                "depth": setup.model.n_layer,
                # The frozen token table is included, as in the totals of the papers.
                "total_parameters": setup.model.num_parameters(),
                **({} if rank is None else {"lora_rank": rank}),
            },
        )

    def _rates(self, active: Mapping[str, nn.Parameter]) -> dict[str, Rate]:
        """Return for each active parameter the factor and warm-up of its group (`Stage.rates`)."""
        rates, new = self.stage.rates, self.shape.new

        def rate_of(name: str) -> Rate:
            if name.startswith(("lm_head.", "final_norm.")):
                return rates.head
            is_new = block_of(name) in new or name.endswith((".lora_A", ".lora_B"))
            return rates.new if is_new else rates.old

        return {name: rate_of(name) for name in active}

    def _train(
        self, trainer: Trainer, started: float, save: Callable[[], Path | None]
    ) -> TrainResult:
        def on_checkpoint(_: Trainer) -> Path | None:
            self.seconds = time.perf_counter() - started
            return save()

        saves = self._folder.checkpoints is not None
        return trainer.run(on_checkpoint if saves else None)

    # -- ending --------------------------------------------------------------------------------

    def _merge_lora(self) -> Drift | None:
        """Save the stage's LoRA as adapter files and merge it into the weights."""
        self._folder.save_adapters(self.setup.model, self.index)
        drift = merge_lora(self.setup.model)
        if drift is not None:
            self._folder.log.event("merged", drift=drift.largest, relative_drift=drift.relative)
        return drift

    def _result(
        self,
        trained: TrainResult,
        length: StageLength,
        drift: Drift | None,
        n_active: int,
        started: float,
    ) -> StageResult:
        model = self.setup.model
        return StageResult(
            stage=self.index + 1,
            depth=model.n_layer,
            active_parameters=n_active,
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
        """Return the bits per character of the model on a text."""
        setup = self.setup
        objective = None if self._trunk is None else self._trunk.objective
        return bits_per_character(
            setup.model if objective is None else objective,
            text,
            batch_size=setup.train.batch_size,
            seq_len=setup.seq_len,
            # The validation text is read as far as in training; other texts are read completely.
            max_tokens=setup.train.eval_tokens if text is setup.validation else None,
        ).bits_per_character
