"""The examples run, and the second differs from the first by ten lines."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PLAIN, FAST = EXAMPLES / "nanogpt.py", EXAMPLES / "nanogpt_fastgrow.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ten_lines_change_the_nanogpt_and_not_its_losses() -> None:
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (PLAIN, FAST))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert 0 < len(changed) <= 10
    assert "fastgrow" not in PLAIN.read_text(encoding="utf-8")

    text = PLAIN.read_text(encoding="utf-8")
    plain, fast = load(PLAIN), load(FAST)
    (first, expected), (second, losses) = (module.train(text, 8) for module in (plain, fast))
    assert expected[0] - expected[-1] > 1
    # 20 units in the last place of a loss of five.
    torch.testing.assert_close(losses, expected, atol=20 * 2**-21, rtol=0)
    assert list(second.state_dict()) == list(first.state_dict())
    ids = torch.tensor([list(text.encode())[:20]])
    torch.testing.assert_close(second(ids), first(ids), atol=1e-4, rtol=0)
