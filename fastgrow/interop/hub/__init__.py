"""A folder that Hugging Face's `kernels` loads by its path; `layers` is where it looks."""

from . import layers

__all__ = ["layers"]
