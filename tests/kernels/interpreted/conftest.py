"""Tests of what kernels compute.

They run on a GPU if there is one; otherwise in a separate process under TRITON_INTERPRET=1, which
`tests/kernels/test_interpreted.py` starts. In other processes they are not collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# With older releases of torch, cuBLAS needs this variable for deterministic algorithms. It is read
# when cuBLAS is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


def round_bf16() -> None:
    """Make the interpreter round to bf16 to nearest even as a GPU does, instead of truncating."""
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(source: np.ndarray, from_type: tl.dtype, to_type: tl.dtype, mode: object) -> Any:
        if (from_type, to_type) == (tl.float32, tl.bfloat16):
            values = torch.from_numpy(np.array(source, dtype=np.float32, order="C"))
            return values.bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(source, from_type, to_type, mode)

    interpreter._convert_float = rounding


if INTERPRETED:
    round_bf16()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests `gpu` if they are not interpreted: they test the kernels on a device then."""
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised tensor with NaN, so that elements not written are detected."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def rules_are_asked_again() -> Iterator[None]:
    """Clear cached choices after tests that replace the launchers' rules."""
    yield
    from fastgrow.kernels import tuned

    tuned.forget()
