"""The folder of a growth run; also for runs that keep everything in memory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgrow import _files
from fastgrow.errors import ConfigError
from fastgrow.growth.lora import adapters
from fastgrow.growth.peft_format import save_adapters
from fastgrow.growth.result import StageResult
from fastgrow.nn import Decoder
from fastgrow.training import Checkpointer, Resume, RunLog, claim_folder
from fastgrow.training.environment import describe_environment
from fastgrow.training.run_folder import RECORD as RUN_RECORD
from fastgrow.training.run_folder import FolderInUse, sole_user

_RECORD, _MODEL, _STATE = "growth.json", "model", "growth"
_MOMENTS, _FINISH = "moments", "finish"


class RunFolder:
    """Checkpoints, log, record (`growth.json`), model and adapters of one run.

    Args:
        out: the folder; None writes nothing.
        quiet: whether the log prints nothing.
    """

    def __init__(self, out: Path | None, *, quiet: bool) -> None:
        self.out = out
        self.log = RunLog(quiet=quiet)
        self._quiet = quiet
        self._checkpointer: Checkpointer | None = None

    @property
    def checkpoints(self) -> Path | None:
        """Folder of the checkpoints; None if none are written."""
        return None if self._checkpointer is None else self._checkpointer.folder

    @property
    def moments(self) -> Path | None:
        """Folder of the optimizer state of frozen parameters; None in a run without a folder."""
        return None if self.out is None else self.out / _MOMENTS

    def sole_user(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which this process is the only one that runs this run.

        Raises:
            FolderInUse: another process is running it.
            CheckpointError: the folder is not writable.
        """
        if self.out is None:
            return contextlib.nullcontext()
        return sole_user(self.out)

    def finish_requested(self, stage: int, step: int) -> bool:
        """Whether the user requested the run to end at this step of a stage (from 0), or earlier.

        The stage and step at which the request was first seen are written into its file. A run that
        is killed after that, before its next checkpoint, then starts its decay at the same step.
        """
        if self.out is None or not (self.out / _FINISH).exists():
            return False
        seen = (self.out / _FINISH).read_text(encoding="utf-8").split()
        if not seen:
            _files.write_text(self.out / _FINISH, f"{stage} {step}\n")
            return True
        return (stage, step) >= (int(seen[0]), int(seen[1]))

    def request_finish(self) -> None:
        """Request the decay of this run to start at its next step; once is enough."""
        if self.out is not None and not (self.out / _FINISH).exists():
            _files.write_text(self.out / _FINISH, "")

    def open(self, model: Decoder, identity: dict[str, Any], resume: Resume) -> Any:
        """Open the folder for a run with these settings.

        Args:
            model: the model; its device is recorded.
            identity: everything that decides what the run computes.
            resume: as in `grow`.

        Returns:
            The state of the last checkpoint; None if there is none.

        Raises:
            ConfigError: as `claim_folder`.
        """
        if self.out is None:
            return None
        claim_folder(self.out, identity, resume, describe_environment(model.device))
        stages = len(identity["schedule"])
        for name in (RUN_RECORD, _RECORD, _MODEL, *map(_adapters_of, range(stages))):
            _files.remove_leftovers(self.out / name)
        self.log = RunLog(self.out, quiet=self._quiet)
        self._checkpointer = Checkpointer(self.out / "checkpoints")
        latest = self._checkpointer.latest()
        saved = None if latest is None else self._checkpointer.load(latest)[_STATE]
        # A run that was stopped before its first checkpoint may have written lines to the log.
        self.log.load_state_dict(RunLog().state_dict() if saved is None else saved["log"])
        return saved

    def save(self, step: int, state: Mapping[str, Any]) -> Path | None:
        """Write a checkpoint and return its path; None in a run without a folder."""
        if self._checkpointer is None:
            return None
        return self._checkpointer.save(step, {_STATE: {**state, "log": self.log.state_dict()}})

    def save_adapters(self, model: Decoder, index: int) -> None:
        """Write the LoRA of a stage as adapter files, if it has any."""
        if self.out is not None and adapters(model):
            save_adapters(model, self.out / _adapters_of(index))

    def write_result(self, model: Decoder, results: list[StageResult]) -> None:
        """Write the record and the model."""
        if self.out is not None:
            _files.write_json(self.out / _RECORD, [result.to_dict() for result in results])
            model.save(self.out / _MODEL)
            shutil.rmtree(self.out / _MOMENTS, ignore_errors=True)
            (self.out / _FINISH).unlink(missing_ok=True)


def _adapters_of(index: int) -> str:
    return f"adapters/stage-{index + 1}"


def request_finish(out: Path) -> bool:
    """Request the process that runs a run to start the decay at its next step and end with it.

    Returns:
        Whether there is such a process. If there is none, nothing is requested: resume the run with
        `grow(…, finish=True)` instead.

    Raises:
        ConfigError: there is no run, it is finished, or its learning-rate schedule has no decay of
            this kind.
    """
    if not (out / RUN_RECORD).is_file():
        raise ConfigError(f"{out}: contains no run to finish")
    schedule = _files.read_json(out / RUN_RECORD).get("train", {}).get("schedule", "per-stage")
    if schedule != "wsd":
        raise ConfigError(
            f"{out}: only a run with train.schedule=wsd can be finished early, this run has "
            f"{schedule}; stop it, or let it continue"
        )
    if (out / _RECORD).is_file():
        raise ConfigError(f"{out}: the run is already finished; its model is in {out / _MODEL}")
    try:
        with sole_user(out):
            return False
    except FolderInUse:
        RunFolder(out, quiet=True).request_finish()
        return True
