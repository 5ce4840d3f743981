"""The narrow stand-in for a run whose data is not available."""

from __future__ import annotations

import pytest

from fastgrow.growth.doctor.synthetic import narrow_config, synthetic_substrate
from fastgrow.nn import DecoderConfig


@pytest.mark.parametrize(
    ("d", "heads", "kv_heads", "ratio"), [(1000, 20, 4, 2.7), (4096, 32, 8, 2.6875), (96, 6, 2, 4)]
)
def test_a_model_of_any_shape_has_one(d: int, heads: int, kv_heads: int, ratio: float) -> None:
    config = DecoderConfig(9, d, n_head=heads, n_kv_head=kv_heads, mlp_ratio=ratio)
    narrow = narrow_config(config, synthetic_substrate("id-16"))
    assert (narrow.d_model, narrow.n_embed) == (64, 16)
    assert narrow.mlp_ratio == pytest.approx(ratio, rel=0.01)
