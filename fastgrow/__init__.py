"""fastgrow: grow Transformers on a frozen glyph substrate, and compose them.

Text becomes frozen vectors, vectors pass a stack of blocks that grows, several stacks speak as one
("Growing Transformers: Modular Composition and Layer-wise Expansion on a Frozen Substrate",
arXiv 2507.07129).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgrow import nn as nn
    from fastgrow import ops as ops
    from fastgrow.nn import Decoder as Decoder
    from fastgrow.nn import DecoderConfig as DecoderConfig

__version__ = "0.1.0"

# Names are loaded on first use, so that `import fastgrow` costs next to nothing and a machine
# without one of the heavier packages can still use the rest.
_HOME = {
    "Decoder": "fastgrow.nn",
    "DecoderConfig": "fastgrow.nn",
    "Batches": "fastgrow.training",
    "Checkpointer": "fastgrow.training",
    "HubDataset": "fastgrow.training",
    "Mixture": "fastgrow.training",
    "RunLog": "fastgrow.training",
    "TextData": "fastgrow.training",
    "TrainConfig": "fastgrow.training",
    "Trainer": "fastgrow.training",
    "bits_per_character": "fastgrow.evaluation",
    "Ensemble": "fastgrow.compose",
    "Mean": "fastgrow.compose",
    "Posterior": "fastgrow.compose",
    "ProbabilityMean": "fastgrow.compose",
    "Weighted": "fastgrow.compose",
    "load": "fastgrow.compose",
    "errors": "fastgrow.errors",
    "use_impl": "fastgrow.ops",
}
_SUBMODULES = frozenset(
    {
        "compose",
        "errors",
        "evaluation",
        "growth",
        "info",
        "nn",
        "ops",
        "report",
        "substrate",
        "training",
    }
)

__all__ = sorted(_HOME)


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
