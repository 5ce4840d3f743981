"""Large pages for new results: asked for within the tensor alone, and its content stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expert_logits import needs_native

from fastgrow.ops import logit_mean

pytestmark = needs_native

SMAPS = Path("/proc/self/smaps")
OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGE = 2 << 20
needs_pages = pytest.mark.skipif(
    not (SMAPS.exists() and OFFERED.exists()), reason="the system does not tell of large pages"
)


def advised(address: int) -> bool:
    """Whether large pages have been asked for where the address lies."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        words = line.split()
        first, dash, last = words[0].partition("-")
        if dash and not words[0].endswith(":"):
            inside = int(first, 16) <= address < int(last, 16)
        elif inside and words[0] == "VmFlags:":
            return "hg" in words
    return False


@needs_pages
def test_whole_pages_within_the_tensor_are_asked_for() -> None:
    memory = torch.arange(20 * PAGE // 4, dtype=torch.int32)
    part = memory[1000 : 19 * PAGE // 4 - 1000]
    torch.ops.fastgrow_native.use_huge_pages_(part)
    begin = part.data_ptr()
    end = begin + part.nbytes
    first, last = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
    assert advised(first)
    assert advised(last - 1)
    assert not advised(first - 1)
    assert not advised(last)
    assert torch.equal(memory, torch.arange(20 * PAGE // 4, dtype=torch.int32))


@needs_pages
def test_a_new_mean_has_them() -> None:
    mean = logit_mean([torch.ones(64, 65536)] * 2, impl="native")
    assert advised(mean.data_ptr() + mean.nbytes // 2)


def test_small_tensors_are_left_alone() -> None:
    for size in (0, 1, PAGE // 4 - 1):
        x = torch.arange(size, dtype=torch.int32)
        torch.ops.fastgrow_native.use_huge_pages_(x)
        assert torch.equal(x, torch.arange(size, dtype=torch.int32))
