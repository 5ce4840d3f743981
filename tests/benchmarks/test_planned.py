"""The comparison of plans with real runs; times are only checked on an idle machine."""

from __future__ import annotations

import pytest

from benchmarks.planned import BYTES, FLOPS, SHAPES, Error, Shape, compare
from fastgrow.growth import Stage
from fastgrow.nn import DecoderConfig


def test_a_small_shape_is_near() -> None:
    shape = Shape("small", DecoderConfig(200, 32, n_head=2, max_seq_len=32), (Stage(), Stage()), 2)
    error = compare(shape, rounds=1, steps=2)
    assert error.flops == pytest.approx(1, abs=FLOPS)
    assert error.bytes == pytest.approx(1, abs=BYTES)
    assert error.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_shapes_are_near(shape: Shape) -> None:
    error = compare(shape, rounds=1)
    assert error.flops == pytest.approx(1, abs=FLOPS)
    assert error.bytes == pytest.approx(1, abs=BYTES)
    assert error.seconds > 0


def test_what_is_further_off_than_allowed_is_told() -> None:
    assert Error(1.05, 0.95, 1.2).within
    assert not Error(1.11, 1, 1).within
    assert not Error(1, 0.89, 1).within
    assert not Error(1, 1, 1.26).within
