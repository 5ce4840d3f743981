"""Operations on the logits of K experts: averages, and losses, sampling and top-k of averages.

Losses, sampling and top-k do not store the averaged logits in memory.
"""

from fastgrow.ops.experts.choices import mean_argmax, mean_sample, mean_top_k
from fastgrow.ops.experts.losses import mean_cross_entropy, mean_log_softmax_gather
from fastgrow.ops.experts.mean import logit_mean
from fastgrow.ops.experts.mixture import (
    probability_mean,
    probability_mean_cross_entropy,
    probability_mean_gather,
)

__all__ = [
    "logit_mean",
    "mean_argmax",
    "mean_cross_entropy",
    "mean_log_softmax_gather",
    "mean_sample",
    "mean_top_k",
    "probability_mean",
    "probability_mean_cross_entropy",
    "probability_mean_gather",
]
