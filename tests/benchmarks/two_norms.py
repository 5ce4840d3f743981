"""Two of the norms' tunable kernels, with two candidates each: few enough to compile in a test."""

from __future__ import annotations

import dataclasses

from fastgrow.kernels import norm_tuning
from fastgrow.kernels.norm import Rows
from fastgrow.kernels.tunable import Tunable


def tunables(capability: int) -> list[Tunable[Rows]]:
    return [
        dataclasses.replace(tunable, others=tunable.others[:1])
        for tunable in norm_tuning.tunables(capability)
        if tunable.bucket == "bf16/D=1024"
    ]
