"""A growth run examined on its own model, data and settings before it is trusted with days.

Each stage is begun, trained for a few steps on small batches, stopped, resumed and compared; all
that is written goes to a temporary folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

from fastgrow.errors import ConfigError, FastgrowError
from fastgrow.growth.active import stage_shape
from fastgrow.growth.doctor.findings import Diagnosis, Finding
from fastgrow.growth.doctor.kept_trunk import TrunkExam
from fastgrow.growth.doctor.stage import Setting, StageExam, not_reached
from fastgrow.growth.doctor.table import TableExam
from fastgrow.growth.doctor.whole_run import copied, examine_run
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
    """Examine every stage of a growth run.

    Args:
        model: as `grow` would get it; grown in place, on the device where it stands.
        data: what it would be trained on.
        schedule: the stages.
        train: the settings; batches are shrunk to 2 windows of 32 tokens, twice a step at most.
        steps: of training in each stage, at least 2.
        notes: what else the caller has changed, for the report.
        trunk: as of `grow`; files are kept in the temporary folder.

    Returns:
        What was found. A check that fails is a finding, not an error.

    Raises:
        ConfigError: there are fewer than 2 steps.
        DataError: the training text is shorter than a window.
    """
    if steps < 2:
        raise ConfigError(f"diagnose: a stage that is stopped takes at least 2 steps, got {steps}")
    seq_len = min(train.seq_len or model.max_seq_len, WINDOW)
    small = dataclasses.replace(
        train,
        batch_size=min(train.batch_size, BATCH),
        accumulate=min(train.accumulate, ACCUMULATE),
        seq_len=seq_len,
        eval_every=None,
        pick="last",
    )
    said = f"{steps} steps a stage of {small.accumulate} x {small.batch_size} x {seq_len} tokens"
    first_depth = model.n_layer
    findings: list[Finding] = []
    generators = rng_state()
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastgrow-doctor-"))
            setting = Setting(small, seq_len, steps, data.train, Path(folder))
            trunks = stack.enter_context(TrunkExam(model, trunk, setting))
            table = TableExam(model, data, Path(folder) / "substrate")
            start = copied(model)
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
    return Diagnosis(findings, [*(notes or []), said])
