"""Package that Hugging Face's `kernels` loads by its path; it looks up classes in `layers`."""

from fastgrow.interop.kernel_layers import layers

__all__ = ["layers"]
