"""Settings, learning rate, optimizer groups and number formats."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from fastgrow.errors import ConfigError
from fastgrow.training import TrainConfig, precision
from fastgrow.training.optimizer import Optimizer
from fastgrow.training.precision import autocast, resolve_precision
from fastgrow.training.schedule import cosine


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": True},
        {"accumulate": 0},
        {"seq_len": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": "fast"},
        {"min_lr_ratio": 1.5},
        {"warmup": -0.1},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"grad_clip": 0.0},
        {"precision": "fp16"},
        {"eval_every": 0},
        {"eval_tokens": 0},
        {"log_every": 0},
        {"checkpoint_every": -1},
        {"seed": 0.5},
        {"pick": "worst"},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_named(change: dict[str, Any]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**change)
    assert str(caught.value).startswith(f"TrainConfig.{name}")
    got = {(0.9, 1.0): 1.0, (0.9,): [0.9]}.get(value, value)
    assert str(caught.value).endswith(f"got {got!r}")


def test_settings_are_frozen_and_valid_by_default() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0  # type: ignore[misc]


def test_tokens_to_steps_rounds_up() -> None:
    config = TrainConfig(batch_size=4, accumulate=2)
    assert [config.steps_for(tokens, 8) for tokens in (1, 64, 65)] == [1, 1, 2]
    with pytest.raises(ConfigError, match="tokens must be"):
        config.steps_for(0, 8)


def test_learning_rate_by_hand() -> None:
    def rates(steps: int, warmup: float) -> list[float]:
        return [
            cosine(step, steps, peak=2.0, warmup=warmup, min_ratio=0.1) for step in range(steps)
        ]

    # Two of nine steps warm up; the third is the peak, the last the minimum, the middle the mean.
    warm = rates(9, 2 / 9)
    assert warm[:3] == [1.0, 2.0, 2.0]
    assert warm[5] == pytest.approx((2.0 + 0.2) / 2)
    assert warm[8] == pytest.approx(0.2)
    assert warm[2:] == sorted(warm[2:], reverse=True)
    assert rates(5, 0.0)[0] == 2.0
    assert rates(4, 1.0) == [0.5, 1.0, 1.5, 2.0]
    assert rates(1, 0.0) == [2.0]
    assert all(0 < rate <= 2.0 for steps in range(1, 40) for rate in rates(steps, 0.05))


def test_optimizer_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = Optimizer(dict(model.named_parameters()), TrainConfig(weight_decay=0.3))
    decayed, plain = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (model[0].bias, model[1].weight, model[1].bias)
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(group["fused"] for group in optimizer.param_groups)
    only_vectors = Optimizer({"bias": model[0].bias}, TrainConfig())
    assert [group["weight_decay"] for group in only_vectors.param_groups] == [0.0]


def test_a_cpu_computes_in_fp32_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) is torch.float32
    assert resolve_precision("fp32", cpu) is torch.float32
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    with pytest.warns(RuntimeWarning, match="without AMX or AVX512-BF16"):
        assert resolve_precision("bf16", cpu) is torch.bfloat16
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("bf16", cpu) is torch.bfloat16
    with pytest.raises(ConfigError, match="not supported on meta"):
        resolve_precision("bf16", torch.device("meta"))
    assert isinstance(precision.cpu_has_bf16(), bool)


def test_autocast_casts_products_only_with_bf16() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(dtype, cpu):
            assert layer(x).dtype is dtype
