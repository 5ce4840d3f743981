"""Operations: one file each, with the formula, the eager reference and the faster implementations.

Plain tensors in and out. Every public function takes `impl=` to force an implementation;
`use_impl` does so for a block of code and FASTGROW_IMPL for a process. With FASTGROW_DEBUG=1
they also check what integer arguments hold, at the price of waiting for the device.
"""

from fastgrow.ops.attention import attention
from fastgrow.ops.core.dispatch import explain_all, use_impl
from fastgrow.ops.embedding import embedding
from fastgrow.ops.heads import (
    linear_cross_entropy,
    linear_kl,
    linear_lse_gather,
    merge_lse,
)
from fastgrow.ops.logit_mean import logit_mean
from fastgrow.ops.lora_linear import lora_linear
from fastgrow.ops.mean_cross_entropy import mean_cross_entropy
from fastgrow.ops.mean_log_softmax_gather import mean_log_softmax_gather
from fastgrow.ops.mean_sample import mean_sample
from fastgrow.ops.mean_top_k import mean_argmax, mean_top_k
from fastgrow.ops.mlp import mlp
from fastgrow.ops.norms import layer_norm, rms_norm
from fastgrow.ops.probability_mean import (
    probability_mean,
    probability_mean_cross_entropy,
    probability_mean_gather,
)
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
