"""`grow` itself: killed once in the middle of every stage and resumed, it ends as it does alone."""

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
from fastgrow.growth.doctor.tensors import differing, largest_difference, some
from fastgrow.growth.result import GrowthResult
from fastgrow.growth.run import grow
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.trunk import Trunk
from fastgrow.nn import Decoder
from fastgrow.training import Mixture, TextData


class _Killed(BaseException):
    """Stands for a SIGKILL: nothing between the training step and the caller acts on it."""


def examine_run(
    model: Decoder,
    data: TextData | Mixture,
    schedule: GrowthSchedule,
    setting: Setting,
    trunk: Trunk | None,
) -> Finding:
    """Run twice, once with a kill in every stage.

    Args:
        model: as before the first stage; it is copied.
        data: of the run.
        schedule: its stages, whose tokens are shrunk to the setting's steps.
        setting: of the examination.
        trunk: the run's settings, if it has any.
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
        alone = run.go_on(setting.folder / "alone")
        # In the middle of the first stage, then a stage's length further each time.
        until_kill = setting.steps // 2 * setting.train.accumulate
        for _ in schedule.stages:
            run.go_on(setting.folder / "killed", kill_after=until_kill)
            until_kill = setting.steps * setting.train.accumulate
        resumed = run.go_on(setting.folder / "killed")
    except FastgrowError as error:
        return Finding(number, "run", False, str(error))
    assert alone is not None
    assert resumed is not None
    mine, theirs = alone.model.state_dict(), resumed.model.state_dict()
    wrong = differing(mine, theirs)
    difference = largest_difference(mine, theirs) if mine.keys() == theirs.keys() else float("inf")
    allowed = ON_GPU if model.device.type == "cuda" else 0.0
    if not wrong or difference <= allowed:
        return Finding(number, "run", True)
    detail = f"killed and resumed it ends differently, by up to {difference:.3g}: {some(wrong)}"
    return Finding(number, "run", False, detail)


class _Run:
    """The same run, as often as it is wanted."""

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
        # Of this run alone, in its own folder.
        self._trunk = None if trunk is None else dataclasses.replace(trunk, folder=None)
        # A kill finds a checkpoint in its own stage.
        self._train = dataclasses.replace(
            setting.train, checkpoint_every=setting.steps // 2, eval_tokens=1
        )

    def go_on(self, out: Path, *, kill_after: int | None = None) -> GrowthResult | None:
        """Begin or go on in a folder; None if it was killed, after so many micro-batches."""
        model = copied(self._start)
        if kill_after is not None:
            _let_fail(model, kill_after)
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


def _let_fail(model: Decoder, micro_batches: int) -> None:
    """Make the loss raise after it has been computed for training so many times."""
    left, head = micro_batches, model.lm_head
    loss = head.loss

    def counted(*arguments: Any, **options: Any) -> Tensor:
        nonlocal left
        if model.training and torch.is_grad_enabled():
            if left == 0:
                raise _Killed
            left -= 1
        return loss(*arguments, **options)

    # Every step comes here, whether or not the trunk's output is at hand; a model whose own loss
    # is another one would not be split at its trunk.
    head.loss = counted  # type: ignore[method-assign]


def copied(model: Decoder) -> Decoder:
    """The model with weights of its own, on the same substrate."""
    # The substrate is shared: a copy of it would be as large as the table.
    return copy.deepcopy(model, {id(model.substrate): model.substrate})
