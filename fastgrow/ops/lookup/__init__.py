"""Embedding lookup in a table of floats, bits or codes: `embedding`."""

from fastgrow.ops.lookup.call import MAX_CODE_BITS, embedding

__all__ = ["MAX_CODE_BITS", "embedding"]
