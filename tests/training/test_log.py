"""The log of a run: progress line, plain lines, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from standin import LetterSubstrate, TinyModel, make_stream, random_text

from fastgrow.errors import CheckpointError
from fastgrow.training import Batches, RunLog, TrainConfig, Trainer
from fastgrow.training.log import format_count, format_line, format_seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


VALUES = {"loss": 2.0, "bits_per_character": 3.25, "tokens_per_second": 45_600.0}
LABELS = {"stage": 2, "depth": 3, "active_parameters": 105_000_000, "total_parameters": 180.5e6}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_progress_line_has_all_values() -> None:
    line = format_line(1200, 5000, LABELS, {**VALUES, "validation_bits_per_character": 3.5}, 754)
    assert line == (
        "stage 2 · depth 3 · 105M/180M active · step 1,200/5,000 · loss 2.000 · "
        "3.250 bits/char · val 3.500 bits/char · 45.6K tok/s · ETA 12:34"
    )


def test_counts_and_times_are_short() -> None:
    assert [format_count(n) for n in (7, 950, 12_600, 105e6, 2.3e9)] == [
        "7",
        "950",
        "12.6K",
        "105M",
        "2.3B",
    ]
    assert [format_seconds(s) for s in (0.4, 7, 750, 3725)] == ["0:00", "0:07", "12:30", "1:02:05"]


ERASE_LINE, UP, HIDE_CURSOR, SHOW_CURSOR = "\x1b[2K", "\x1b[1A", "\x1b[?25l", "\x1b[?25h"


def screen(output: str) -> list[str]:
    """The lines that a terminal shows after the output of a log."""
    lines, row = [""], 0
    for piece in re.split(r"(\n|\r|\x1b\[[?\d]*[A-Za-z])", output):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece == UP:
            row -= 1
        elif piece == ERASE_LINE:
            lines[row] = ""
        elif piece not in ("\r", HIDE_CURSOR, SHOW_CURSOR):
            lines[row] += piece
    return [line.rstrip() for line in lines]


def test_a_terminal_has_one_line_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("fastgrow.training.log._LIVE_SECONDS", 0.0)
    stream = Terminal()
    log = RunLog(stream=stream)
    log.begin(LABELS)
    log.progress(1, 9, VALUES, seconds=9)
    first = screen(stream.getvalue())
    assert first == [format_line(1, 9, LABELS, VALUES, 9)]
    log.progress(2, 9, {"loss": 1.0}, seconds=8)
    assert screen(stream.getvalue()) == [format_line(2, 9, LABELS, {**VALUES, "loss": 1.0}, 8)]
    log.print("a line that stays")
    assert [line for line in screen(stream.getvalue()) if line] == ["a line that stays"]
    assert stream.getvalue().count(HIDE_CURSOR) == stream.getvalue().count(SHOW_CURSOR) == 1


def test_a_narrow_terminal_shows_all_values_on_several_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("fastgrow.training.log._LIVE_SECONDS", 0.0)
    stream = Terminal()
    log = RunLog(stream=stream)
    log.begin(LABELS)
    for step in (1, 2):
        log.progress(step, 9, VALUES, seconds=9)
    lines = screen(stream.getvalue())
    assert " ".join(lines) == format_line(2, 9, LABELS, VALUES, 9)
    assert max(map(len, lines)) <= 50
    log.close()
    assert not any(screen(stream.getvalue()))


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    log = RunLog(stream=stream)
    log.progress(1, 1, VALUES, seconds=0)
    assert stream.getvalue() == format_line(1, 1, {}, VALUES, 0) + "\n"


def test_a_pipe_gets_a_plain_line_every_15_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("fastgrow.training.log.time.monotonic", lambda: clock)
    stream = io.StringIO()
    log = RunLog(stream=stream)
    log.begin({"stage": 1})
    for step in range(1, 101):
        clock += 1.0
        log.progress(step, 100, VALUES, seconds=100 - step)
    steps = [line.split("step ")[1].split("/")[0] for line in stream.getvalue().splitlines()]
    assert steps == ["1", "16", "31", "46", "61", "76", "91", "100"]
    assert "\r" not in stream.getvalue()


def test_a_quiet_log_writes_no_lines() -> None:
    stream = Terminal()
    log = RunLog(stream=stream, quiet=True)
    log.progress(1, 1, VALUES, seconds=0)
    log.event("boundary", "grown")
    assert stream.getvalue() == ""


def test_rows_carry_labels_and_the_step_of_the_run(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True, tensorboard=False) as log:
        log.begin({"stage": 1})
        log.row(10, {"loss": 3.0})
        log.event("boundary", depth=2)
        log.begin({"stage": 2})
        log.row(4, {"loss": 2.0})
        log.begin({"stage": 2})
        log.row(5, {"loss": 1.0})
    assert rows(tmp_path) == [
        {"step": 10, "global_step": 10, "stage": 1, "loss": 3.0},
        {"event": "boundary", "global_step": 10, "stage": 1, "depth": 2},
        {"step": 4, "global_step": 14, "stage": 2, "loss": 2.0},
        {"step": 5, "global_step": 15, "stage": 2, "loss": 1.0},
    ]


def test_resuming_drops_the_rows_after_the_checkpoint(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True, tensorboard=False) as log:
        log.begin({"stage": 1})
        log.row(1, {"loss": 3.0})
        log.begin({"stage": 2})
        log.row(1, {"loss": 2.0})
        state = json.loads(json.dumps(log.state_dict()))
        log.row(2, {"loss": 1.0})
        log.begin({"stage": 3})
        log.row(1, {"loss": 0.5})
    with RunLog(tmp_path, quiet=True, tensorboard=False) as log:
        log.load_state_dict(state)
        log.begin({"stage": 2})
        log.row(2, {"loss": 1.5})
    assert [
        (row["stage"], row["step"], row["global_step"], row["loss"]) for row in rows(tmp_path)
    ] == [
        (1, 1, 1, 3.0),
        (2, 1, 2, 2.0),
        (2, 2, 3, 1.5),
    ]


def test_rows_are_appended_to_a_file_shorter_than_the_state(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True, tensorboard=False) as log:
        log.row(1, {"loss": 3.0})
        log.load_state_dict({"bytes": 10_000, "base": 0, "global_step": 7, "labels": {}})
        log.row(8, {"loss": 2.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 8]


def test_the_error_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written"):
        RunLog(tmp_path / "file" / "run")


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True) as log:
        log.begin({"stage": 1})
        log.row(5, {"loss": 3.0, "note": "a text"})
        log.row(9, {"loss": 2.0})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 3.0), (9, 2.0)]
    assert events.Tags()["scalars"] == ["loss"]


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True) as log:
        log.row(5, {"loss": 3.0})
        state = log.state_dict()
        log.row(9, {"loss": 2.0})
        log.row(12, {"loss": 1.0})
    with RunLog(tmp_path, quiet=True) as log:
        log.load_state_dict(state)
        log.row(9, {"loss": 2.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 3.0), (9, 2.5)]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_the_error_names_a_file_on_a_full_disk(tmp_path: Path, tensorboard: bool) -> None:
    """In a subprocess with a limit on the size of files."""
    program = f"""
        import resource, signal
        from fastgrow.errors import CheckpointError
        from fastgrow.training import RunLog
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        with RunLog({str(tmp_path)!r}, quiet=True, tensorboard={tensorboard}) as log:
            values = {{f"v{{i}}": 1.0 for i in range(20)}} if {tensorboard} else {{"v": 1.0}}
            try:
                log.row(1, values)
                for step in range(2, 20):
                    log.row(step, values)
            except CheckpointError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith(str(tmp_path))
    assert ("tfevents" if tensorboard else "metrics.jsonl") in done.stdout
    assert "cannot be written (File too large)" in done.stdout


