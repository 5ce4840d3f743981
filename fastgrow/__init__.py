"""fastgrow: grow Transformers on a frozen glyph substrate, and compose them.

Text is mapped to frozen token vectors, a stack of Transformer blocks is grown and trained in stages
on top of them, and several models are combined by averaging their logits ("Growing Transformers:
Modular Composition and Layer-wise Expansion on a Frozen Substrate", arXiv 2507.07129).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgrow.compose import Contrast as Contrast
    from fastgrow.compose import Ensemble as Ensemble
    from fastgrow.compose import Mean as Mean
    from fastgrow.compose import Posterior as Posterior
    from fastgrow.compose import ProbabilityMean as ProbabilityMean
    from fastgrow.compose import Temperature as Temperature
    from fastgrow.compose import TopK as TopK
    from fastgrow.compose import Weighted as Weighted
    from fastgrow.compose import load as load
    from fastgrow.evaluation import bits_per_character as bits_per_character
    from fastgrow.growth import Budget as Budget
    from fastgrow.growth import GrowthResult as GrowthResult
    from fastgrow.growth import GrowthSchedule as GrowthSchedule
    from fastgrow.growth import LoRA as LoRA
    from fastgrow.growth import Moments as Moments
    from fastgrow.growth import Plateau as Plateau
    from fastgrow.growth import Rate as Rate
    from fastgrow.growth import Rates as Rates
    from fastgrow.growth import Stage as Stage
    from fastgrow.growth import Trunk as Trunk
    from fastgrow.growth import grow as grow
    from fastgrow.interop import patch as patch
    from fastgrow.interop import unpatch as unpatch
    from fastgrow.nn import Decoder as Decoder
    from fastgrow.nn import DecoderConfig as DecoderConfig
    from fastgrow.ops import use_impl as use_impl
    from fastgrow.substrate import Substrate as Substrate
    from fastgrow.training import Mixture as Mixture
    from fastgrow.training import TextData as TextData
    from fastgrow.training import TrainConfig as TrainConfig

__version__ = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent
if not (_PACKAGE / "kernels").is_dir():
    # In a working copy the kernels are next to the package directory (setup.py explains why).
    # Neither Python nor setuptools' editable finder looks there for a package without __init__.py.
    kernels = ModuleType("fastgrow.kernels")
    kernels.__path__ = [str(_PACKAGE.parent / "kernels")]
    sys.modules["fastgrow.kernels"] = kernels

# Names are imported on first use, so that `import fastgrow` is fast and a machine without one of
# the heavier packages can still use the other modules.
_HOME = {
    "Budget": "fastgrow.growth",
    "Contrast": "fastgrow.compose",
    "Decoder": "fastgrow.nn",
    "DecoderConfig": "fastgrow.nn",
    "Ensemble": "fastgrow.compose",
    "GrowthResult": "fastgrow.growth",
    "GrowthSchedule": "fastgrow.growth",
    "LoRA": "fastgrow.growth",
    "Mean": "fastgrow.compose",
    "Mixture": "fastgrow.training",
    "Moments": "fastgrow.growth",
    "Plateau": "fastgrow.growth",
    "Posterior": "fastgrow.compose",
    "ProbabilityMean": "fastgrow.compose",
    "Rate": "fastgrow.growth",
    "Rates": "fastgrow.growth",
    "Stage": "fastgrow.growth",
    "Substrate": "fastgrow.substrate",
    "Temperature": "fastgrow.compose",
    "TextData": "fastgrow.training",
    "TopK": "fastgrow.compose",
    "TrainConfig": "fastgrow.training",
    "Trunk": "fastgrow.growth",
    "Weighted": "fastgrow.compose",
    "bits_per_character": "fastgrow.evaluation",
    "grow": "fastgrow.growth",
    "load": "fastgrow.compose",
    "patch": "fastgrow.interop",
    "unpatch": "fastgrow.interop",
    "use_impl": "fastgrow.ops",
}
_SUBMODULES = frozenset(
    {
        "compose",
        "data",
        "errors",
        "evaluation",
        "growth",
        "info",
        "interop",
        "nn",
        "ops",
        "report",
        "substrate",
        "training",
    }
)

__all__ = sorted({*_HOME, *_SUBMODULES})


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"fastgrow.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastgrow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBMODULES})
