"""Training, composing and generating on a device, compared with the CPU.

Each test runs on the CPU in the ordinary suite, so that it is known to work before it runs on a
GPU, and on a GPU with the mark `gpu`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from fastgrow.substrate import Substrate
    from fastgrow.training import TextData

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,"
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    ],
)


@pytest.fixture(scope="session", params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that is compared with the CPU; also the CPU itself."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def gpu(device: torch.device) -> torch.device:
    """The device, if it has streams and graphs."""
    if device.type != "cuda":
        pytest.skip("a CPU has neither streams nor CUDA graphs")
    return device


@pytest.fixture(scope="session")
def substrate() -> Substrate:
    # Imported here: if a package is missing, a conftest that cannot be imported would also end the
    # kernels' tests, which do not need it.
    from fastgrow.substrate import Substrate

    return Substrate.build(characters=LETTERS, n_ngrams=0, n_components=32)


@pytest.fixture(scope="session")
def data(substrate: Substrate) -> TextData:
    """Documents in which some letters follow others, so that there is something to learn."""
    from fastgrow.training import TextData

    generator = torch.Generator().manual_seed(7)
    documents = []
    for _ in range(44):
        steps = torch.randint(1, 4, (150,), generator=generator).cumsum(0)
        documents.append("".join(LETTERS[i % len(LETTERS)] for i in steps.tolist()))
    return TextData.from_splits(
        train=documents[:40], validation=documents[40:], substrate=substrate
    )
