"""Sampling: which tokens can be drawn, and how often."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgrow.errors import ConfigError
from fastgrow.nn.generate import GenerationOptions
from fastgrow.nn.sampling import keep_top_k, keep_top_p, sample

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.1, 0.2])
LOGITS = PROBABILITIES.log()[None]


def support(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("k", "kept"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_top_k(k: int, kept: list[int]) -> None:
    filtered = keep_top_k(LOGITS, k)
    assert support(filtered) == kept
    assert torch.equal(filtered[0, kept], LOGITS[0, kept])


def test_top_k_breaks_ties() -> None:
    assert len(support(keep_top_k(torch.zeros(1, 6), 2))) == 2


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.01, [1]),
        (0.39, [1]),
        (0.41, [1, 2]),
        (0.64, [1, 2]),
        (0.66, [1, 2, 4]),
        (0.94, [1, 2, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, kept: list[int]) -> None:
    filtered = keep_top_p(LOGITS, p)
    assert support(filtered) == kept
    assert torch.equal(filtered[0, kept], LOGITS[0, kept])


def frequencies(**options: float) -> torch.Tensor:
    draws = sample(LOGITS.expand(40_000, 5), generator=torch.Generator().manual_seed(0), **options)
    return draws.bincount(minlength=5) / 40_000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    expected = PROBABILITIES ** (1 / temperature)
    expected = expected / expected.sum()
    # Five standard deviations of a frequency.
    allowed = 5 * (expected * (1 - expected) / 40_000).sqrt()
    assert ((frequencies(temperature=temperature) - expected).abs() < allowed).all()


def test_filters_apply_after_the_temperature() -> None:
    # At temperature 2 the shares are 0.106, 0.299, 0.236, 0.149, 0.211.
    assert frequencies(temperature=2.0, top_p=0.6).nonzero().flatten().tolist() == [1, 2, 4]
    assert frequencies(top_p=0.6).nonzero().flatten().tolist() == [1, 2]
    assert frequencies(top_k=3, top_p=0.75).nonzero().flatten().tolist() == [1, 2]


def test_zero_temperature_is_greedy() -> None:
    assert sample(LOGITS, temperature=0).tolist() == [1]


def test_seed_is_reproducible() -> None:
    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return sample(LOGITS.expand(50, 5), generator=generator).tolist()

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected a finite number of at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature: expected a finite number"),
        ({"top_k": 0}, "top_k: expected an integer of at least 1, or None, got 0"),
        ({"top_p": 0.0}, "top_p: expected a finite number above 0 and at most 1, or None, got 0.0"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"generate: {message}"):
        GenerationOptions(**options)
