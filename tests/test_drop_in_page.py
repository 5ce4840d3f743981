"""The code in docs/drop_in.md runs and gives the documented results."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "drop_in.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return a section of the page."""
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def block(title: str, language: str) -> str:
    """Return the only fenced block of a language in a section."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    return str(found)


def run(title: str) -> dict:
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(block(title, "python"), "drop_in.md", "exec"), names)
    return names


def test_functions() -> None:
    names = run("Functions")
    assert names["y"].shape == (2, 4, 16, 16)
    torch.testing.assert_close(names["total"], 2 * names["x"])
    assert names["h"].shape == names["x"].shape
    assert names["loss"].isfinite()


def test_modules() -> None:
    names = run("Modules")
    names["loss"].backward()
    assert names["head"].weight.grad.abs().max() > 0


def test_patching(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    names = run("Patching")
    assert capsys.readouterr().out == block("Patching", "text")
    assert names["model"].config._attn_implementation == "sdpa"


def test_kernelize() -> None:
    pytest.importorskip("kernels")
    norm = run("Layers for `kernelize`")["model"][1]
    assert norm.forward.__func__.__module__.endswith("layers")
    assert norm(torch.randn(3, 64)).shape == (3, 64)


def test_the_diff_is_that_of_the_examples() -> None:
    before, after = (
        (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()
        for name in ("nanogpt.py", "nanogpt_fastgrow.py")
    )
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    changed = [line for line in lines if not line.startswith("@@")]
    assert block("Example: a small GPT", "diff").splitlines() == changed


def test_every_link_has_a_target() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target
