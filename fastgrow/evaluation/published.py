"""The published scores in per cent, with the papers' generative protocol.

Source: the result files in the author's repository (AVBochkov/PGT, `results/`) for arXiv 2507.07129
and 2507.04886; the last row is from version 3 of arXiv 2507.07129. Each score is the mean of ten
sampled runs of one model, without seeds. Random guessing scores 25 (CSQA 20). An answer that does
not start with the letter of an option counts as wrong, so scores below that reflect violations of
the answer format. SQuAD is version 2.0.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A model's published scores by task; `depth` is given for the models grown block by block."""

    model: str
    scores: dict[str, float]
    depth: int | None = None


_TASKS = ("mmlu", "arc-easy", "arc-challenge", "csqa", "squad")


def _row(model: str, *scores: float, depth: int | None = None) -> Published:
    return Published(model, dict(zip(_TASKS, scores, strict=False)), depth)


PUBLISHED: tuple[Published, ...] = (
    _row("abs-bvv-1", 18.08, 19.21, 19.83, 19.36, 1.21, depth=1),
    _row("abs-bvv-2", 19.43, 21.04, 21.71, 19.66, 0.82, depth=2),
    _row("abs-bvv-3", 20.63, 21.81, 24.78, 19.50, 3.75, depth=3),
    _row("abs-bvv-4", 21.03, 21.14, 24.78, 19.99, 3.16, depth=4),
    _row("abs-bvv-5", 20.33, 20.42, 23.24, 19.80, 2.30, depth=5),
    _row("abs-bvv-6", 21.63, 23.42, 25.62, 19.51, 5.55, depth=6),
    _row("best_bvv_ru", 22.29, 23.04, 24.62, 20.13, 14.84),
    _row("best_bvv_zh", 19.42, 19.51, 21.94, 19.62, 15.12),
    _row("best_bvv_moe", 23.44, 23.74, 25.28, 19.69, 19.73),
    _row("max_bvv_ru", 23.58, 21.65, 24.78, 19.65, 18.95),
    _row("max_bvv_zh", 24.72, 21.93, 26.49, 20.21, 17.66),
    _row("max_bvv_moe", 22.37, 21.39, 25.05, 20.12, 18.40),
    _row("nemo_bvv_ru", 8.80, 19.53, 21.34, 19.51, 6.80),
    _row("nemo_bvv_zh", 6.62, 23.53, 24.48, 19.27, 6.05),
    _row("nemo_bvv_moe", 8.99, 22.44, 23.75, 19.90, 7.70),
    _row("16 layers, after the LoRA stage", 28.92),
)
"""The scores of the papers and of the author's result files, in percent."""
