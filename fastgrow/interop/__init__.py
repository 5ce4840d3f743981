"""Other people's models: as experts, and on our operations."""

from pathlib import Path

from fastgrow.interop.hub_expert import HubExpert
from fastgrow.interop.hub_vocabulary import HubVocabulary
from fastgrow.interop.patching import patch, unpatch
from fastgrow.interop.report import PatchReport, Treated

# Hugging Face's `kernels` loads our pure layers from here:
# LocalLayerRepository(KERNEL_LAYERS, layer_name="RMSNorm").
KERNEL_LAYERS = Path(__file__).resolve().parent / "kernel_layers"

__all__ = [
    "KERNEL_LAYERS",
    "HubExpert",
    "HubVocabulary",
    "PatchReport",
    "Treated",
    "patch",
    "unpatch",
]
