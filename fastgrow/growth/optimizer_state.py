"""The optimizer state at the boundaries of stages: kept, dropped, copied, or saved to disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fastgrow import _files
from fastgrow.errors import CheckpointError
from fastgrow.growth.active import StageShape, copied_from
from fastgrow.growth.moments import Moments
from fastgrow.growth.stage import Stage

State = dict[str, dict[str, Any]]
_HEAD = "lm_head."


class OptimizerStates:
    """The optimizer state between the stages of a run, including that of frozen parameters.

    States are held by the names that their parameters had in the stage that ended last.

    Args:
        moments: what happens to the states at a boundary.
        stages, shapes: the stages of the run and their shapes.
        folder: folder for the states of frozen parameters; None keeps them in memory.
    """

    def __init__(
        self,
        moments: Moments,
        stages: Sequence[Stage],
        shapes: Sequence[StageShape],
        folder: Path | None,
    ) -> None:
        self._moments = moments
        self._stages, self._shapes = stages, shapes
        self._live: State = {}
        self._frozen = FrozenStates(folder)

    def start_stage(self, index: int, active: Collection[str]) -> State:
        """Return the states that active parameters of stage `index` (from 0) start with.

        Some parameters have none. The returned states are removed here; the trainer owns them.
        """
        stage, shape = self._stages[index], self._shapes[index]
        moved, copied = shape.old, copied_from(stage, shape)
        origin = {new: old for old, new in enumerate(moved)}
        live, self._live = self._live, {}
        self._frozen.rename(moved)
        if stage.head in ("reset", "tied"):
            # The head's weights have been replaced.
            live = {name: state for name, state in live.items() if not name.startswith(_HEAD)}
            self._frozen.forget(_HEAD)
        start = self._frozen.pop([name for name in active if name in self._frozen])
        for name in active:
            block = block_of(name)
            if block in copied:
                original = live.get(_in_block(name, copied[block]))
                if self._moments.copied == "copy" and original is not None:
                    start[name] = {key: value.clone() for key, value in original.items()}
            elif self._moments.trained_on == "keep" and (block is None or block in origin):
                before = name if block is None else _in_block(name, origin[block])
                if before in live:
                    start[name] = live[before]
        return start

    def end_stage(self, index: int, state: State) -> None:
        """Keep the states of stage `index` that a later stage needs."""
        self._live, frozen = {}, {}
        for name, tensors in state.items():
            if name.endswith((".lora_A", ".lora_B")):
                continue
            if self._is_needed_next(name, index):
                self._live[name] = tensors
            if not self._is_active_in(index + 1, name) and self._is_active_from(index + 1, name):
                frozen[name] = tensors
        if frozen and self._moments.thawed == "restore":
            self._frozen.save(f"stage-{index + 1}", frozen)

    def _is_needed_next(self, name: str, index: int) -> bool:
        if index + 1 == len(self._stages):
            return False
        if self._moments.trained_on == "keep" and self._is_active_in(index + 1, name):
            return True
        copied = copied_from(self._stages[index + 1], self._shapes[index + 1])
        return self._moments.copied == "copy" and block_of(name) in copied.values()

    def _is_active_in(self, index: int, name: str) -> bool:
        """Whether a parameter, named as in the stack before stage `index`, is active in it."""
        if index >= len(self._shapes):
            return False
        shape = self._shapes[index]
        block = block_of(name)
        if block is not None:
            return shape.old[block] in shape.trained
        part = name.partition(".")[0]
        return {"embedding": shape.table, "final_norm": shape.final_norm}.get(part, shape.head)

    def _is_active_from(self, index: int, name: str) -> bool:
        """Whether the same parameter is active in stage `index` or in a later one."""
        for later in range(index, len(self._shapes)):
            if self._is_active_in(later, name):
                return True
            block = block_of(name)
            if block is not None:
                name = _in_block(name, self._shapes[later].old[block])
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the states for resuming; the keys are those of checkpoints."""
        return {"live": self._live, "resting": self._frozen.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` returned; checkpoints of older versions have None."""
        if state is not None:
            self._live = dict(state["live"])
            self._frozen.load_state_dict(state["resting"])


class FrozenStates:
    """The optimizer state of frozen parameters: a file for each stage after which some are frozen.

    Args:
        folder: folder of the files; None keeps tensors in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # Parameter → its file and its name in that file; file → its SHA-256.
        self._places: dict[str, tuple[str, str]] = {}
        self._digests: dict[str, str] = {}
        self._memory: dict[str, State] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def save(self, file: str, state: State) -> None:
        """Save the states of some parameters."""
        if self._folder is None:
            self._memory[file] = {n: {k: v.cpu() for k, v in t.items()} for n, t in state.items()}
        else:
            tensors = {
                f"{name}/{key}": value.detach().cpu().contiguous()
                for name, parts in state.items()
                for key, value in parts.items()
            }
            with _files.atomic_file(self._path(file)) as temporary:
                save_file(tensors, temporary)
            self._digests[file] = _files.sha256_file(self._path(file))
        self._places |= {name: (file, name) for name in state}

    def pop(self, names: Iterable[str]) -> State:
        """Remove and return the states of parameters that are active again.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        by_file: dict[str, dict[str, str]] = {}
        for name in names:
            file, there = self._places.pop(name)
            by_file.setdefault(file, {})[there] = name
        taken: State = {}
        for file, renamed in by_file.items():
            state = self._memory[file] if self._folder is None else self._read(file)
            taken |= {name: state[there] for there, name in renamed.items()}
        return taken

    def _read(self, file: str) -> State:
        path = self._path(file)
        if not path.is_file() or _files.sha256_file(path) != self._digests[file]:
            raise CheckpointError(
                f"{path}: the optimizer state of frozen blocks is "
                f"{'damaged' if path.is_file() else 'missing'}; restore the file from a copy of "
                "the run's folder, or start the run again in another folder"
            )
        state: State = {}
        for key, value in load_file(path).items():
            name, _, part = key.rpartition("/")
            state.setdefault(name, {})[part] = value
        return state

    def forget(self, prefix: str) -> None:
        """Drop the states of parameters whose names start with `prefix`."""
        self._places = {n: place for n, place in self._places.items() if not n.startswith(prefix)}

    def rename(self, moved: Sequence[int]) -> None:
        """Rename parameters after blocks were inserted.

        Args:
            moved: new index of each old block.
        """
        self._places = {
            name if (block := block_of(name)) is None else _in_block(name, moved[block]): place
            for name, place in self._places.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "places": {name: list(place) for name, place in self._places.items()},
            "digests": self._digests,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._places = {name: (file, there) for name, (file, there) in state["places"].items()}
        self._digests = dict(state["digests"])

    def _path(self, file: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{file}.safetensors"


def block_of(name: str) -> int | None:
    """Return the index of the block that a parameter is in; None if it is in no block."""
    part, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if part == "blocks" else None


def _in_block(name: str, index: int) -> str:
    """Return the name that a block's parameter has in the block with this index."""
    return f"blocks.{index}.{name.split('.', 2)[2]}"
