"""Stopped anywhere and resumed, a run ends in the same bits as one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from growing import digest

from fastgrow.nn import Decoder

RUN = """
import sys
from pathlib import Path
from fastgrow.growth import GrowthSchedule, Stage, grow
from growing import make_data, make_model, make_substrate, make_train

out = Path(sys.argv[1])
substrate = make_substrate()
grow(
    make_model(substrate),
    make_data(substrate, out / "tokens"),
    GrowthSchedule([Stage(1, 1536), Stage(1, 1536), Stage(1, 1536)]),
    train=make_train(checkpoint_every=5, accumulate=2),
    out=out / "run",
    evaluate_on={},
)
"""


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(out)],
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("uninterrupted")
    process = start(out)
    assert process.wait() == 0, process.communicate()
    return digest(Decoder.load(out / "run" / "model"))


def stop_at(process: subprocess.Popen, checkpoints: Path, step: int, sent: signal.Signals) -> bool:
    """Send a signal once a checkpoint of at least `step` is there; False if the run ended first."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        steps = [int(p.name.removeprefix("step-")) for p in checkpoints.glob("step-*")]
        if steps and max(steps) >= step:
            process.send_signal(sent)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def test_ctrl_c_saves_and_says_how_to_go_on(uninterrupted: str, tmp_path: Path) -> None:
    process = start(tmp_path)
    assert stop_at(process, tmp_path / "run" / "checkpoints", 10, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "Interrupted" in errors
    assert "resume" in errors
    process = start(tmp_path)
    assert process.wait() == 0, process.communicate()
    assert digest(Decoder.load(tmp_path / "run" / "model")) == uninterrupted
