"""Checkpoints of any stateful object, without pickle.

A checkpoint is a folder `step-00000123/`. For each named state it contains `name.json` (structure
and plain values) and `name.safetensors` (tensors); `manifest.json` has the size and SHA-256 of each
file. The folder is renamed to its final name only after it is complete and flushed to disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fastgrow._files import atomic_folder, read_json, sha256_file
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.training.state_tree import flatten_state, unflatten_state

_FOLDER = re.compile(r"step-(\d{8,})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MANIFEST = "manifest.json"
_FORMAT = 1


class Checkpointer:
    """Write, find and load the checkpoints of a run.

    Args:
        folder: folder of the checkpoints; created if missing.
        keep: number of intact checkpoints to keep.

    Raises:
        ConfigError: keep is less than 1.
        CheckpointError: the folder is not writable. This is checked here so that a run fails at its
            start and not at its first checkpoint.
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._known_good: set[Path] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".probe."):
                pass
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: checkpoints cannot be written there ({error.strerror})"
            ) from error

    def save(self, step: int, states: Mapping[str, Any]) -> Path:
        """Write a checkpoint and delete the oldest ones beyond `keep`.

        Args:
            step: step number of the checkpoint; an existing checkpoint of this step is replaced.
            states: objects with `state_dict()`, or states, by name. A state consists of nested
                dicts, lists and tuples of tensors, numpy arrays and JSON values.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: the checkpoint could not be written (disk full, …); earlier checkpoints
                are unchanged.
            TypeError: a state contains a value that is not a tensor, an array or a JSON value.
        """
        path = self.folder / f"step-{step:08d}"
        # All states are checked before anything is written.
        flat = {}
        for name, value in states.items():
            if not _NAME.fullmatch(name) or f"{name}.json" == _MANIFEST:
                raise ConfigError(
                    f"{name!r} cannot name a state, because it is used as a file name: expected "
                    'letters, digits, ".", "-" and "_", and not "manifest"'
                )
            state = value.state_dict() if hasattr(value, "state_dict") else value
            flat[name] = flatten_state(state, name)
        self._remove_leftovers()
        try:
            with atomic_folder(path, owned=_files_of(path)) as folder:
                for name, (tree, tensors) in flat.items():
                    save_file(tensors, folder / f"{name}.safetensors")
                    _dump(folder / f"{name}.json", tree)
                files = {
                    file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
                    for file in sorted(folder.iterdir())
                }
                manifest = {"format": _FORMAT, "step": step, "states": list(flat), "files": files}
                _dump(folder / _MANIFEST, {**manifest, "sha256": _manifest_hash(manifest)})
        except OSError as error:
            previous = next(self._newest_first(), None)
            kept = f"{previous} is unchanged" if previous else "there is no earlier checkpoint"
            raise CheckpointError(
                f"{path}: the checkpoint could not be written ({error.strerror or error}); {kept}"
            ) from error
        self._known_good.add(path)
        self._prune()
        return path

    def latest(self) -> Path | None:
        """Return the latest intact checkpoint; None if there is none.

        Damaged checkpoints are skipped with a warning that names the damaged file.
        """
        for path in self._newest_first():
            try:
                verify_checkpoint(path)
            except CheckpointError as error:
                warnings.warn(
                    f"{error}; using the checkpoint before it", RuntimeWarning, stacklevel=2
                )
            else:
                self._known_good.add(path)
                return path
        return None

    def load(self, path: Path | str | None = None) -> dict[str, Any]:
        """Load a checkpoint.

        Args:
            path: folder of the checkpoint; None for the latest intact one.

        Returns:
            The saved states by name. Tensors are on the CPU.

        Raises:
            CheckpointError: there is no intact checkpoint, or that at `path` is damaged.
        """
        if path is None:
            path = self.latest()
            if path is None:
                raise CheckpointError(f"{self.folder}: there is no intact checkpoint")
        return load_checkpoint(path)

    def _newest_first(self) -> Iterator[Path]:
        steps = {
            int(match[1]): entry
            for entry in self.folder.iterdir()
            if (match := _FOLDER.fullmatch(entry.name)) and entry.is_dir()
        }
        for step in sorted(steps, reverse=True):
            yield steps[step]

    def _prune(self) -> None:
        good = 0
        for path in self._newest_first():
            if good >= self.keep:
                shutil.rmtree(path, ignore_errors=True)
                self._known_good.discard(path)
            elif path in self._known_good or _is_good(path):
                self._known_good.add(path)
                good += 1

    def _remove_leftovers(self) -> None:
        """Remove unfinished folders of a process that was killed while it wrote a checkpoint."""
        for entry in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(entry, ignore_errors=True)


def verify_checkpoint(path: Path | str) -> dict[str, Any]:
    """Compare every file of a checkpoint with its manifest, and return the manifest.

    Raises:
        CheckpointError: a file is missing, truncated or changed; the message names it.
    """
    path = Path(path)
    manifest = read_json(path / _MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path / _MANIFEST}: is not the manifest of a checkpoint")
    written = manifest.pop("sha256", None)
    if written != _manifest_hash(manifest):
        raise CheckpointError(
            f"{path / _MANIFEST}: is damaged (SHA-256 {_manifest_hash(manifest)}, expected "
            f"{written})"
        )
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path / _MANIFEST}: has format {manifest.get('format')!r}, "
            f"this version of fastgrow reads format {_FORMAT}"
        )
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing from the checkpoint")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{file}: has {size} bytes, expected {expected['bytes']}")
        digest = sha256_file(file)
        if digest != expected["sha256"]:
            raise CheckpointError(
                f"{file}: is damaged (SHA-256 {digest}, expected {expected['sha256']})"
            )
    return manifest


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Verify and load a checkpoint folder.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    path = Path(path)
    manifest = verify_checkpoint(path)
    return {
        name: unflatten_state(
            read_json(path / f"{name}.json"), load_file(path / f"{name}.safetensors")
        )
        for name in manifest["states"]
    }


def _manifest_hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _is_good(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _files_of(path: Path) -> list[str]:
    """Return the names of the files in `path` that may belong to a checkpoint."""
    if not path.is_dir():
        return []
    return [file.name for file in path.iterdir() if file.suffix in (".json", ".safetensors")]


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
