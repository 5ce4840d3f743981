"""The log of a run: progress line, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from fastgrow.errors import CheckpointError
from fastgrow.training.event_file import EventFile

_PLAIN_SECONDS = 15.0
_LIVE_SECONDS = 0.1


class RunLog:
    """The log of a run, which may consist of several stages.

    On a terminal, one progress line is updated in place; elsewhere a line is printed at most every
    15 seconds. Rows are written to `metrics.jsonl` and, if TensorBoard is installed, to an event
    file.

    A row is one JSON object: "step" counts within a stage and "global_step" over the whole run;
    each row also has the stage's labels ("stage", "depth", …). The length of metrics.jsonl is part
    of `state_dict`. Loading a state truncates the file to that length, so that the file of a
    resumed run has each step exactly once.

    Args:
        folder: folder of metrics.jsonl; None to write no files.
        stream: stream of the progress lines; None for standard error.
        quiet: whether to print nothing.
        tensorboard: whether to write event files if TensorBoard is installed.

    Raises:
        CheckpointError: the folder is not writable. Methods that write a row raise it if the disk
            is full.
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
        self._live = not quiet and self._stream.isatty()
        self._live_width = 0
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
        """Start a stage, or continue the current one if the labels are the same."""
        if dict(labels) != self._labels:
            self._labels = dict(labels)
            self._base = self._global_step
            self._latest = {}

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row of metrics at a step of the stage."""
        self._global_step = self._base + step
        self._write({"step": step, "global_step": self._global_step, **self._labels, **values})
        for name, value in values.items():
            self._scalar(name, value)

    def event(self, name: str, text: str | None = None, **values: Any) -> None:
        """Write a row for an event ("boundary", "resumed", …), and print `text` if given."""
        self._write({"event": name, "global_step": self._global_step, **self._labels, **values})
        if text is not None:
            self.print(text)

    def progress(self, step: int, steps: int, values: Mapping[str, Any], *, seconds: float) -> None:
        """Show the progress of the stage.

        Args:
            step: number of finished steps.
            steps: total number of steps.
            values: latest values; earlier values of other names are still shown.
            seconds: expected time to the end, in seconds.
        """
        self.note(values)
        now = time.monotonic()
        due = _LIVE_SECONDS if self._live else _PLAIN_SECONDS
        if self._quiet or (now - self._last_line < due and step < steps):
            return
        self._last_line = now
        width = shutil.get_terminal_size().columns - 1 if self._live else None
        line = format_line(step, steps, self._labels, self._latest, seconds, width)
        if self._live:
            self._rewrite(line[:width])
        else:
            self.print(line)

    def note(self, values: Mapping[str, Any]) -> None:
        """Store values for the next progress line."""
        self._latest.update(values)

    def print(self, text: str) -> None:
        """Print a permanent line."""
        if self._quiet:
            return
        self.clear_line()
        self._stream.write(text + "\n")
        self._stream.flush()

    def clear_line(self) -> None:
        """Erase the progress line, so that other output starts on an empty line."""
        if self._live_width:
            self._stream.write("\r" + " " * self._live_width + "\r")
            self._stream.flush()
            self._live_width = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the length of metrics.jsonl and the current position in the run."""
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
        """Restore `state`; rows written after it are removed from metrics.jsonl."""
        self._base = int(state["base"])
        self._global_step = int(state["global_step"])
        self._labels = dict(state["labels"])
        if self._file is not None:
            self._file.flush()
            # A shorter file is not the one the state was saved with (it was moved): keep all of it.
            if self._metrics_path.stat().st_size > state["bytes"]:
                self._file.truncate(state["bytes"])

    def close(self) -> None:
        """Flush and close the files."""
        self.clear_line()
        # Rows are flushed when written; only a row that could not be written is still buffered.
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

    def _rewrite(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._live_width))
        self._stream.flush()
        self._live_width = len(line)

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
    width: int | None = None,
) -> str:
    """Return the progress line: labels, step, loss, bits per character, speed, remaining time.

    If it is wider than `width`, the least important parts are left out.
    """
    parts = {name: f"{name} {label}" for name, label in labels.items() if name not in _COUNTS}
    if "active_parameters" in labels:
        active = format_count(labels["active_parameters"])
        parts["active"] = f"{active}/{format_count(labels['total_parameters'])} active"
    parts["step"] = f"step {step:,}/{steps:,}"
    for key, template in _SHOWN.items():
        if key in values:
            parts[key] = template.format(values[key])
    if "tokens_per_second" in values:
        parts["speed"] = f"{format_count(values['tokens_per_second'])} tok/s"
    parts["eta"] = f"ETA {format_seconds(seconds)}"
    line = " · ".join(parts.values())
    for name in _DROPPABLE:
        if width is None or len(line) <= width:
            return line
        parts.pop(name, None)
        line = " · ".join(parts.values())
    if width is not None and len(line) > width:
        line = line.replace(" · ", " ").replace(" active ", " ")
    return line


_COUNTS = frozenset({"active_parameters", "total_parameters"})
_DROPPABLE = ("run", "step", "validation_bits_per_character")
_SHOWN = {
    "loss": "loss {:.3f}",
    "bits_per_character": "{:.3f} bits/char",
    "validation_bits_per_character": "val {:.3f}",
}


def format_count(value: float) -> str:
    """Format a count with three digits and a unit, such as 950, 12.6K or 105M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """Format a duration, such as 0:07, 12:30 or 3:02:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
