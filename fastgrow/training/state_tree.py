"""A nested state as JSON plus a flat set of named tensors, and back.

Dicts, lists and tuples nest; leaves are torch tensors, numpy arrays and scalars, and the JSON
values None, bool, int, float and str. In the JSON, an object with one key that starts with "$"
stands for what JSON has no word for.
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
        name: how an error message calls it.

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
        """The JSON tree of `value`; `where` is for messages, `path` names its tensors."""
        if value is None or isinstance(value, bool | str) or type(value) in (int, float):
            return value
        if isinstance(value, torch.Tensor):
            return {"$tensor": self._store(value.detach(), path)}
        if isinstance(value, np.ndarray | np.generic):
            kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
            try:
                # from_numpy wants memory that is writable and in this machine's byte order.
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
            "checkpoint; a state is made of dicts, lists, tuples, tensors, numpy arrays and JSON "
            "values"
        )

    def _store(self, tensor: torch.Tensor, path: str) -> str:
        key = path or "/"
        stored = tensor.to("cpu").contiguous()
        # A view would drag its whole storage along, and memory that appears twice may be written
        # once only: either gets memory of its own.
        storage = stored.untyped_storage()
        if storage.data_ptr() in self._storages or storage.nbytes() != stored.nbytes:
            stored = stored.clone()
        self._storages.add(stored.untyped_storage().data_ptr())
        self.tensors[key] = stored
        return key


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def unflatten_state(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Put together what `flatten_state` took apart.

    Raises:
        CheckpointError: the tree names a tensor that is not there.
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
                raise CheckpointError(f"the state names the tensor {key!r}, which is not stored")
            tensor = tensors[key]
            if kind == "$tensor":
                return tensor
            return tensor.numpy() if kind == "$array" else tensor.numpy()[()]
    return {key: unflatten_state(item, tensors) for key, item in tree.items()}
