"""Evaluation of the models that the demo trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fastgrow.compose import Ensemble, Mean, Posterior, ProbabilityMean, Rule, Weighted
from fastgrow.demo.settings import DemoSettings
from fastgrow.demo.specialists import DemoTexts
from fastgrow.evaluation import (
    BitsPerCharacter,
    bits_per_character,
    uniform_bits,
    unigram_bits,
)
from fastgrow.nn import Decoder
from fastgrow.training import TokenStream

MEAN = "mean of logits"
MIXED = "mixed"


@dataclass(frozen=True)
class Matrix:
    """Bits per character: a row per expert, composition rule and baseline, a column per text."""

    columns: list[str]
    rows: dict[str, list[float]]

    def at(self, row: str, column: str) -> float:
        return self.rows[row][self.columns.index(column)]


def measure_matrix(experts: dict[str, Decoder], texts: DemoTexts, settings: DemoSettings) -> Matrix:
    """Evaluate the experts, the ensemble under every rule, and the baselines on every text."""
    tests = {script: data.test for script, data in texts.own.items()}
    limit = settings.test_tokens

    def row(measure: Callable[[TokenStream], BitsPerCharacter]) -> list[float]:
        parts = [measure(test) for test in tests.values()]
        # The mixed text consists of all test texts.
        return [part.bits_per_character for part in [*parts, BitsPerCharacter.over_all(parts)]]

    rows = {
        f"expert {name}": row(partial(bits_per_character, model, max_tokens=limit))
        for name, model in experts.items()
    }
    ensemble = Ensemble(experts, rule=Mean())
    weights = _best_weights(ensemble, texts, settings)
    rules: dict[str, Rule] = {
        MEAN: Mean(),
        f"weighted ({', '.join(f'{w:.2f}' for w in weights.values())})": Weighted(weights),
        "mean of probabilities": ProbabilityMean(),
        "posterior": Posterior(),
    }
    for name, rule in rules.items():
        ensemble.reweight(rule)
        rows[name] = row(partial(bits_per_character, ensemble, max_tokens=limit))
    rows["unigram"] = row(partial(unigram_bits, texts.mix.train, max_tokens=limit))
    rows["uniform"] = row(partial(uniform_bits, max_tokens=limit))
    return Matrix([*tests, MIXED], rows)


def _best_weights(
    ensemble: Ensemble, texts: DemoTexts, settings: DemoSettings, steps: int = 6
) -> dict[str, float]:
    """Return the weights of a grid that are best on all validation texts (not on test texts)."""

    def mixed_bits(weights: dict[str, float]) -> float:
        ensemble.reweight(Weighted(weights))
        return BitsPerCharacter.over_all(
            bits_per_character(ensemble, data.validation, max_tokens=settings.eval_tokens // 4)
            for data in texts.own.values()
        ).bits_per_character

    grid = [
        {name: part / steps for name, part in zip(ensemble.names, parts, strict=True)}
        for parts in itertools.product(range(1, steps), repeat=len(ensemble.names))
        if sum(parts) == steps
    ]
    return min(grid, key=mixed_bits)
