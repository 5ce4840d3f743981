"""The learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, *, peak: float, warmup: float, min_ratio: float) -> float:
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
