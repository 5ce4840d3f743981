"""The digest of an operation's code: it covers code, but not comments or file names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import code
from benchmarks.cases import families

KERNEL = '''"""A kernel."""

from fastgrow.kernels.common import LOG2_E


def kernel(x):
    """Doubles."""
    # Twice.
    return 2 * x


LIMIT = 16
'''


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working copy of two files: a case that imports a kernel."""
    (tmp_path / "benchmarks" / "cases").mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "cuda").mkdir()
    folders = {"fastgrow.kernels": tmp_path / "kernels", "benchmarks": tmp_path / "benchmarks"}
    monkeypatch.setattr(code, "FOLDERS", folders)
    monkeypatch.setattr(code, "CUDA_SOURCES", tmp_path / "cuda")
    write(tmp_path, KERNEL)
    forget()
    yield tmp_path
    forget()


def write(tree: Path, kernel: str, name: str = "double") -> None:
    (tree / "kernels" / f"{name}.py").write_text(kernel)
    case = f"def call(x):\n    from fastgrow.kernels.{name} import kernel\n    return kernel(x)\n"
    (tree / "benchmarks" / "cases" / "doubling.py").write_text(case + "GRID = [1, 2]\n")


def forget() -> None:
    for function in (code._digest, code._imports, code._file):
        function.cache_clear()


def digest() -> str:
    forget()
    return code._digest("benchmarks.cases.doubling")


def test_words_places_and_order_do_not_count(tree: Path) -> None:
    before = digest()
    write(tree, KERNEL.replace("# Twice.", "# Two times."))
    assert digest() == before
    write(tree, KERNEL.replace('"""Doubles."""', '"""Makes it double."""'))
    assert digest() == before
    (tree / "kernels" / "double.py").unlink()
    write(tree, "LIMIT = 16\n" + KERNEL.replace("\n\nLIMIT = 16\n", ""), name="twofold")
    assert digest() == before


@pytest.mark.parametrize(
    ("old", "new"), [("2 * x", "2 + x"), ("LIMIT = 16", "LIMIT = 32"), ("2 * x", "2.0 * x")]
)
def test_what_computes_counts(tree: Path, old: str, new: str) -> None:
    before = digest()
    write(tree, KERNEL.replace(old, new))
    assert digest() != before


def test_a_case_counts_by_its_functions(tree: Path) -> None:
    before = digest()
    case = tree / "benchmarks" / "cases" / "doubling.py"
    case.write_text(case.read_text().replace("GRID = [1, 2]", "GRID = [1, 2, 3]"))
    assert digest() == before
    case.write_text(case.read_text().replace("return kernel(x)", "return kernel(kernel(x))"))
    assert digest() != before


def test_cuda_sources_count_without_comments(tree: Path) -> None:
    source = tree / "cuda" / "mean.cu"
    source.write_text("// A mean.\nint f() {\n  return 1;  /* one */\n}\n")
    before = digest()
    source.rename(tree / "cuda" / "average.cu").write_text('#include "x.h"\nint f() { return 1; }')
    assert digest() == before
    (tree / "cuda" / "average.cu").write_text("int f() { return 2; }")
    assert digest() != before


def test_an_operation_reaches_its_kernels_and_no_other_operation() -> None:
    norm = code.closure("benchmarks.cases.layer_norm")
    assert {"fastgrow.kernels.norm_forward", "fastgrow.kernels.norm_backward"} <= norm
    assert not {name for name in norm if "attention" in name or "mlp" in name}
    assert "fastgrow.kernels.attention_backward" in code.closure("benchmarks.cases.attention")
    assert "fastgrow.kernels.norm_forward" in code.closure("benchmarks.cases.growth_step")
    for case, kernel in (
        ("mlp", "mlp_backward"),
        ("lora_linear", "lora"),
        ("embedding", "embedding"),
        ("linear_cross_entropy", "linear_lse_kernels"),
    ):
        assert f"fastgrow.kernels.{kernel}" in code.closure(f"benchmarks.cases.{case}")
    named = {family.name: code.digest_of(family) for family in families()}
    assert named["attention"] != named["mlp"]
    assert named["attention"] != named["attention-decode"]
