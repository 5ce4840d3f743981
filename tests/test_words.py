"""One word for one thing: the words of docs/glossary.md, and none of those that they replaced.

Checked are the documentation, and docstrings, comments, messages and names in the sources.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".yaml", ".html", ".cpp", ".cu", ".cuh", ".h", ".inl", ".sh", ".cff"}
FOLDERS = ("fastgrow", "kernels", "benchmarks", "csrc", "docs", "examples", "scripts", ".github")
FILES = ("README.md", "CHANGELOG.md", "Makefile", "setup.py", "mkdocs.yml", ".ci/run")

# Retired word → what to write instead.
RETIRED = {
    r"beside": "compared with, next to, in addition to",
    r"rests|rested|resting|at rest": "is frozen; of an expert: is offloaded",
    r"wish(es|ed)?": "request, option, override",
    r"anew|afresh|begun": "again, from scratch, started",
    r"put by|at hand": "saved, available",
    r"newest": "new blocks, topmost blocks, latest",
    r"so many": "a given number of",
    r"told|tells": "reports, returns, documents",
    r"goes on|went on": "continues",
    r"speaks?|come and go|comes and goes": "are combined; can be added, removed, offloaded",
    r"is no number|are no numbers": "is NaN, is not finite",
    r"proves|proved": "checks, shows",
    r"frozen is cheap": "frozen weights save no activations",
    r"honest(ly)?": "(leave it out)",
    r"for want of|lest": "because there is no, so that … not",
    r"mend(s|ed)?": "fix",
    r"parked|ParkedExpert": "offloaded",
    r"lowered": "quantized",
    r"RowKeeper|TrunkRows": "ActivationCache, CachedActivations",
    r"OnTrunk": "LossFromTrunk",
    r"Filler": "CacheWriter",
    r"Pace": "LRController",
    r"class Until|`Until`": "StopCriterion",
    r"of its own|of their own|of one's own": "separate, its own",
    r"stood in|stands in": "replaces",
}
PATTERN = re.compile(rf"\b(?:{'|'.join(RETIRED)})\b|`Until`")

# Texts of result files, and keys of saved records and of the study's file.
TIED = re.compile(
    r"^\| peak memory of a step beside the weights"
    r"|doubling-old-half-rests"
    r"|\"resting\""
    r"|`Until` is `StopCriterion`"
)


def files() -> list[Path]:
    """The files of the repository that are read."""
    command = ["git", "ls-files", *FOLDERS, *FILES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [
        path
        for path in paths
        if path.exists()
        and (path.suffix in SUFFIXES or path.name in FILES or path.suffix == "")
        and ROOT / "benchmarks" / "results" not in path.parents
        and not path.is_symlink()
    ]


def retired_words(text: str) -> list[str]:
    """Line number and text of each line with a retired word."""
    return [
        f"{number}: {found[0]!r} in {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if (found := PATTERN.search(line)) and not TIED.search(line)
    ]


def test_no_retired_word_is_used() -> None:
    paths = files()
    assert len(paths) > 400
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line in retired_words(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(["say instead what tests/test_words.py gives:", *found])


@pytest.mark.parametrize("line", ["tokens beside the table", "what rests is frozen", "a `Pace`"])
def test_a_retired_word_is_found(line: str) -> None:
    assert retired_words(line)


def test_each_word_of_the_glossary_has_one_meaning() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE)
    words = [word for word in words if word not in ("word", "---")]
    assert len(words) > 30
    assert len(words) == len(set(words))
    for word in words:
        assert not PATTERN.search(word), word
