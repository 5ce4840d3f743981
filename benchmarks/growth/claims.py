"""Claims on the cost of growth, checked with the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.growth.runs import RunRow
from benchmarks.growth.steps import DEPTHS, MONOLITH, StepRow
from benchmarks.summary import quantile

SHARE_OF_COUNTED = 0.8
# Tolerance for peak memory of steps, because of the allocator's rounding.
FLAT = 1.02


@dataclass(frozen=True)
class Claim:
    """A bound on a measured number.

    Attributes:
        text: the claim.
        value: measured number.
        bound: maximum of the number, or minimum if `at_least`.
        at_least: whether `bound` is the minimum.
    """

    text: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def held(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def step_claims(rows: Sequence[StepRow]) -> list[Claim]:
    """Return the claims on steps; ratios are medians over rounds with interleaved contenders."""
    by_name = {row.name: row for row in rows}
    one, block = by_name["one block"], by_name["a frozen block's forward pass"]
    claims = []
    for n in DEPTHS:
        kept = by_name[f"{n} frozen, kept on disk"]
        text = f"step on {n} frozen blocks, rows read from disk, against a one-block model's step"
        claims.append(Claim(text, _ratio(kept.seconds, one.seconds), 1.1))
    for n in DEPTHS:
        recomputed = by_name[f"{n} frozen, recomputed"]
        sums = [a + n * b for a, b in zip(one.seconds, block.seconds, strict=True)]
        text = f"step on {n} frozen blocks, recomputed, against t_active + {n} · t_block"
        claims.append(Claim(text, _ratio(recomputed.seconds, sums), 1.1))
    monolith = by_name[f"monolith of {MONOLITH}"]
    ninth = by_name[f"{MONOLITH - 1} frozen, recomputed"]
    text = f"a {MONOLITH}-block monolith's step against that of one-block stage {MONOLITH}"
    claims.append(Claim(text, _ratio(monolith.seconds, ninth.seconds), 1.5, at_least=True))
    for kind in ("kept on disk", "recomputed"):
        peaks = [by_name[f"{n} frozen, {kind}"].peak for n in DEPTHS]
        text = f"peak memory of a step above the weights, trunk {kind}: deepest against shallowest"
        claims.append(Claim(text, peaks[-1] / peaks[0], FLAT))
    return claims


def run_claims(rows: Sequence[RunRow]) -> list[Claim]:
    claims = []
    for row in rows:
        what = f"growing to {row.stages} blocks, {row.passes:g} passes, cache in {row.cache}"
        if row.stages == max(r.stages for r in rows):
            claims.append(Claim(f"{what}: gain over recomputing", row.gain, 2.5, at_least=True))
        share = row.gain / row.counted
        text = f"{what}: share of the counted gain of {row.counted:.2f}×"
        claims.append(Claim(text, share, SHARE_OF_COUNTED, at_least=True))
        text = f"{what}: the weights differ (0: the same bits)"
        claims.append(Claim(text, 0.0 if row.same_bits else 1.0, 0.0))
    return claims


def _ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return quantile([x / y for x, y in zip(a, b, strict=True)], 0.5)
