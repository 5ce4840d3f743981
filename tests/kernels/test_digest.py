"""A kernel's digest depends on what it computes and on nothing else."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from fastgrow.kernels.digest import digest

HEAD = "import triton\nimport triton.language as tl\n"
KERNEL = f"""{HEAD}
FACTOR = tl.constexpr(3)
BIAS: tl.constexpr = tl.constexpr(0.5)
UNUSED = tl.constexpr(7)


@triton.jit
def shifted(x):
    return x + BIAS


@triton.jit
def scaled(x, N: tl.constexpr):
    return shifted(x) * FACTOR + tl.cdiv(N, 2)


@triton.jit
def kernel(X, n, N: tl.constexpr):
    # A comment.
    at = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(X + at, mask=at < n, other=0.0)
    tl.store(X + at, scaled(x, N), mask=at < n)
"""

Of = Callable[..., str]


@pytest.fixture
def of(tmp_path: Path) -> Of:
    """The digest of `kernel` in a file of that text."""
    numbers = itertools.count()

    def of_text(text: str, folder: str = "") -> str:
        path = tmp_path / folder / f"module_{next(numbers)}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return digest(module.kernel)

    return of_text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# A comment.", "# Another one, of\n    # two lines."),
        ("@triton.jit\ndef kernel", "\n\n\n@triton.jit\ndef kernel"),
        ("    at = tl", '    """What it does."""\n    at = tl'),
        ("    return shifted", '    """Of a function\n    that is called."""\n    return shifted'),
        ("X + at, mask=at < n, other=0.0)", "X + at,\n        mask=(at < n), other=0.0\n    )"),
        ("UNUSED = tl.constexpr(7)", "UNUSED = tl.constexpr(8)"),
        # A local name is not a constant of the file.
        ("UNUSED = tl.constexpr(7)", "x = tl.constexpr(7)"),
    ],
)
def test_what_does_not_compute_does_not_count(of: Of, old: str, new: str) -> None:
    assert old in KERNEL
    assert of(KERNEL.replace(old, new)) == of(KERNEL)


def test_another_file_or_folder_does_not_count(of: Of) -> None:
    assert of(KERNEL, "elsewhere") == of(KERNEL)


def test_what_is_called_may_move_to_another_file(
    of: Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers, rest = KERNEL.split("@triton.jit\ndef scaled")
    (tmp_path / "helpers_of_a_kernel.py").write_text(helpers)
    monkeypatch.syspath_prepend(str(tmp_path))
    moved = (
        f"{HEAD}from helpers_of_a_kernel import FACTOR, shifted\n\n@triton.jit\ndef scaled{rest}"
    )
    assert of(moved) == of(KERNEL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scaled(x, N), mask", "scaled(-x, N), mask"),
        ("at < n, other", "at <= n, other"),
        ("shifted(x) * FACTOR", "shifted(x) + FACTOR"),
        ("x + BIAS", "x - BIAS"),
        ("tl.constexpr(3)", "tl.constexpr(4)"),
        ("tl.constexpr(3)", "tl.constexpr(3.0)"),
        ("tl.constexpr(0.5)", "tl.constexpr(0.25)"),
        ("other=0.0", "other=0"),
        ("X, n, N: tl.constexpr", "X, n: tl.constexpr, N: tl.constexpr"),
        ("@triton.jit\ndef kernel", "@triton.jit(do_not_specialize=['n'])\ndef kernel"),
        (
            "@triton.jit\ndef kernel",
            "@triton.jit(do_not_specialize_on_alignment=['n'])\ndef kernel",
        ),
        ("@triton.jit\ndef scaled", "@triton.jit(noinline=True)\ndef scaled"),
    ],
)
def test_what_computes_counts(of: Of, old: str, new: str) -> None:
    assert old in KERNEL
    assert of(KERNEL.replace(old, new)) != of(KERNEL)


def test_names_in_modules_are_followed(
    of: Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_helper(text: str, name: str) -> str:
        helper = f"{HEAD}\n@triton.jit\ndef f(x):\n    return {text}\n"
        (tmp_path / f"{name}.py").write_text(helper)
        kernel = "@triton.jit\ndef kernel(x):\n    helper.f(x)\n"
        return of(f"{HEAD}import {name} as helper\n\n{kernel}")

    monkeypatch.syspath_prepend(str(tmp_path))
    assert with_helper("x + 1", "helper_1") == with_helper("x + 1", "helper_2")
    assert with_helper("x + 1", "helper_3") != with_helper("x + 2", "helper_4")


def test_it_is_the_same_in_every_version_of_python_and_triton(of: Of) -> None:
    assert of(KERNEL) == "741bff4f8687796a"
