"""Models of Hugging Face's transformers, which importing this package imports."""

# A patched model that is unpickled in another process finds its attention by name.
from fastgrow.interop.hf import attention as attention
