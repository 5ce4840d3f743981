"""Models of other projects on our operations."""

from pathlib import Path

from fastgrow.interop.patching import patch, unpatch
from fastgrow.interop.report import PatchReport, Treated

# Hugging Face's `kernels` loads our pure layers from here:
# LocalLayerRepository(KERNEL_LAYERS, layer_name="RMSNorm").
KERNEL_LAYERS = Path(__file__).resolve().parent / "hub"

__all__ = ["KERNEL_LAYERS", "PatchReport", "Treated", "patch", "unpatch"]
