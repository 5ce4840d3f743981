"""Check a growth run with its own model, data and settings before it is started.

Each stage is started, trained for a few steps on small batches, stopped, resumed and compared. All
files are written to a temporary folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

from fastgrow.errors import ConfigError, FastgrowError
from fastgrow.growth.active import stage_shape
from fastgrow.growth.doctor.cached_trunk import TrunkExam
from fastgrow.growth.doctor.findings import Diagnosis, Finding
from fastgrow.growth.doctor.stage import Setting, StageExam, not_reached
from fastgrow.growth.doctor.table import TableExam
from fastgrow.growth.doctor.whole_run import copy_model, examine_run
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.trunk import Trunk
from fastgrow.nn import Decoder
from fastgrow.training import Mixture, TextData, TrainConfig
from fastgrow.training.rng import rng_state, set_rng_state

BATCH, ACCUMULATE, WINDOW = 2, 2, 32


def diagnose(
    model: Decoder,
    data: TextData | Mixture,
    schedule: GrowthSchedule,
    train: TrainConfig,
    *,
    steps: int = 4,
    notes: list[str] | None = None,
    trunk: Trunk | None = None,
) -> Diagnosis:
    """Check every stage of a growth run.

    Args:
        model: the model, as for `grow`; it is grown in place, on its device.
        data: training data of the run.
        schedule: the stages.
        train: training settings; batches are reduced to at most 2 micro-batches of 2 windows of 32
            tokens in a step.
        steps: number of training steps in each stage, at least 2.
        notes: other changes that the caller made to the run, for the report.
        trunk: trunk settings, as for `grow`; files are written to the temporary folder.

    Returns:
        The findings. A failed check is a finding and raises no error.

    Raises:
        ConfigError: steps is less than 2.
        DataError: the training text is shorter than a window.
    """
    if steps < 2:
        raise ConfigError(
            f"diagnose: expected at least 2 steps, because each stage is stopped and resumed, got "
            f"{steps}"
        )
    seq_len = min(train.seq_len or model.max_seq_len, WINDOW)
    small = dataclasses.replace(
        train,
        batch_size=min(train.batch_size, BATCH),
        accumulate=min(train.accumulate, ACCUMULATE),
        seq_len=seq_len,
        eval_every=None,
        pick="last",
    )
    sizes = f"{steps} steps per stage of {small.accumulate} x {small.batch_size} x {seq_len} tokens"
    first_depth = model.n_layer
    findings: list[Finding] = []
    generators = rng_state()
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastgrow-doctor-"))
            setting = Setting(small, seq_len, steps, data.train, Path(folder))
            trunks = stack.enter_context(TrunkExam(model, trunk, setting))
            table = TableExam(model, data, Path(folder) / "substrate")
            start = copy_model(model)
            for index, stage in enumerate(schedule.stages):
                number = index + 1
                try:
                    shape = stage_shape(schedule, index, model.config, first_depth)
                except FastgrowError as error:
                    findings.append(Finding(number, "active set", False, str(error)))
                    break
                findings += StageExam(model, number, stage, shape, setting).run()
                findings.append(table.check(number, trains=shape.table))
                if model.n_layer != shape.depth:
                    findings.append(Finding(number, "trunk", None, "not reached"))
                    break
                findings.append(trunks.check(number, shape))
            else:
                findings.append(examine_run(start, data, schedule, setting, trunk))
    finally:
        set_rng_state(generators)
    for number in range(findings[-1].stage + 1, len(schedule.stages) + 1):
        findings += not_reached(number, "an earlier stage failed")
    return Diagnosis(findings, [*(notes or []), sizes])
