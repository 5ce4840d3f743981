"""A folder that Hugging Face's `kernels` loads by its path; `layers` is where it looks."""

from fastgrow.interop.kernel_layers import layers

__all__ = ["layers"]
