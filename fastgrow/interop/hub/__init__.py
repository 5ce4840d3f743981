"""A folder that Hugging Face's `kernels` loads by its path; `layers` is where it looks."""

from fastgrow.interop.hub import layers

__all__ = ["layers"]
