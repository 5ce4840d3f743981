"""The loss module compared with torch's on materialised logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastgrow import nn
from fastgrow.errors import ArgumentError


def tensors() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 8), (11, 8), (11,))
    h, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    targets = torch.randint(0, 11, (2, 5), generator=generator)
    targets[0, 2] = 3
    return h, weight, bias, targets


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"ignore_index": 3},
        {"label_smoothing": 0.2},
    ],
    ids=str,
)
def test_agrees_with_torch(settings: dict, with_bias: bool) -> None:
    h, weight, bias, targets = tensors()
    given = bias if with_bias else None
    loss = nn.LinearCrossEntropyLoss(**settings)(h, weight, targets, given)
    logits = F.linear(h, weight, given).flatten(0, 1)
    expected = torch.nn.CrossEntropyLoss(**settings)(logits, targets.flatten())
    torch.testing.assert_close(loss.flatten(), expected.flatten(), atol=1e-12, rtol=1e-12)


def test_z_loss_is_passed_on() -> None:
    h, weight, _, targets = tensors()
    plain = nn.LinearCrossEntropyLoss()(h, weight, targets)
    with_z = nn.LinearCrossEntropyLoss(z_loss=0.1)(h, weight, targets)
    squares = F.linear(h, weight).logsumexp(-1).square().mean()
    torch.testing.assert_close(with_z, plain + 0.1 * squares, atol=1e-12, rtol=1e-12)


def test_holds_no_state() -> None:
    assert not nn.LinearCrossEntropyLoss().state_dict()
    assert "reduction=sum" in str(nn.LinearCrossEntropyLoss(reduction="sum"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "max"}, "LinearCrossEntropyLoss: reduction must be one of mean, sum, none"),
        ({"label_smoothing": 1.5}, "label_smoothing must be between 0 and 1, got 1.5"),
    ],
)
def test_bad_settings_are_rejected_by_the_constructor(settings: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        nn.LinearCrossEntropyLoss(**settings)
