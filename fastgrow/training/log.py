"""What a run tells while it runs: one live line, metrics.jsonl, TensorBoard."""

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
    """The log of one run, which may consist of several trainings one after the other.

    On a terminal one line is rewritten in place; elsewhere a plain line appears at most every 15
    seconds. Rows go to `metrics.jsonl` and, where TensorBoard is installed, to an event file.

    A row is one JSON object: "step" counts within a training, "global_step" over the run, and the
    training's labels ("stage", "depth", …) are in every row. The file's length is part of
    `state_dict`: loading a state cuts off the rows that were written after it, so a resumed run's
    file holds each step once, as if nothing had happened.

    Args:
        folder: of metrics.jsonl; None writes no files.
        stream: of the lines; None takes standard error.
        quiet: write no lines.
        tensorboard: write event files too, if the package is there.

    Raises:
        CheckpointError: the folder cannot be written; later, from any method that writes a row, the
            disk is full.
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
        """A training begins, or goes on if the labels are those of the one before."""
        if dict(labels) != self._labels:
            self._labels = dict(labels)
            self._base = self._global_step
            self._latest = {}

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row of metrics at a step of the training."""
        self._global_step = self._base + step
        self._write({"step": step, "global_step": self._global_step, **self._labels, **values})
        for name, value in values.items():
            self._scalar(name, value)

    def event(self, name: str, text: str | None = None, **values: Any) -> None:
        """Write a row that is not of a step ("boundary", "resumed", …), and a line of text."""
        self._write({"event": name, "global_step": self._global_step, **self._labels, **values})
        if text is not None:
            self.print(text)

    def progress(self, step: int, steps: int, values: Mapping[str, Any], *, seconds: float) -> None:
        """Show where the training stands.

        Args:
            step: steps done.
            steps: steps in all.
            values: newest values; earlier ones that are not among them stay shown.
            seconds: expected time to the end.
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
        """Remember values for the next progress line."""
        self._latest.update(values)

    def print(self, text: str) -> None:
        """Write a line that stays."""
        if self._quiet:
            return
        self.clear_line()
        self._stream.write(text + "\n")
        self._stream.flush()

    def clear_line(self) -> None:
        """Take the live line away, so that other output starts on a clean line."""
        if self._live_width:
            self._stream.write("\r" + " " * self._live_width + "\r")
            self._stream.flush()
            self._live_width = 0

    def state_dict(self) -> dict[str, Any]:
        """How much has been written, and where in the run that was."""
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
        """Go on from `state`; rows written after it are dropped from metrics.jsonl."""
        self._base = int(state["base"])
        self._global_step = int(state["global_step"])
        self._labels = dict(state["labels"])
        if self._file is not None:
            self._file.flush()
            # The file may be another, shorter one (moved away, a new folder): nothing is cut then.
            if self._metrics_path.stat().st_size > state["bytes"]:
                self._file.truncate(state["bytes"])

    def close(self) -> None:
        """Flush and close the files."""
        self.clear_line()
        # Rows are flushed as they are written: what is left here is a row that could not be.
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
    """One line: labels, progress, loss, bits per character, speed, time to go.

    Where it is wider than `width`, what matters least is left out.
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
    for name in _SPARED:
        if width is None or len(line) <= width:
            return line
        parts.pop(name, None)
        line = " · ".join(parts.values())
    if width is not None and len(line) > width:
        line = line.replace(" · ", " ").replace(" active ", " ")
    return line


_COUNTS = frozenset({"active_parameters", "total_parameters"})
_SPARED = ("run", "step", "validation_bits_per_character")
_SHOWN = {
    "loss": "loss {:.3f}",
    "bits_per_character": "{:.3f} bits/char",
    "validation_bits_per_character": "val {:.3f}",
}


def format_count(value: float) -> str:
    """Three digits and a unit: 950, 12.6K, 105M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """0:07, 12:30 or 3:02:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
