"""An ensemble as a folder.

    config.json            kind, format, rule, experts in order, substrate's fingerprint, SHA-256s
    experts/<name>/        each expert's own folder, without the substrate
    adapter.safetensors    what the rule `Adapter` has learned, where it is the rule
    tokenizer.json, …      what the substrate saves, once for all

Each expert's config.json vouches for the expert's files, and the ensemble's for those.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fastgrow._files import atomic_folder, read_json
from fastgrow.compose.ensemble import Ensemble
from fastgrow.compose.parked import ParkedExpert
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
    """Read whatever model a folder holds.

    Args:
        path: the folder that `save` wrote.
        substrate: share this one instead of loading another of the same fingerprint.
        device: where to put the model; the CPU without.
        dtype: cast the parameters.

    Returns:
        A `Decoder` or an `Ensemble`.

    Raises:
        CheckpointError: the folder or a file is missing, damaged or does not fit, or holds a kind
            of model that is unknown; the message names it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    content = read_json(folder / CONFIG)
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _LOADERS:
        raise CheckpointError(
            f"{folder / CONFIG}: holds a model of kind {kind!r}; "
            f"expected one of {', '.join(_LOADERS)}"
        )
    return _LOADERS[kind](folder, substrate=substrate, device=device, dtype=dtype)


def save_ensemble(ensemble: Ensemble, path: Path, *, with_substrate: bool = True) -> None:
    """Write an ensemble; what stood at `path` is replaced only once everything is on the disk."""
    for name, model in ensemble.experts.items():
        if not isinstance(model, Model | ParkedExpert):
            raise ConfigError(
                f"expert {name!r} is a {type(model).__name__}; only a Decoder or an Ensemble "
                "can be saved"
            )
    substrate = ensemble.substrate
    config = {"rule": ensemble.rule.to_config(), "experts": list(ensemble.names)}
    fingerprint = None if substrate is None else substrate.fingerprint
    with atomic_folder(path, owned=owned_names(path)) as folder:
        for name, model in ensemble.experts.items():
            present = model.present() if isinstance(model, ParkedExpert) else nullcontext(model)
            with present as there:
                there.save(folder / EXPERTS / name, with_substrate=False)
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
    """Read an ensemble; see `Ensemble.load`."""
    content = read_model_config(path, KIND)
    config_file, config = path / CONFIG, content["config"]
    names = config.get("experts")
    if not isinstance(names, list) or not names:
        raise CheckpointError(f"{config_file}: 'experts' is missing or not a list of names")
    for position, name in enumerate(names):
        if name in names[:position]:
            raise CheckpointError(f"{config_file}: lists the expert {name!r} twice")
        if f"{EXPERTS}/{name}/{CONFIG}" not in content["sha256"]:
            raise CheckpointError(f"{config_file}: lists the expert {name!r}, but not its files")
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
            f"{folder}: its experts stand on a substrate of fingerprint {fingerprint[:16]}…, "
            f"got one of {given.fingerprint[:16]}…"
        )
    return given


_LOADERS: dict[str, Callable[..., Any]] = {"decoder": Decoder.load, KIND: load_ensemble}
