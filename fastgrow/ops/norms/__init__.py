"""Normalisation over the last axis: `layer_norm` and `rms_norm`."""

from fastgrow.ops.norms.call import layer_norm, rms_norm

__all__ = ["layer_norm", "rms_norm"]