def test_metrics_are_logged_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with RunLog(tmp_path, quiet=True) as log:
        log.row(1, {"loss": 3.0})
    assert [row["loss"] for row in rows(tmp_path)] == [3.0]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_rows_of_a_training(tmp_path: Path) -> None:
    substrate = LetterSubstrate()
    model = TinyModel(len(substrate))
    stream = make_stream(random_text(50, 0), substrate)
    stream_to = io.StringIO()
    config = TrainConfig(log_every=4, eval_every=5, batch_size=2)
    with RunLog(tmp_path, stream=stream_to, tensorboard=False) as log:
        trainer = Trainer(
            model,
            dict(model.named_parameters()),
            Batches(stream, 2, 16),
            config,
            steps=10,
            validation=stream,
            log=log,
            labels={"stage": 1, "depth": 2},
        )
        result = trainer.run()
    training = [row for row in rows(tmp_path) if "loss" in row]
    validation = [row for row in rows(tmp_path) if "validation_loss" in row]
    assert [row["step"] for row in training] == [4, 8, 10]
    assert [row["step"] for row in validation] == [5, 10]
    size = sum(parameter.numel() for parameter in model.parameters())
    for row in training:
        assert (row["stage"], row["depth"]) == (1, 2)
        assert row["active_parameters"] == row["total_parameters"] == size
        assert row["tokens"] == row["step"] * 32
        assert row["tokens_per_second"] > 0
        # Bits per character from nats per token: 1 / ln 2 times predicted tokens per character.
        ratio = (len(stream) - stream.n_documents) / stream.n_characters
        assert row["bits_per_character"] == pytest.approx(row["loss"] / 0.6931472 * ratio)
    assert training[-1]["loss"] == result.loss
    assert result.best_bits_per_character in {
        row["validation_bits_per_character"] for row in validation
    }
    last = stream_to.getvalue().splitlines()[-1]
    assert last.startswith(f"stage 1 · depth 2 · {format_count(size)}/")
    assert "step 10/10" in last
    assert "ETA 0:00" in last
    assert f"val {validation[-1]['validation_bits_per_character']:.3f}" in last
