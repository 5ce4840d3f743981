"""A run that is stopped anywhere and resumed ends in the same bits as an uninterrupted one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from growing import digest
from interrupting import interrupted

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


def run(out: Path, interrupt_at: str) -> subprocess.CompletedProcess[str]:
    """Run in another process, which gets SIGINT once a path with the pattern exists."""
    return interrupted(RUN, interrupt_at, [out], cwd=Path(__file__).parent)


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = run(whole, "nowhere")
    assert done.returncode == 0, done.stderr
    done = run(stopped, "*/checkpoints/step-*10")
    assert done.returncode != 0
    assert "Interrupted" in done.stderr
    assert "resume" in done.stderr
    assert not (stopped / "run" / "model").exists()
    done = run(stopped, "nowhere")
    assert done.returncode == 0, done.stderr
    assert digest(Decoder.load(stopped / "run" / "model")) == digest(
        Decoder.load(whole / "run" / "model")
    )
