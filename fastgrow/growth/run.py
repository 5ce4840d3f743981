"""Growing a model: `grow` runs the stages of a schedule one after the other.

Each stage inserts blocks, trains its active parameters and freezes all others; `StageRun`
(stage_run.py) runs one stage. A run that was interrupted anywhere can be resumed.

Source: "Growing Transformers: Modular Composition and Layer-wise Expansion on a Frozen Substrate"
(arXiv 2507.07129), §3: train the new blocks and the head, freeze them, stack the next blocks,
repeat; its third version adds stages of LoRA in between, merged at their ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrow.errors import Interrupted
from fastgrow.growth.boundary import rebuild
from fastgrow.growth.folder import RunFolder
from fastgrow.growth.optimizer_state import OptimizerStates
from fastgrow.growth.result import GrowthResult, StageResult
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.setup import Setup, Text
from fastgrow.growth.stage_run import StageRun
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.trunk.engine import TrunkEngine
from fastgrow.nn import Decoder
from fastgrow.training import InterruptGuard, Mixture, Resume, TextData, TrainConfig
from fastgrow.training.lr_controller import FINISH
from fastgrow.training.precision import resolve_precision


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
    trunk: Trunk | None = None,
    finish: bool = False,
) -> GrowthResult:
    """Grow `model` by `schedule`: in each stage insert blocks, train the active set, freeze.

    Blocks that `model` already has are old blocks of the first stage. Within a stage the optimizer
    holds the active parameters and no others. Learning rate, order of the data and optimizer state
    continue through all stages as in one training, unless `train.schedule` is "per-stage": then
    each stage starts its own. For the optimizer state, `schedule.moments` can change this. LoRA is
    merged into the weights when its stage ends, so that the next stage starts from a model without
    LoRA.

    Args:
        model: the model to grow in place, on its present device.
        data: `TextData` or `Mixture`. With `train.pick` "best", the weights with the best
            validation loss are restored at the end of the last stage, or of each stage if
            `train.schedule` is "per-stage".
        schedule: the stages.
        train: training settings; the defaults suit small models.
        out: folder for checkpoints, logs, the record (`growth.json`), the model (`model/`) and,
            in PEFT's format, the LoRA of each stage that has one (`adapters/stage-2/`). None keeps
            everything in memory.
        resume: `"auto"` resumes the run in `out` at the step where it stopped, and returns at once
            if it is finished; `"never"` raises an error if the folder contains a run.
        evaluate_on: additional texts to evaluate at the end of every stage, by name.
        name: name of the run in the progress line; the folder's name by default.
        quiet: print nothing.
        trunk: how the frozen blocks below the lowest active parameter are run, and whether their
            output is cached (`fastgrow.growth.Trunk`); None computes it in every step.
        finish: start the learning-rate decay of the run in `out` now, and end the run with it;
            stages after the present one are left out.

    Returns:
        The model and one `StageResult` per stage. A run that was stopped and resumed gives the same
        bits as one that was not, on a CPU with the same libraries and threads.

    Raises:
        ConfigError: `out` contains a run with other settings, or any run if `resume="never"`, or
            another process is running it; or a stage does not fit the model (`stage_shape`) or
            the learning-rate schedule, or waits for a plateau without validation text.
        Interrupted: the user stopped the run (SIGINT or SIGTERM); its state is saved. A second
            signal stops at once with KeyboardInterrupt and leaves the last checkpoint.
        FastgrowError: a frozen tensor changed during a stage.
    """
    out = None if out is None else Path(out)
    setup = Setup.of(
        model,
        data,
        schedule,
        train or TrainConfig(),
        trunk or Trunk(cache="off"),
        evaluate_on or {},
        name or ("grow" if out is None else out.name),
    )
    run = GrowthRun(setup, RunFolder(out, quiet=quiet))
    with run.folder.sole_user():
        run.open(resume)
        if finish:
            run.folder.request_finish()
        with run.folder.log, run.interrupt, run.open_trunk():
            while not run.finished:
                run.run_stage()
        return run.write_result()


class GrowthRun:
    """One call of `grow`: runs the stages one after the other, and saves and loads its progress.

    Args:
        setup: the settings of the run, checked.
        folder: the folder of the run.

    Attributes:
        results: the records of the finished stages.
    """

    def __init__(self, setup: Setup, folder: RunFolder) -> None:
        self.setup = setup
        self.model = setup.model
        self.folder = folder
        self.results: list[StageResult] = []
        # During training the trainer has its own guard; this one catches signals between trainings.
        self.interrupt = InterruptGuard()
        self._optimizer_states = OptimizerStates(
            setup.moments, setup.schedule.stages, setup.shapes, folder.moments
        )
        self._engine: TrunkEngine | None = None
        self._trunk_state: dict[str, Any] | None = None
        self._stage: StageRun | None = None
        # Set from a checkpoint within a stage, until that stage is resumed.
        self._interrupted: _InterruptedStage | None = None

    def open(self, resume: Resume) -> None:
        """Start a new run, or load the state of the run in the folder."""
        saved = self.folder.open(self.model, self.setup.identity(), resume)
        if saved is not None:
            self.load_state_dict(saved)

    def open_trunk(self) -> TrunkEngine:
        """Return the engine that runs the frozen trunk of every stage and caches its output."""
        self._engine = TrunkEngine(
            self.model,
            self.setup.trunk,
            out=self.folder.out,
            log=self.folder.log,
            precision=resolve_precision(self.setup.train.precision, self.model.device),
            pause=self._stop_if_interrupted,
        )
        if self._trunk_state is not None:
            self._engine.load_state_dict(self._trunk_state)
        return self._engine

    @property
    def finished(self) -> bool:
        """Whether all stages are finished, or the user ended the run with the last one."""
        return len(self.results) == self.setup.n_stages or self._ended_by_user

    @property
    def _ended_by_user(self) -> bool:
        decision = self.results[-1].decision if self.results else None
        return decision is not None and decision.reason == FINISH

    def run_stage(self) -> None:
        """Run the next stage, from its start or from where it was interrupted."""
        assert self._engine is not None
        index, steps_before = len(self.results), self.setup.steps_of(self.results)
        self._stage = StageRun(
            self.setup, index, steps_before, self.folder, self._engine, self._optimizer_states
        )
        resumed, self._interrupted = self._interrupted, None
        if resumed is not None:
            self._stage.seconds = resumed.seconds
            self._stage.bits_at_start = resumed.bits_at_start
        trainer = None if resumed is None else resumed.trainer
        self.results.append(self._stage.run(trainer, self._save, self._stop_if_interrupted))
        # Free the optimizer state of this stage before the next stage allocates its own.
        self._stage = None
        self._save()
        self._stop_if_interrupted()

    def write_result(self) -> GrowthResult:
        """Write the record and the model, and return the result."""
        self.folder.write_result(self.model, self.results)
        return GrowthResult(self.model, self.results, self.folder.out)

    def _stop_if_interrupted(self) -> None:
        """Raise `Interrupted` if a signal came outside of training.

        The finished stages are saved by then; outside of training there is nothing else to save.
        """
        signal, done = self.interrupt.requested, len(self.results)
        if signal is None or self.finished:
            return
        stopped = f"stopped by {signal.name} after {done} of {self.setup.n_stages} stages"
        if self.folder.checkpoints is None:
            raise Interrupted(
                f"{stopped}; this run has no folder for checkpoints, so it cannot be resumed. To "
                "be able to resume, set a folder (out)"
            )
        raise Interrupted(
            f"{stopped}; the finished stages are saved in {self.folder.checkpoints}. To resume, "
            'start the same run again, with the same command or with resume="auto"'
        )

    # -- saving and loading --------------------------------------------------------------------

    def _save(self) -> Path | None:
        trainer = None if self._stage is None else self._stage.trainer
        step = self.setup.steps_of(self.results) + (0 if trainer is None else trainer.step)
        return self.folder.save(step, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the progress of the run, with all tensors; the keys are those of checkpoints."""
        stage = self._stage
        trainer = None if stage is None else stage.trainer
        return {
            "progress": {
                "stage": len(self.results),
                "results": [result.to_dict() for result in self.results],
                "seconds": 0.0 if stage is None else stage.seconds,
                "bits_at_start": None if stage is None else stage.bits_at_start,
            },
            "model": self.model.state_dict(),
            "trainer": None if trainer is None else trainer.state_dict(),
            "trunk": None if self._engine is None else self._engine.state_dict(),
            "carried": self._optimizer_states.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the progress that `state_dict` returned."""
        progress = state["progress"]
        self.results = [StageResult.from_dict(result) for result in progress["results"]]
        self._trunk_state = state.get("trunk")
        self._optimizer_states.load_state_dict(state.get("carried"))
        last, started = len(self.results) - 1, None
        if state["trainer"] is not None:
            self._interrupted = _InterruptedStage(
                state["trainer"], progress["seconds"], progress["bits_at_start"]
            )
            last += 1
            started = self.setup.schedule.stages[last]
        if last >= 0:
            rebuild(self.model, started, self.setup.shapes[last])
        self.model.load_state_dict(state["model"])


@dataclass(frozen=True)
class _InterruptedStage:
    """The saved state of a stage that was interrupted.

    Attributes:
        trainer: state of the trainer.
        seconds: time that the stage has taken.
        bits_at_start: bits per character of the validation text before training.
    """

    trainer: dict[str, Any]
    seconds: float
    bits_at_start: float | None
