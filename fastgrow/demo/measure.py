"""Measuring what the demo trained: everything here is a number that the run itself gave."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fastgrow.compose import Ensemble, Mean, Posterior, ProbabilityMean, Rule, Weighted
from fastgrow.demo.specialists import DemoTexts
from fastgrow.evaluation import bits_per_character, uniform_bits, unigram_bits
from fastgrow.nn import Decoder

MEAN = "mean of logits"


@dataclass(frozen=True)
class Matrix:
    """Bits per character: a row for each expert, composition rule and baseline; a column a text."""

    columns: list[str]
    rows: dict[str, list[float]]

    def at(self, row: str, column: str) -> float:
        return self.rows[row][self.columns.index(column)]


def measure_matrix(experts: dict[str, Decoder], texts: DemoTexts) -> Matrix:
    """Evaluate every expert, the ensemble under every rule, unigram and uniform on every text."""
    tests = texts.tests
    rows = {
        f"expert {name}": [bits_per_character(model, t).bits_per_character for t in tests.values()]
        for name, model in experts.items()
    }
    ensemble = Ensemble(experts, rule=Mean())
    for name, rule in rules(ensemble, texts).items():
        ensemble.reweight(rule)
        rows[name] = [bits_per_character(ensemble, t).bits_per_character for t in tests.values()]
    train = texts.mix.train
    rows["unigram"] = [unigram_bits(train, t).bits_per_character for t in tests.values()]
    rows["uniform"] = [uniform_bits(t).bits_per_character for t in tests.values()]
    return Matrix(list(tests), rows)


def rules(ensemble: Ensemble, texts: DemoTexts) -> dict[str, Rule]:
    """The composition rules that the demo shows, by the name of their row."""
    weights = _best_weights(ensemble, texts)
    label = ", ".join(f"{weight:.2f}" for weight in weights.values())
    return {
        MEAN: Mean(),
        f"weighted ({label})": Weighted(weights),
        "mean of probabilities": ProbabilityMean(),
        "posterior": Posterior(),
    }


def _best_weights(ensemble: Ensemble, texts: DemoTexts, steps: int = 5) -> dict[str, float]:
    """Weights on a grid that do best on the mixed validation text (never on a test text)."""
    names = list(ensemble.names)
    validation = texts.mix.validation
    best: tuple[float, dict[str, float]] | None = None
    for parts in itertools.product(range(1, steps), repeat=len(names)):
        if sum(parts) != steps:
            continue
        weights = {name: part / steps for name, part in zip(names, parts, strict=True)}
        ensemble.reweight(Weighted(weights))
        bits = bits_per_character(ensemble, validation, max_tokens=2_000).bits_per_character
        if best is None or bits < best[0]:
            best = bits, weights
    assert best is not None
    return best[1]
