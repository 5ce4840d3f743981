"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, *, peak: float, warmup: float, min_ratio: float) -> float:
    """Return the learning rate of a linear warm-up to `peak`, then half a cosine to its minimum.

    The warm-up starts near 0; the minimum is `peak * min_ratio`.

    Args:
        step: the step about to be made, 0 … steps - 1.
        steps: number of steps of the run.
        peak: highest learning rate, reached at the end of the warm-up.
        warmup: share of the steps over which the learning rate warms up.
        min_ratio: last learning rate over the peak.
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    # The last step, steps - 1, has the minimum itself.
    progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def wsd(
    step: int, steps: int, *, peak: float, warmup: float, decay: float, min_ratio: float
) -> float:
    """Return the learning rate of a linear warm-up, a constant `peak`, and a linear decay.

    Warm-up, stable, decay (MiniCPM, arXiv 2404.06395, §4). The decay would reach
    `peak * min_ratio` one step after the last one, so that no step has a learning rate of 0.

    Args:
        step, steps, peak, warmup, min_ratio: as in `cosine`.
        decay: share of the steps over which the learning rate decays.
    """
    warmup_steps, begins = round(warmup * steps), decay_begins(steps, decay)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step < begins:
        return peak
    return peak * line(step - begins, steps - begins, min_ratio)


def decay_begins(steps: int, decay: float) -> int:
    """Return the first step of the decay in a run of `steps` steps; `steps` if it has no decay."""
    return steps - round(decay * steps)


def line(step: int, steps: int, min_ratio: float) -> float:
    """Return the factor of a step 0 … steps - 1 on a line from 1 to `min_ratio` at step `steps`."""
    return 1 - (1 - min_ratio) * step / steps
