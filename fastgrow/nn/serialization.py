"""Save and load a model as a folder.

    config.json            kind, format, configuration, substrate's fingerprint, files' SHA-256
    model.safetensors      parameters by their names in the state dict; metadata: fingerprint
    table.safetensors      the frozen table, if it does not come from a substrate
    tokenizer.json, …      files of the substrate

Pickle is not used. Files that are damaged or missing raise an error before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastgrow._files import atomic_folder, read_json, sha256_file
from fastgrow.errors import CheckpointError
from fastgrow.nn.language_model import SubstrateLike

CONFIG, WEIGHTS, TABLE = "config.json", "model.safetensors", "table.safetensors"
FORMAT = 1


def save_model_folder(
    path: Path | str,
    *,
    kind: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    substrate: SubstrateLike | None,
    table: Tensor | None = None,
    with_substrate: bool = True,
) -> None:
    """Save a model; an earlier model at `path` is replaced only when all files have been written.

    Args:
        path: the folder.
        kind: kind of the model, which `load` checks.
        config: JSON values that the model is built from.
        state: parameters by name.
        substrate: substrate whose files and fingerprint are saved.
        with_substrate: whether to save the substrate's files. If False, only the fingerprint is
            saved, and the substrate must be passed to `load`.
        table: a frozen table [V, n_embed] that does not come from a substrate.

    Raises:
        FileExistsError: `path` contains files that do not belong to a saved model.
        OSError: the disk is full or not writable; the earlier contents are unchanged.
    """
    fingerprint = None if substrate is None else substrate.fingerprint
    metadata = {"format": "pt"} | ({} if fingerprint is None else {"fingerprint": fingerprint})
    with atomic_folder(path, owned=owned_names(Path(path))) as folder:
        write_tensors(folder / WEIGHTS, state, metadata)
        if table is not None:
            write_tensors(folder / TABLE, {"table": table}, {"format": "pt"})
        if substrate is not None and with_substrate:
            substrate.save(folder)
        write_model_config(folder, kind, config, fingerprint, sorted(folder.iterdir()))


def write_model_config(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    fingerprint: str | None,
    files: Iterable[Path],
) -> None:
    """Write the config.json of a model folder, with the SHA-256 of its files."""
    content = {
        "kind": kind,
        "format": FORMAT,
        "config": dict(config),
        "fingerprint": fingerprint,
        "sha256": {file.relative_to(folder).as_posix(): sha256_file(file) for file in files},
    }
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def read_model_config(path: Path | str, kind: str | None = None) -> dict[str, Any]:
    """Read a model folder's config.json and check every file's SHA-256.

    Args:
        path: the folder.
        kind: the expected kind; None for any.

    Raises:
        CheckpointError: the folder or a file is missing or damaged, or the model has another kind
            or a newer format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    file = folder / CONFIG
    content = read_json(file)
    fields = {"kind": str, "format": int, "config": dict, "sha256": dict}
    for name, expected in fields.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), expected):
            raise CheckpointError(f"{file}: {name!r} is missing or not a {expected.__name__}")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{file}: written in format {content['format']} by a later version of fastgrow; "
            f"this version reads formats up to {FORMAT}"
        )
    if kind is not None and content["kind"] != kind:
        raise CheckpointError(f"{file}: holds a {content['kind']!r}, expected a {kind!r}")
    for name, digest in content["sha256"].items():
        _check_file(folder / name, digest)
    return content


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a valid safetensors file ({error})") from None


def load_weights(module: torch.nn.Module, file: Path) -> None:
    """Load the parameters of a module that was built on the meta device, without copying them.

    Raises:
        CheckpointError: a key is missing or unexpected, or a tensor has a wrong shape; the message
            names the file, the key and both shapes.
    """
    state, expected = read_tensors(file), module.state_dict()
    missing = [key for key in expected if key not in state]
    if missing:
        raise CheckpointError(f"{file}: the key {missing[0]!r} is missing{_more(missing)}")
    unexpected = [key for key in state if key not in expected]
    if unexpected:
        raise CheckpointError(
            f"{file}: the key {unexpected[0]!r} is not one of the model's{_more(unexpected)}"
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(
                f"{file}: {key!r} has shape {list(state[key].shape)}, expected {list(tensor.shape)}"
            )
    module.load_state_dict(state, assign=True)


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(on_cpu, file, metadata=metadata)


def owned_names(folder: Path) -> set[str]:
    """Return the names in `folder` that belong to a saved model and contain no other files."""
    saved = {file.relative_to(folder) for file in _saved_files(folder)}
    found = {file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()}
    foreign = {file.parts[0] for file in found - saved}
    return {file.parts[0] for file in saved} - foreign


def _saved_files(folder: Path) -> list[Path]:
    """Return config.json and the files that it lists, including those of models in subfolders."""
    try:
        content = read_json(folder / CONFIG)
    except CheckpointError:
        return []
    digests = content.get("sha256") if isinstance(content, dict) else None
    if not isinstance(digests, dict):
        return []
    files = [folder / CONFIG]
    for file in (folder / name for name in digests):
        files += _saved_files(file.parent) if file.name == CONFIG else [file]
    return files


def _check_file(file: Path, digest: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file, but {CONFIG} lists it")
    got = sha256_file(file)
    if got != digest:
        raise CheckpointError(
            f"{file}: damaged or changed since it was saved: SHA-256 {got[:16]}…, "
            f"{file.stat().st_size} bytes, expected SHA-256 {digest[:16]}…"
        )
