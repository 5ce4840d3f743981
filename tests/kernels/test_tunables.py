"""What the kernels offer to choose from: many configurations, and none that spills."""

from __future__ import annotations

import dataclasses

import pytest
import torch

attention = pytest.importorskip("fastgrow.kernels.attention", reason="triton is not installed")

from fastgrow.kernels import ahead, attention_tuning  # noqa: E402
from fastgrow.kernels.tunable import Tunable, with_stages  # noqa: E402

BF16 = torch.bfloat16


def tunable(kernel: str, key: str) -> Tunable:  # type: ignore[type-arg]
    (found,) = (t for t in attention_tuning.tunables(90) if (t.kernel, t.bucket) == (kernel, key))
    return found


def test_candidates_are_many_different_and_begin_with_the_default() -> None:
    found = attention_tuning.tunables(90)
    assert len({(t.kernel, t.bucket) for t in found}) == len(found) == 12
    for t in found:
        assert len(t.candidates) >= 8
        assert len({tuple(c.values()) for c in t.candidates}) == len(t.candidates)
        assert t.candidates[0] == dataclasses.asdict(t.default)
    forward = tunable("attention_forward", "bf16/D=64/T=8192")
    assert forward.default == attention.forward_tiles(64, BF16)


def test_shapes_are_taken_with_every_number_of_stages() -> None:
    tiles = with_stages(attention.Tiles, [(16, 32, 4), (64, 64, 8)], (2, 3))
    assert tiles == [
        *(attention.Tiles(16, 32, 4, n) for n in (2, 3)),
        *(attention.Tiles(64, 64, 8, n) for n in (2, 3)),
    ]


def test_a_build_tells_spills() -> None:
    d_key = tunable("attention_d_key", "bf16/D=32/T=1024")
    small = {"block_m": 16, "block_n": 64, "num_warps": 4, "num_stages": 2}
    assert d_key.build(small)["spills"] == 0
    assert d_key.build(small | {"block_m": 64, "block_n": 128})["spills"] > 0


def test_a_build_that_needs_too_much_shared_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ahead.SHARED_LIMIT, 90, 1024)
    with pytest.raises(ValueError, match=r"bytes of shared memory, allowed 1024"):
        attention_tuning.tunables(90)[0].build(
            {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2}
        )


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "dim"), attention_tuning.SHAPES)
def test_no_candidate_spills(kernel: str, dim: int) -> None:
    chosen = tunable(kernel, f"bf16/D={dim}/T=1024")
    for candidate in chosen.candidates:
        assert chosen.build(candidate)["spills"] == 0, candidate
