"""Replacements for modules of Hugging Face transformers; imports transformers."""

# Registers the attention function, which a model unpickled in another process looks up by name.
from fastgrow.interop.hf import attention as attention
