"""The log of a run: progress on the terminal, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastgrow import _terminal
from fastgrow.errors import CheckpointError
from fastgrow.training.event_file import EventFile

if TYPE_CHECKING:
    from rich.live import Live

_PLAIN_SECONDS = 15.0
_LIVE_SECONDS = 0.1


class RunLog:
    """The log of one run, which may consist of several trainings one after the other.

    On a terminal, a progress line is rewritten in place. If the stream is not a terminal, a plain
    line is written at most every 15 seconds. Rows of metrics are written to `metrics.jsonl` and, if
    TensorBoard is installed, to an event file.

    A row is one JSON object. "step" counts the steps of a training, "global_step" those of the run,
    and the labels of the training ("stage", "depth", …) are in every row. The length of the file is
    part of `state_dict`: loading a state removes the rows that were written after it, so the file
    of a resumed run has each step once.

    Args:
        folder: folder of metrics.jsonl; None writes no files.
        stream: where progress lines are written; None selects standard error.
        quiet: write no progress lines.
        tensorboard: also write event files, if TensorBoard is installed.

    Raises:
        CheckpointError: the folder cannot be written. Methods that write a row also raise it, for
            example if the disk is full.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        stream: TextIO | None = None,
        quiet: bool = False,
        tensorboard: bool = True,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._rewrites = _terminal.can_rewrite(self._stream)
        self._live: Live | None = None
        self._last_line = 0.0
        self._labels: dict[str, Any] = {}
        self._base = 0
        self._global_step = 0
        self._latest: dict[str, Any] = {}
        self._file: TextIO | None = None
        self._tensorboard = tensorboard
        self._events: EventFile | None = None
        if self.folder is not None:
            with self._errors_naming(self._metrics_path):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = self._metrics_path.open("a", encoding="utf-8")

    @property
    def _metrics_path(self) -> Path:
        assert self.folder is not None
        return self.folder / "metrics.jsonl"

    def begin(self, labels: Mapping[str, Any]) -> None:
        """Start a training, or continue the last one if it has the same labels."""
        if dict(labels) != self._labels:
            self._labels = dict(labels)
            self._base = self._global_step
            self._latest = {}

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row of metrics for a step of the training."""
        self._global_step = self._base + step
        self._write({"step": step, "global_step": self._global_step, **self._labels, **values})
        for name, value in values.items():
            self._scalar(name, value)

    def event(self, name: str, text: str | None = None, **values: Any) -> None:
        """Write a row for an event ("boundary", "resumed", …), and a line of text if given."""
        self._write({"event": name, "global_step": self._global_step, **self._labels, **values})
        if text is not None:
            self.print(text)

    def progress(self, step: int, steps: int, values: Mapping[str, Any], *, seconds: float) -> None:
        """Show the progress of the training.

        Args:
            step: number of steps done.
            steps: number of all steps of the training.
            values: latest values. Values from earlier calls that are not among them stay shown.
            seconds: estimated remaining time in seconds.
        """
        self.note(values)
        now = time.monotonic()
        due = _LIVE_SECONDS if self._rewrites else _PLAIN_SECONDS
        if self._quiet or (now - self._last_line < due and step < steps):
            return
        self._last_line = now
        line = format_line(step, steps, self._labels, self._latest, seconds)
        if not self._rewrites:
            self.print(line)
            return
        if self._live is None:
            self._live = _terminal.live_line(self._stream)
            self._live.start()
        self._live.update(line, refresh=True)

    def note(self, values: Mapping[str, Any]) -> None:
        """Remember values for the next progress line."""
        self._latest.update(values)

    def print(self, text: str) -> None:
        """Write a line that is not overwritten by later progress."""
        if self._quiet:
            return
        self.clear_line()
        self._stream.write(text + "\n")
        self._stream.flush()

    def clear_line(self) -> None:
        """Remove the progress line, so that other output starts on an empty line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def state_dict(self) -> dict[str, Any]:
        """Return the length of metrics.jsonl, the labels, and the step of the run."""
        size = 0
        if self._file is not None:
            self._file.flush()
            size = self._metrics_path.stat().st_size
        return {
            "bytes": size,
            "base": self._base,
            "global_step": self._global_step,
            "labels": dict(self._labels),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state` and remove the rows that were written after it."""
        self._base = int(state["base"])
        self._global_step = int(state["global_step"])
        self._labels = dict(state["labels"])
        if self._file is not None:
            self._file.flush()
            # The file is shorter if it was moved away or the folder is new: keep all of it then.
            if self._metrics_path.stat().st_size > state["bytes"]:
                self._file.truncate(state["bytes"])

    def close(self) -> None:
        """Flush and close the files."""
        self.clear_line()
        # Rows are flushed when they are written. Only a row that failed to be written is left here.
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            with self._errors_naming(self._metrics_path):
                self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
                self._file.flush()

    @contextlib.contextmanager
    def _errors_naming(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error

    def _scalar(self, name: str, value: Any) -> None:
        if self.folder is None or not self._tensorboard or isinstance(value, bool | str):
            return
        with self._errors_naming(self.folder / "events.out.tfevents…"):
            if self._events is None:
                try:
                    self._events = EventFile(self.folder, self._global_step)
                except ImportError:
                    self._tensorboard = False
                    return
            self._events.scalar(name, value, self._global_step)


def format_line(
    step: int,
    steps: int,
    labels: Mapping[str, Any],
    values: Mapping[str, Any],
    seconds: float,
) -> str:
    """Return labels, progress, loss, bits per character, speed and remaining time as one line."""
    parts = [f"{name} {label}" for name, label in labels.items() if name not in _COUNTS]
    if "active_parameters" in labels:
        active = format_count(labels["active_parameters"])
        parts.append(f"{active}/{format_count(labels['total_parameters'])} active")
    parts.append(f"step {step:,}/{steps:,}")
    parts += [form.format(values[name]) for name, form in _SHOWN.items() if name in values]
    if "tokens_per_second" in values:
        parts.append(f"{format_count(values['tokens_per_second'])} tok/s")
    return " · ".join([*parts, f"ETA {format_seconds(seconds)}"])


_COUNTS = frozenset({"active_parameters", "total_parameters"})
_SHOWN = {
    "loss": "loss {:.3f}",
    "bits_per_character": "{:.3f} bits/char",
    "validation_bits_per_character": "val {:.3f} bits/char",
}


def format_count(value: float) -> str:
    """Format a number with three digits and a unit: 950, 12.6K, 105M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """Format a time as 0:07, 12:30 or 3:02:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
