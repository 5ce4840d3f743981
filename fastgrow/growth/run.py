"""Growing a model: for each stage freeze, stack, train; and survive being stopped anywhere.

Source: "Growing Transformers: Modular Composition and Layer-wise Expansion on a Frozen Substrate"
(arXiv 2507.07129), §3: train the newest blocks and the head, freeze, stack the next, repeat; and in
its third version phases of LoRA in between, merged at their ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastgrow.errors import Interrupted
from fastgrow.growth.boundary import rebuild
from fastgrow.growth.carried import Carried
from fastgrow.growth.folder import RunFolder
from fastgrow.growth.result import GrowthResult, StageResult
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.setup import Setup, Text
from fastgrow.growth.stage_run import StageRun
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.trunk.engine import TrunkEngine
from fastgrow.nn import Decoder
from fastgrow.training import InterruptGuard, Mixture, Resume, TextData, TrainConfig
from fastgrow.training.pace import FINISH
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
    """Grow `model` by `schedule`: stack blocks, train them with the final norm and head, freeze.

    Blocks that `model` has already are the first frozen ones. Within a stage the optimizer holds
    the active parameters and nothing else. Learning rate, data and the optimizer's state of what
    trains on go through all stages as through one training, unless `train.schedule` is "per-stage",
    where each stage begins anew. LoRA is merged into the weights when its stage ends, so that the
    next one sees a plain model.

    Args:
        model: grown in place, on the device where it stands.
        data: `TextData` or `Mixture`; its validation text picks the best weights of the run, or of
            each stage where they have schedules of their own.
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
        trunk: how the frozen blocks below all that trains are run, and whether their output is kept
            (`fastgrow.growth.Trunk`); None computes it in every step.
        finish: begin the decay of the run that stands in `out` now, and end with it: its stages
            after the present one are left out.

    Returns:
        The model and one `StageResult` a stage. A run that was stopped and resumed gives the same
        bits as one that was not, on a CPU with the same libraries and threads.

    Raises:
        ConfigError: `out` holds a run of other settings, or one at all under `resume="never"`, or
            another process is at work there; or a stage does not fit the model (`stage_shape`) or
            the schedule of the learning rate, or waits for a plateau and there is no validation
            text.
        Interrupted: the user stopped the run (SIGINT or SIGTERM); its state is saved. A second
            signal stops at once, by KeyboardInterrupt, and leaves the last checkpoint.
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
    run = _Run(setup, RunFolder(out, quiet=quiet))
    with run.folder.sole_user():
        run.open(resume)
        if finish:
            run.folder.ask_to_finish()
        with run.folder.log, run.interrupt, run.open_trunk():
            while not run.finished:
                run.one_stage()
        return run.finish()


class _Run:
    """One call of `grow`: its stages one after the other, and where it stands among them."""

    def __init__(self, setup: Setup, folder: RunFolder) -> None:
        self.setup = setup
        self.model = setup.model
        self.folder = folder
        self.results: list[StageResult] = []
        # Within a stage the trainer has a guard of its own; this one is for what lies between.
        self.interrupt = InterruptGuard()
        self._carried = Carried(setup.moments, setup.schedule.stages, setup.shapes, folder.moments)
        self._engine: TrunkEngine | None = None
        self._trunk_state: dict[str, Any] | None = None
        self._stage: StageRun | None = None
        # Of a stage that was stopped in the middle, until it goes on.
        self._unfinished: _Unfinished | None = None

    def open(self, resume: Resume) -> None:
        """Start anew, or take up the run that stands in the folder."""
        saved = self.folder.open(self.model, self.setup.identity(), resume)
        if saved is not None:
            self.load_state_dict(saved)

    def open_trunk(self) -> TrunkEngine:
        """What runs the frozen trunk of every stage, and keeps its output."""
        self._engine = TrunkEngine(
            self.model,
            self.setup.trunk,
            out=self.folder.out,
            log=self.folder.log,
            precision=resolve_precision(self.setup.train.precision, self.model.device),
            pause=self._stop_if_asked,
        )
        if self._trunk_state is not None:
            self._engine.load_state_dict(self._trunk_state)
        return self._engine

    @property
    def finished(self) -> bool:
        return len(self.results) == self.setup.n_stages or self._was_finished

    @property
    def _was_finished(self) -> bool:
        """Whether the user had the run end with the last stage made."""
        decision = self.results[-1].decision if self.results else None
        return decision is not None and decision["reason"] == FINISH

    def one_stage(self) -> None:
        """Train the stage that is due, from its beginning or from where it was stopped."""
        assert self._engine is not None
        steps_before = self.setup.steps_of(self.results)
        self._stage = StageRun(
            self.setup, len(self.results), steps_before, self.folder, self._engine, self._carried
        )
        resumed, self._unfinished = self._unfinished, None
        if resumed is not None:
            self._stage.seconds = resumed.seconds
            self._stage.bits_at_start = resumed.bits_at_start
        trainer = None if resumed is None else resumed.trainer
        self.results.append(self._stage.run(trainer, self._save, self._stop_if_asked))
        # Its optimizer's memory goes before the next one's comes.
        self._stage = None
        self._save()
        self._stop_if_asked()

    def finish(self) -> GrowthResult:
        self.folder.finish(self.model, self.results)
        return GrowthResult(self.model, self.results, self.folder.out)

    def _stop_if_asked(self) -> None:
        """Act on a signal that came outside the training proper, where all is saved."""
        signal, done = self.interrupt.requested, len(self.results)
        if signal is None or self.finished:
            return
        stopped = f"stopped by {signal.name} after {done} of {self.setup.n_stages} stages"
        if self.folder.checkpoints is None:
            raise Interrupted(f"{stopped}; this run keeps no checkpoints, so it starts anew")
        raise Interrupted(
            f"{stopped}; what was done is saved in {self.folder.checkpoints}. Start the same run "
            'again, by the same command or with resume="auto", to go on'
        )

    # -- saving and loading --------------------------------------------------------------------

    def _save(self) -> Path | None:
        trainer = None if self._stage is None else self._stage.trainer
        step = self.setup.steps_of(self.results) + (0 if trainer is None else trainer.step)
        return self.folder.save(step, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands."""
        stage = self._stage
        trainer = None if stage is None else stage.trainer
        return {
            "progress": {
                "stage": len(self.results),
                "results": [asdict(result) for result in self.results],
                "seconds": 0.0 if stage is None else stage.seconds,
                "bits_at_start": None if stage is None else stage.bits_at_start,
            },
            "model": self.model.state_dict(),
            "trainer": None if trainer is None else trainer.state_dict(),
            "trunk": None if self._engine is None else self._engine.state_dict(),
            "carried": self._carried.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        progress = state["progress"]
        self.results = [StageResult(**result) for result in progress["results"]]
        self._trunk_state = state.get("trunk")
        self._carried.load_state_dict(state.get("carried"))
        last, begun = len(self.results) - 1, None
        if state["trainer"] is not None:
            self._unfinished = _Unfinished(
                state["trainer"], progress["seconds"], progress["bits_at_start"]
            )
            last += 1
            begun = self.setup.schedule.stages[last]
        if last >= 0:
            rebuild(self.model, begun, self.setup.shapes[last])
        self.model.load_state_dict(state["model"])


@dataclass(frozen=True)
class _Unfinished:
    """Of a stage that was stopped in the middle: its trainer's state, and what else it knew."""

    trainer: dict[str, Any]
    seconds: float
    bits_at_start: float | None
