"""Invalid configurations raise an error that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastgrow.errors import ConfigError
from fastgrow.nn import DecoderConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("d_model", 0),
        ("d_model", 32.0),
        ("n_layer", -1),
        ("n_layer", True),
        ("n_head", 0),
        ("n_head", 3),
        ("n_head", 32),
        ("n_kv_head", 3),
        ("n_kv_head", 0),
        ("n_embed", 5),
        ("n_embed", 64),
        ("mlp_ratio", 0),
        ("mlp_ratio", 1.01),
        ("activation", "tanh"),
        ("norm", "batch_norm"),
        ("attention_bias", 1),
        ("rope_base", -1.0),
        ("max_seq_len", 0),
        ("embedding", "learned"),
        ("init_std", 0.0),
    ],
)
def test_bad_field_is_named(field: str, value: Any) -> None:
    fields = {"vocab_size": 10, "d_model": 32, "n_head": 4} | {field: value}
    with pytest.raises(ConfigError, match=rf"DecoderConfig\.{field}: expected .*, got "):
        DecoderConfig(**fields)


def test_survives_json() -> None:
    config = DecoderConfig(vocab_size=10, d_model=32, n_head=4, n_kv_head=2, activation="swiglu")
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_and_missing_fields() -> None:
    with pytest.raises(ConfigError, match="unknown field 'depth'"):
        DecoderConfig.from_dict({"vocab_size": 10, "depth": 3})
    with pytest.raises(ConfigError, match="'vocab_size' is missing"):
        DecoderConfig.from_dict({"d_model": 32})
