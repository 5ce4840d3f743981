"""Convert a nested state to JSON plus named tensors, and back.

Dicts, lists and tuples can be nested; leaves are torch tensors, numpy arrays and scalars, and the
JSON values None, bool, int, float and str. In the JSON, an object with a single key that starts
with "$" represents a type that JSON does not have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastgrow.errors import CheckpointError


def flatten_state(state: Any, name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a state into a JSON tree and its tensors (contiguous, on the CPU, none shared).

    Args:
        state: the nested state.
        name: name of the state in error messages.

    Raises:
        TypeError: a leaf is of a type that cannot be stored.
    """
    flattener = _Flattener()
    tree = flattener.flatten(state, name, "")
    return tree, flattener.tensors


class _Flattener:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._storages: set[int] = set()

    def flatten(self, value: Any, where: str, path: str) -> Any:
        """Return the JSON tree of `value`; `where` is for messages, `path` names its tensors."""
        if value is None or isinstance(value, bool | str) or type(value) in (int, float):
            return value
        if isinstance(value, torch.Tensor):
            return {"$tensor": self._store(value.detach(), path)}
        if isinstance(value, np.ndarray | np.generic):
            kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
            try:
                # from_numpy requires writable memory in native byte order.
                tensor = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
            except TypeError:
                raise TypeError(f"{where}: numpy dtype {value.dtype} cannot be stored") from None
            return {kind: self._store(tensor, path)}
        if isinstance(value, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {
                    key: self.flatten(item, f"{where}[{key!r}]", f"{path}/{_escape(key)}")
                    for key, item in value.items()
                }
            pairs = [part for key, item in value.items() for part in (key, item)]
            return {"$items": self.flatten(pairs, where, path)}
        if isinstance(value, list | tuple):
            items = [
                self.flatten(item, f"{where}[{index}]", f"{path}/{index}")
                for index, item in enumerate(value)
            ]
            return items if isinstance(value, list) else {"$tuple": items}
        raise TypeError(
            f"{where}: {type(value).__module__}.{type(value).__name__} cannot be stored in a "
            "checkpoint; expected dicts, lists, tuples, tensors, numpy arrays or JSON values"
        )

    def _store(self, tensor: torch.Tensor, path: str) -> str:
        key = path or "/"
        stored = tensor.to("cpu").contiguous()
        # safetensors does not store shared memory, and a view would save its whole storage: tensors
        # of both kinds are copied.
        storage = stored.untyped_storage()
        if storage.data_ptr() in self._storages or storage.nbytes() != stored.nbytes:
            stored = stored.clone()
        self._storages.add(stored.untyped_storage().data_ptr())
        self.tensors[key] = stored
        return key


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def unflatten_state(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Inverse of `flatten_state`.

    Raises:
        CheckpointError: the tree refers to a tensor that is missing.
    """
    if isinstance(tree, list):
        return [unflatten_state(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tuple" in tree:
        return tuple(unflatten_state(item, tensors) for item in tree["$tuple"])
    if "$items" in tree:
        pairs = unflatten_state(tree["$items"], tensors)
        return dict(zip(pairs[::2], pairs[1::2], strict=True))
    for kind in ("$tensor", "$array", "$scalar"):
        if kind in tree:
            key = tree[kind]
            if key not in tensors:
                raise CheckpointError(f"the state refers to the tensor {key!r}, which is missing")
            tensor = tensors[key]
            if kind == "$tensor":
                return tensor
            return tensor.numpy() if kind == "$array" else tensor.numpy()[()]
    return {key: unflatten_state(item, tensors) for key, item in tree.items()}
