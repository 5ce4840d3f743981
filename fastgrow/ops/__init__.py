"""Operations on tensors, each with several implementations.

Each operation has a folder with its public function, the eager reference and the other
implementations. Every public function takes `impl=` to force an implementation; `use_impl` does so
for a block of code and FASTGROW_IMPL for a process. With FASTGROW_DEBUG=1 the functions also check
the values of integer arguments, which synchronises with the device.
"""

from fastgrow.ops.core.dispatch import (
    OPERATIONS,
    Implementation,
    Operation,
    explain_all,
    use_impl,
)
from fastgrow.ops.core.support import native_support
from fastgrow.ops.core.tuning_report import explain_tuning
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
from fastgrow.ops.feed_forward import mlp
from fastgrow.ops.heads import linear_cross_entropy, linear_kl, linear_lse_gather, merge_lse
from fastgrow.ops.lookup import embedding
from fastgrow.ops.lora import lora_linear
from fastgrow.ops.norms import layer_norm, rms_norm
from fastgrow.ops.rotary import RopeTable, rope, rope_table
from fastgrow.ops.softmax_attention import attention

__all__ = [
    "OPERATIONS",
    "Implementation",
    "Operation",
    "RopeTable",
    "attention",
    "embedding",
    "explain_all",
    "explain_tuning",
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
    "native_support",
    "probability_mean",
    "probability_mean_cross_entropy",
    "probability_mean_gather",
    "rms_norm",
    "rope",
    "rope_table",
    "use_impl",
]
