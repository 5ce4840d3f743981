"""Attention with rotary positions, and what torch's own would run it by."""

from fastgrow.ops.softmax_attention.call import attention
from fastgrow.ops.softmax_attention.sdpa import explain_sdpa

__all__ = ["attention", "explain_sdpa"]
