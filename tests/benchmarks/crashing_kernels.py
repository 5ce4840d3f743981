"""A fake module whose kernel makes the compiler crash with one configuration."""

from __future__ import annotations

import os
import signal

import torch
from tunable_kernels import CANDIDATES, FakeKernel

from fastgrow.kernels.tuned import multiprocessors


class Crashing(FakeKernel):
    """Returns how many GPUs are visible and how many multiprocessors are assumed."""

    def build(
        self, configuration: dict[str, int] | None, only: str | None = None
    ) -> dict[str, int]:
        if configuration == {"block": 32}:
            os.kill(os.getpid(), signal.SIGSEGV)
        if configuration == {"block": 16}:
            shared = multiprocessors(torch.device("meta"), 0)
            return {"spills": 0, "shared": shared, "gpus": len(os.environ["CUDA_VISIBLE_DEVICES"])}
        return super().build(configuration, only)


def tunables(capability: int) -> list[FakeKernel]:
    return [Crashing("attention_forward", "bf16/D=32", capability, CANDIDATES)]
