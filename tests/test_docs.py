"""Every code block of the README and of the documentation's pages runs."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import interrupted

import fastgrow as fg
from fastgrow.cli import main
from fastgrow.cli.settings import read_growth, shipped_configs
from fastgrow.data import demo_characters, demo_splits

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^( *)```(\w*).*?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
PAGES = {"README.md": ROOT / "README.md"} | {
    path.relative_to(ROOT / "docs").as_posix(): path for path in (ROOT / "docs").rglob("*.md")
}
# Blocks of these kinds are no code: output, trees of files, and a diff that
# tests/test_drop_in_page.py compares with the examples.
NO_CODE = {"", "text", "diff"}
# Blocks that begin so are written into a copy of the package by tests/test_contributing.py.
WRITTEN_ELSEWHERE = ("# new ", "# add to ")

# The same at a size for tests.
SMALLER: dict[str, list[tuple[str, str]]] = {
    "README.md": [("tokens=100_000", "tokens=512"), ("n_components=128", "n_components=16")],
    "tutorial.md": [("tokens: 300_000", "tokens: 4_000"), ("tokens=300_000", "tokens=4_000")],
    "compose.md": [("tokens=20_000", "tokens=512")],
}


def small_models() -> dict[str, Any]:
    """Three models of one substrate, and a text."""
    substrate = fg.Substrate.build(characters=demo_characters(), n_ngrams=0, n_components=16)
    config = fg.DecoderConfig(len(substrate), 32, n_layer=1, n_head=2, max_seq_len=64)
    torch.manual_seed(0)
    names: dict[str, Any] = {name: fg.Decoder(config, substrate) for name in ("ru", "zh", "code")}
    text = fg.TextData.from_splits(**vars(demo_splits("Cyrillic")), substrate=substrate)
    return names | {"text": text, "config": config, "substrate": substrate}


def two_texts() -> dict[str, Any]:
    """Two files, as a user would have them."""
    for name, script in (("en.txt", "Latin"), ("ru.txt", "Cyrillic")):
        lines = [" ".join(text.split()) for text in demo_splits(script).train[:200]]
        Path(name).write_text("\n".join(lines), encoding="utf-8")
    return {}


def one_question() -> dict[str, Any]:
    """The file of questions that the page shows."""
    shown = re.search(r"```text\n(\{.*\}\n)", PAGES["evaluate.md"].read_text(encoding="utf-8"))
    assert shown is not None
    Path("questions.jsonl").write_text(shown[1], encoding="utf-8")
    return {}


# What the blocks of a page take as given.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": two_texts,
    "compose.md": small_models,
    "contributing.md": small_models,
    "evaluate.md": one_question,
}
# Pages whose commands work on the files of the page before them.
AFTER_THE_TUTORIAL = ["tutorial.md", "resume.md", "evaluate.md"]


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of a page's fenced blocks, at the size for tests."""
    text = PAGES[page].read_text(encoding="utf-8")
    for written, tested in SMALLER.get(page, []):
        assert written in text, f"{page}: {written}"
        text = text.replace(written, tested)
    for _, language, code in FENCE.findall(text):
        yield language, code


def run_page(page: str) -> dict[str, Any]:
    """Run the blocks of a page in order, in the current folder; returns the names they define."""
    names = GIVEN.get(page, dict)()
    for language, code in blocks(page):
        if language in NO_CODE or code.startswith(WRITTEN_ELSEWHERE):
            continue
        if language == "python":
            torch.manual_seed(0)
            exec(compile(code, page, "exec"), names)
        elif language == "yaml":
            read_yaml(code)
        else:
            assert language == "sh", f"{page}: no test runs a block of {language!r}"
            for line in code.splitlines():
                run_command(shlex.split(line, comments=True))
    return names


def read_yaml(code: str) -> None:
    """Save a configuration under the name in its first line, and read it."""
    name = re.match(r"# (\S+\.yaml)\n", code)
    path = Path(name[1] if name else "configuration.yaml")
    path.write_text(code, encoding="utf-8")
    read_growth(str(path), [])


def run_command(words: list[str]) -> None:
    """Run a command of fastgrow; of others see that they exist."""
    if "--finish" in words:
        stop_midway(words[1:-1])
    match words:
        case []:
            pass
        case ["fastgrow", "bench", *_]:
            # It takes minutes; tests/benchmarks run it.
            assert main(["bench", "--help"]) == 0
        case ["fastgrow", "study", *arguments]:
            # tests/study run studies.
            assert main(["study", "--help"]) == 0
            assert arguments[0] in (*shipped_configs("studies"), "my-study.yaml", "--table"), words
        case ["fastgrow", *arguments]:
            assert main(arguments) == 0, words
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        case ["python", "-m", "benchmarks", name, *_]:
            from benchmarks.__main__ import main as benchmarks

            with pytest.raises(SystemExit) as ended:
                benchmarks([name, "--help"])
            assert ended.value.code == 0, words
        case ["python", "-m", "pytest", path, *_]:
            assert (ROOT / path).exists(), words
        case ["bash", "build/gpu-bundle/run.sh", *_]:
            # tests/packaging/test_gpu_bundle.py runs it.
            assert (ROOT / "scripts" / "gpu_run.sh").exists()
        case _:
            # An assignment before a command, or a tool that is not ours.
            assert words[0] in ("pip", "tar", "mkdir", "python") or "=" in words[0], words


def stop_midway(arguments: list[str]) -> None:
    """Start a run again and interrupt it at a checkpoint."""
    shutil.rmtree("runs/latin")
    program = "import sys; from fastgrow.cli import main; sys.exit(main(sys.argv[1:]))"
    stopped = interrupted(program, "*/checkpoints/*", arguments)
    assert stopped.returncode == 130, stopped.stderr


@pytest.mark.parametrize("page", sorted(set(PAGES) - set(AFTER_THE_TUTORIAL)))
def test_the_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "drop_in.md":
        pytest.importorskip("transformers")
        pytest.importorskip("kernels")
    monkeypatch.chdir(tmp_path)
    run_page(page)


@pytest.mark.slow
def test_the_blocks_of_the_tutorial_run_and_those_that_go_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for page in AFTER_THE_TUTORIAL:
        run_page(page)
    assert "runs/duo" in capsys.readouterr().out


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = set(re.findall(r"[\w/]+\.md", navigation))
    made = {"changelog.md", "reference/configuration.md", "reference/command_line.md"}
    assert listed - made == set(PAGES) - {"README.md"}
