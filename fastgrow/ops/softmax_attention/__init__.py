"""Attention with rotary positions, and a report on the backends of torch's attention."""

from fastgrow.ops.softmax_attention.call import attention
from fastgrow.ops.softmax_attention.sdpa import explain_sdpa

__all__ = ["attention", "explain_sdpa"]
