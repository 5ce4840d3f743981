"""The optimizer's state at the boundaries of stages: kept, dropped, copied, or put by on disk."""

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


class Carried:
    """The optimizer's state between the stages of a run, and that of what rests meanwhile.

    State is held by the names of parameters in the stack of the last stage.

    Args:
        moments: what becomes of it.
        stages, shapes: of the run.
        folder: where the state of what rests is kept; None keeps it in memory.
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
        self._resting = Resting(folder)

    def begin(self, index: int, active: Collection[str]) -> State:
        """The state that active parameters of stage `index` (from 0) begin with; some have none.

        What is given out is not kept here: from then on it is the trainer's.
        """
        stage, shape = self._stages[index], self._shapes[index]
        moved, copied = shape.old, copied_from(stage, shape)
        origin = {new: old for old, new in enumerate(moved)}
        live, self._live = self._live, {}
        self._resting.rename(moved)
        if stage.head in ("reset", "tied"):
            # Its weights are other ones now.
            live = {name: state for name, state in live.items() if not name.startswith(_HEAD)}
            self._resting.forget(_HEAD)
        begun = self._resting.take([name for name in active if name in self._resting])
        for name in active:
            block = block_of(name)
            if block in copied:
                original = live.get(_in_block(name, copied[block]))
                if self._moments.copied == "copy" and original is not None:
                    begun[name] = {key: value.clone() for key, value in original.items()}
            elif self._moments.trained_on == "keep" and (block is None or block in origin):
                before = name if block is None else _in_block(name, origin[block])
                if before in live:
                    begun[name] = live[before]
        return begun

    def end(self, index: int, state: State) -> None:
        """Take over what stage `index` leaves."""
        self._live, rests = {}, {}
        for name, tensors in state.items():
            if name.endswith((".lora_A", ".lora_B")):
                continue
            if self._is_wanted_next(name, index):
                self._live[name] = tensors
            if not self._trains_in(index + 1, name) and self._trains_after(index + 1, name):
                rests[name] = tensors
        if rests and self._moments.thawed == "restore":
            self._resting.put(f"stage-{index + 1}", rests)

    def _is_wanted_next(self, name: str, index: int) -> bool:
        if index + 1 == len(self._stages):
            return False
        if self._moments.trained_on == "keep" and self._trains_in(index + 1, name):
            return True
        copied = copied_from(self._stages[index + 1], self._shapes[index + 1])
        return self._moments.copied == "copy" and block_of(name) in copied.values()

    def _trains_in(self, index: int, name: str) -> bool:
        """Whether a parameter, named as in the stack before stage `index`, trains in it."""
        if index >= len(self._shapes):
            return False
        shape = self._shapes[index]
        block = block_of(name)
        if block is not None:
            return shape.old[block] in shape.trained
        part = name.partition(".")[0]
        return {"embedding": shape.table, "final_norm": shape.final_norm}.get(part, shape.head)

    def _trains_after(self, index: int, name: str) -> bool:
        for later in range(index, len(self._shapes)):
            if self._trains_in(later, name):
                return True
            block = block_of(name)
            if block is not None:
                name = _in_block(name, self._shapes[later].old[block])
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"live": self._live, "resting": self._resting.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Put back what `state_dict` returned; None of a run from before there was a choice."""
        if state is not None:
            self._live = dict(state["live"])
            self._resting.load_state_dict(state["resting"])


class Resting:
    """The optimizer's state of parameters that rest: a file for each stage that put some by.

    Args:
        folder: of the files; None keeps tensors in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # Parameter → the file and the name that it has there; file → its SHA-256.
        self._places: dict[str, tuple[str, str]] = {}
        self._digests: dict[str, str] = {}
        self._memory: dict[str, State] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def put(self, file: str, state: State) -> None:
        """Put by the state of some parameters."""
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

    def take(self, names: Iterable[str]) -> State:
        """The state of parameters that rest no longer.

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
                f"{path}: the optimizer's state of blocks that rested is "
                f"{'damaged' if path.is_file() else 'missing'}; put the file back from a copy of "
                "the run's folder, or start the run anew in another"
            )
        state: State = {}
        for key, value in load_file(path).items():
            name, _, part = key.rpartition("/")
            state.setdefault(name, {})[part] = value
        return state

    def forget(self, prefix: str) -> None:
        """Drop the state of parameters whose names begin so."""
        self._places = {n: place for n, place in self._places.items() if not n.startswith(prefix)}

    def rename(self, moved: Sequence[int]) -> None:
        """Follow blocks to their indices, by the old ones, in a stack that has grown."""
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
    """The index of the block that a parameter is in; None of the others."""
    part, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if part == "blocks" else None


def _in_block(name: str, index: int) -> str:
    """The parameter of that name in another block."""
    return f"blocks.{index}.{name.split('.', 2)[2]}"
