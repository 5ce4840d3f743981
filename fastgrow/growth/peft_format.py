"""The adapters of a stage as PEFT's files: adapter_config.json and adapter_model.safetensors.

PEFT corrects a matrix as a whole. For a matrix that combines n layers, such as queries, keys and
values, the n corrections are stacked: the A matrices below each other, the B matrices on the
diagonal. Rank (`rank_pattern`) and α (`alpha_pattern`) are then n times as large, so that the
factor α / r stays the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from fastgrow._files import atomic_folder
from fastgrow.growth.lora import adapters
from fastgrow.nn.serialization import write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def save_adapters(model: nn.Module, folder: Path) -> None:
    """Write the low-rank corrections of `model`; earlier files of this kind are replaced.

    Raises:
        FileExistsError: the folder contains other files.
        OSError: the disk is full or not writable.
    """
    layers = adapters(model)
    tensors = {}
    for name, layer in layers.items():
        a, b = layer.factors
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b
    with atomic_folder(folder, owned=(CONFIG, WEIGHTS)) as temporary:
        write_tensors(temporary / WEIGHTS, tensors, {"format": "pt"})
        text = json.dumps(_config(model), indent=2) + "\n"
        (temporary / CONFIG).write_text(text, encoding="utf-8")


def _config(model: nn.Module) -> dict[str, Any]:
    layers = adapters(model)
    first = next(iter(layers.values()))
    several = {name: layer for name, layer in layers.items() if len(layer.parts) > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(layers),
        "rank_pattern": {name: layer.rank * len(layer.parts) for name, layer in several.items()},
        "alpha_pattern": {name: layer.alpha * len(layer.parts) for name, layer in several.items()},
    }
