"""Saving and loading ensembles. An ensemble is a folder:

    config.json            kind, format, rule, experts in order, substrate's fingerprint, SHA-256s
    experts/<name>/        one folder per expert, without the substrate
    adapter.safetensors    parameters of the rule `Adapter`, if that is the rule
    tokenizer.json, …      files of the substrate, stored once for all experts

Each expert's config.json has the checksums of the expert's files; the ensemble's config.json has
the checksums of the experts' config.json files.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fastgrow._files import atomic_folder, read_json
from fastgrow.compose.ensemble import Ensemble
from fastgrow.compose.offloaded import OffloadedExpert
from fastgrow.compose.rules import Rule
from fastgrow.errors import CheckpointError, ConfigError, SubstrateError
from fastgrow.nn import Decoder, SubstrateLike
from fastgrow.nn.serialization import (
    CONFIG,
    load_weights,
    owned_names,
    read_model_config,
    write_model_config,
    write_tensors,
)
from fastgrow.substrate import Substrate

KIND = "ensemble"
EXPERTS = "experts"
ADAPTER = "adapter.safetensors"

Model = Decoder | Ensemble


def load(
    path: Path | str,
    *,
    substrate: SubstrateLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a model of any kind from a folder.

    Args:
        path: the folder that `save` wrote, or the folder of a run.
        substrate: substrate to share instead of loading it again; it has to have the same
            fingerprint.
        device: device of the model; default: the CPU.
        dtype: dtype of the parameters; default: as saved.

    Returns:
        A `Decoder` or an `Ensemble`.

    Raises:
        CheckpointError: the folder or a file is missing, damaged or does not fit, or the kind of
            model is unknown; the message names it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not (folder / CONFIG).exists():
        if (folder / "model").is_dir():
            folder = folder / "model"
        elif (folder / "run.json").is_file():
            raise CheckpointError(f"{folder}: the run has no model yet: no stage is finished")
    content = read_json(folder / CONFIG)
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _LOADERS:
        raise CheckpointError(
            f"{folder / CONFIG}: holds a model of kind {kind!r}; "
            f"expected one of {', '.join(_LOADERS)}"
        )
    return _LOADERS[kind](folder, substrate=substrate, device=device, dtype=dtype)


def save_ensemble(ensemble: Ensemble, path: Path, *, with_substrate: bool = True) -> None:
    """Save an ensemble; an existing folder is replaced only after all files are written."""
    for name, model in ensemble.experts.items():
        if not isinstance(model, Model | OffloadedExpert):
            raise ConfigError(
                f"expert {name!r} is a {type(model).__name__}; only a Decoder or an Ensemble "
                "can be saved"
            )
    substrate = ensemble.substrate
    config = {"rule": ensemble.rule.to_config(), "experts": list(ensemble.names)}
    fingerprint = None if substrate is None else substrate.fingerprint
    with atomic_folder(path, owned=owned_names(path)) as folder:
        for name, model in ensemble.experts.items():
            offloaded = isinstance(model, OffloadedExpert)
            with model.on_device() if offloaded else nullcontext(model) as loaded:
                loaded.save(folder / EXPERTS / name, with_substrate=False)
        files = [folder / EXPERTS / name / CONFIG for name in ensemble.names]
        if substrate is not None and with_substrate:
            substrate.save(folder)
            files += [file for file in sorted(folder.iterdir()) if file.is_file()]
        if ensemble.adapter is not None:
            write_tensors(folder / ADAPTER, ensemble.adapter.state_dict(), {"format": "pt"})
            files.append(folder / ADAPTER)
        write_model_config(folder, KIND, config, fingerprint, files)


def load_ensemble(
    path: Path,
    *,
    substrate: SubstrateLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Ensemble:
    """Load an ensemble; see `Ensemble.load`."""
    content = read_model_config(path, KIND)
    config_file, config = path / CONFIG, content["config"]
    names = config.get("experts")
    if not isinstance(names, list) or not names:
        raise CheckpointError(f"{config_file}: 'experts' is missing or not a list of names")
    for position, name in enumerate(names):
        if name in names[:position]:
            raise CheckpointError(f"{config_file}: lists the expert {name!r} twice")
        if f"{EXPERTS}/{name}/{CONFIG}" not in content["sha256"]:
            raise CheckpointError(
                f"{config_file}: lists the expert {name!r}, but not the checksum of its files"
            )
    try:
        rule = Rule.from_config(config.get("rule"))
    except ConfigError as error:
        raise CheckpointError(f"{config_file}: {error}") from None
    substrate = _substrate(path, content.get("fingerprint"), substrate)
    experts = {
        name: load(path / EXPERTS / name, substrate=substrate, device=device, dtype=dtype)
        for name in names
    }
    try:
        ensemble = Ensemble(experts, rule)
    except (ConfigError, SubstrateError) as error:
        raise CheckpointError(f"{config_file}: {error}") from None
    if ensemble.adapter is not None:
        load_weights(ensemble.adapter, path / ADAPTER)
        ensemble.adapter.to(device=device or "cpu", dtype=dtype)
    return ensemble


def _substrate(
    folder: Path, fingerprint: str | None, given: SubstrateLike | None
) -> SubstrateLike | None:
    if fingerprint is None:
        return None
    if given is None:
        given = Substrate.load(folder)
    if given.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: its experts use the substrate with fingerprint {fingerprint[:16]}…, "
            f"got the one with {given.fingerprint[:16]}…"
        )
    return given


_LOADERS: dict[str, Callable[..., Any]] = {"decoder": Decoder.load, KIND: load_ensemble}
