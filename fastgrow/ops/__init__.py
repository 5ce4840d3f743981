"""Operations: one file each, with the formula, the eager reference and the faster implementations.

Plain tensors in and out. Every public function takes `impl=` to force an implementation;
`use_impl` does so for a block of code and FASTGROW_IMPL for a process. With FASTGROW_DEBUG=1
they also check what integer arguments hold, at the price of waiting for the device.
"""

from fastgrow.ops.attention import attention
from fastgrow.ops.core.dispatch import explain_all, use_impl
from fastgrow.ops.embedding import embedding
from fastgrow.ops.experts import (
    logit_mean,
    mean_argmax,
    mean_cross_entropy,
    mean_log_softmax_gather,
    mean_sample,
    mean_top_k,
    probability_mean,
    probability_mean_cross_entropy,
    probability_mean_gather,
)
from fastgrow.ops.linear_cross_entropy import linear_cross_entropy
from fastgrow.ops.linear_kl import linear_kl
from fastgrow.ops.linear_lse_gather import linear_lse_gather, merge_lse
from fastgrow.ops.lora_linear import lora_linear
from fastgrow.ops.mlp import mlp
from fastgrow.ops.norms import layer_norm, rms_norm
from fastgrow.ops.rope import RopeTable, rope, rope_table

__all__ = [
    "RopeTable",
    "attention",
    "embedding",
    "explain_all",
    "layer_norm",
    "linear_cross_entropy",
    "linear_kl",
    "linear_lse_gather",
    "logit_mean",
    "lora_linear",
    "mean_argmax",
    "mean_cross_entropy",
    "mean_log_softmax_gather",
    "mean_sample",
    "mean_top_k",
    "merge_lse",
    "mlp",
    "probability_mean",
    "probability_mean_cross_entropy",
    "probability_mean_gather",
    "rms_norm",
    "rope",
    "rope_table",
    "use_impl",
]
