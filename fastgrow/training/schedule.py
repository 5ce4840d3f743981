"""The learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, *, peak: float, warmup: float, min_ratio: float) -> float:
    """Linear warm-up from near 0 to `peak`, then half a cosine down to `peak * min_ratio`.

    Args:
        step: the step about to be made, 0 … steps - 1.
        steps: length of the run.
        peak: highest rate, reached at the end of the warm-up.
        warmup: share of the steps that warm up.
        min_ratio: last rate over peak.
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    # The last step, steps - 1, lands on the minimum itself.
    progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def wsd(
    step: int, steps: int, *, peak: float, warmup: float, decay: float, min_ratio: float
) -> float:
    """Linear warm-up to `peak`, which is kept, then a line down to `peak * min_ratio`.

    Warm-up, stable, decay (MiniCPM, arXiv 2404.06395, §4). The line would reach its end one step
    after the last one, so that no step is made at a rate of 0.

    Args:
        step, steps, peak, warmup, min_ratio: as of `cosine`.
        decay: share of the steps that decay.
    """
    warmup_steps, begins = round(warmup * steps), decay_begins(steps, decay)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step < begins:
        return peak
    return peak * line(step - begins, steps - begins, min_ratio)


def decay_begins(steps: int, decay: float) -> int:
    """The first step of the decay of a run of `steps`; `steps` where it has none."""
    return steps - round(decay * steps)


def line(step: int, steps: int, min_ratio: float) -> float:
    """The factor of step 0 … steps - 1 on a line from 1 to `min_ratio`, reached after the last."""
    return 1 - (1 - min_ratio) * step / steps
