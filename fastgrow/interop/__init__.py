"""Interoperability with Hugging Face: models as experts, and models on fastgrow's operations."""

from pathlib import Path

from fastgrow.interop.hub_expert import HubExpert
from fastgrow.interop.hub_vocabulary import HubVocabulary
from fastgrow.interop.patching import patch, unpatch
from fastgrow.interop.report import PatchReport, Treated

KERNEL_LAYERS = Path(__file__).resolve().parent / "kernel_layers"
"""The folder from which Hugging Face's `kernels` loads the layers, such as
`LocalLayerRepository(KERNEL_LAYERS, layer_name="RMSNorm")`."""

__all__ = [
    "KERNEL_LAYERS",
    "HubExpert",
    "HubVocabulary",
    "PatchReport",
    "Treated",
    "patch",
    "unpatch",
]
