"""Check that `grow`, killed in every stage and resumed, equals an uninterrupted run."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import FastgrowError
from fastgrow.growth.doctor.findings import Finding
from fastgrow.growth.doctor.stage import ON_GPU, Setting
from fastgrow.growth.doctor.tensors import differing, largest_difference, shorten
from fastgrow.growth.result import GrowthResult
from fastgrow.growth.run import grow
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.trunk import Trunk
from fastgrow.nn import Decoder
from fastgrow.training import Mixture, TextData


class _Killed(BaseException):
    """Simulates a SIGKILL: nothing between the training step and the caller handles it."""


def examine_run(
    model: Decoder,
    data: TextData | Mixture,
    schedule: GrowthSchedule,
    setting: Setting,
    trunk: Trunk | None,
) -> Finding:
    """Run `grow` twice, once with a kill in every stage, and compare the final weights.

    Args:
        model: the model before the first stage; it is copied.
        data: training data of the run.
        schedule: the stages; their tokens are reduced to the steps of the setting.
        setting: setting of the checks.
        trunk: trunk settings of the run; None if it has none.
    """
    number = len(schedule.stages)
    per_step = setting.train.batch_size * setting.train.accumulate * setting.seq_len
    stages = [
        dataclasses.replace(stage, tokens=setting.steps * per_step, until=None)
        for stage in schedule.stages
    ]
    short = dataclasses.replace(schedule, stages=stages)
    run = _Run(model, data, short, setting, trunk)
    try:
        whole = run.start_or_resume(setting.folder / "uninterrupted")
        # Kill it in the middle of the first stage, then each time one stage later.
        until_kill = setting.steps // 2 * setting.train.accumulate
        for _ in schedule.stages:
            run.start_or_resume(setting.folder / "killed", kill_after=until_kill)
            until_kill = setting.steps * setting.train.accumulate
        resumed = run.start_or_resume(setting.folder / "killed")
    except FastgrowError as error:
        return Finding(number, "run", False, str(error))
    assert whole is not None
    assert resumed is not None
    mine, theirs = whole.model.state_dict(), resumed.model.state_dict()
    wrong = differing(mine, theirs)
    difference = largest_difference(mine, theirs) if mine.keys() == theirs.keys() else float("inf")
    allowed = ON_GPU if model.device.type == "cuda" else 0.0
    if not wrong or difference <= allowed:
        return Finding(number, "run", True)
    detail = (
        f"the final weights of the killed and resumed run differ by up to {difference:.3g}: "
        f"{shorten(wrong)}"
    )
    return Finding(number, "run", False, detail)


class _Run:
    """A run that can be started repeatedly."""

    def __init__(
        self,
        model: Decoder,
        data: TextData | Mixture,
        schedule: GrowthSchedule,
        setting: Setting,
        trunk: Trunk | None,
    ) -> None:
        self._start = model
        self._data = data
        self._schedule = schedule
        # Without a folder, the cache is in the folder of each run.
        self._trunk = None if trunk is None else dataclasses.replace(trunk, folder=None)
        # Each kill is after a checkpoint of the same stage.
        self._train = dataclasses.replace(
            setting.train, checkpoint_every=setting.steps // 2, eval_tokens=1
        )

    def start_or_resume(self, out: Path, *, kill_after: int | None = None) -> GrowthResult | None:
        """Start or resume the run in a folder; kill it after a number of micro-batches if given.

        Returns:
            The result; None if the run was killed.
        """
        model = copy_model(self._start)
        if kill_after is not None:
            _fail_after(model, kill_after)
        try:
            return grow(
                model,
                self._data,
                self._schedule,
                train=self._train,
                out=out,
                quiet=True,
                trunk=self._trunk,
            )
        except _Killed:
            return None


def _fail_after(model: Decoder, micro_batches: int) -> None:
    """Make the model's loss raise after a given number of training micro-batches."""
    left, head = micro_batches, model.lm_head
    loss = head.loss

    def counted(*arguments: Any, **options: Any) -> Tensor:
        nonlocal left
        if model.training and torch.is_grad_enabled():
            if left == 0:
                raise _Killed
            left -= 1
        return loss(*arguments, **options)

    # Every step calls the head's loss, whether or not activations are cached. If the model's loss
    # were replaced, the trunk engine would not split the model.
    head.loss = counted  # type: ignore[method-assign]


def copy_model(model: Decoder) -> Decoder:
    """Return a copy of the model with separate weights and the same substrate."""
    # The copy shares the substrate, which is as large as the token table.
    return copy.deepcopy(model, {id(model.substrate): model.substrate})
