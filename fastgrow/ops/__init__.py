"""Operations: one file each, with the formula, the eager reference and the faster implementations.

Plain tensors in and out. Every public function takes `impl=` to force an implementation;
`use_impl` does so for a block of code and FASTGROW_IMPL for a process. With FASTGROW_DEBUG=1
they also check what integer arguments hold, at the price of waiting for the device.
"""

from fastgrow.ops._dispatch import explain_all, use_impl
from fastgrow.ops.attention import attention
from fastgrow.ops.embedding import embedding
from fastgrow.ops.layer_norm import layer_norm
from fastgrow.ops.linear_cross_entropy import linear_cross_entropy
from fastgrow.ops.linear_kl import linear_kl
from fastgrow.ops.linear_lse_gather import linear_lse_gather, merge_lse
from fastgrow.ops.logit_mean import logit_mean
from fastgrow.ops.mlp import mlp
from fastgrow.ops.rms_norm import rms_norm
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
    "merge_lse",
    "mlp",
    "rms_norm",
    "rope",
    "rope_table",
    "use_impl",
]
