"""Run the operations' tests on a copy of the extension built with sanitizers.

    python csrc/sanitize.py [pytest arguments]

AddressSanitizer and UndefinedBehaviorSanitizer stop the tests at the first read or write outside an
array, misuse of memory or undefined arithmetic. They check the CPU extension with every instruction
set, and the GPU kernels as csrc/emulator runs them on a CPU. The exit status is pytest's, or 77 if
the compiler has no sanitizers.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g1"
TESTS = ("test_logit_mean.py", "test_mean_cross_entropy.py", "test_mean_top_k.py")
TESTS += ("test_mean_sample.py", "test_probability_mean.py", "test_vector_functions.py")
TESTS += ("test_logit_tile.py",)
# Tests for a GPU, whose blocks and threads are emulated on the CPU here.
TESTS_ON_GPU = ("test_experts_on_gpu.py",)
# Excluded: tests that compile, which trace much of PyTorch, and tests that start other processes,
# which are not sanitized.
UNWANTED = "not (compiles or opcheck or instruction_sets or is_written or two_to_the_31)"
# Tests of the code that differs between instruction sets, for all but the best one.
DIFFERENT = "fp64 or bypass or bound or special"
NO_SANITIZER = 77


def libraries() -> list[str] | None:
    """Return the sanitizers' run-time libraries, which must be loaded before Python's libraries."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    found = []
    for name in ("libasan.so", "libubsan.so"):
        query = [*compiler, f"-print-file-name={name}"]
        if shutil.which(compiler[0]) is None:
            return None
        path = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        # A compiler that has no such file prints the given name.
        if not Path(path).is_absolute():
            return None
        found.append(path)
    return found


def build(tree: Path) -> None:
    """Make a copy of the package in `tree`, with a sanitized extension."""
    unwanted = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("fastgrow", "kernels", "csrc"):
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy2(ROOT / name, tree / name)
    environment = {**os.environ, "CXXFLAGS": FLAGS, "FASTGROW_BUILD_EXT": "cpu"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, env=environment, check=True)


def build_emulated(folder: Path) -> Path:
    """Build a sanitized library of the GPU kernels and the emulator."""
    # setup.py reads sys.argv when it is run as a module; --name makes it build nothing.
    before, sys.argv = sys.argv, ["setup.py", "-q", "--name"]
    setup = runpy.run_path(str(ROOT / "setup.py"))
    sys.argv = before
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    sources += sorted((ROOT / "csrc/emulator").glob("*.cpp"))
    library = folder / "_C_emulated.so"
    os.environ["CXXFLAGS"] = FLAGS
    setup["run_steps"](setup["cpu_steps"](setup["find_torch"](), sources, folder, library), folder)
    return library


def main(arguments: list[str]) -> int:
    preload = libraries()
    if preload is None:
        print("the C++ compiler (CXX) has no sanitizer libraries", file=sys.stderr)
        return NO_SANITIZER
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        build(tree)
        status = 0
        for capability, chosen in (
            ("avx512", UNWANTED),
            ("avx2", DIFFERENT),
            ("portable", DIFFERENT),
        ):
            variables = {"FASTGROW_CPU_CAPABILITY": capability}
            options = ["-k", chosen, *arguments]
            status = status or run_tests(tree, preload, TESTS, variables, options)
        emulated = Path(folder) / "emulated"
        emulated.mkdir()
        variables = {"FASTGROW_EMULATED_CUDA": str(build_emulated(emulated))}
        return status or run_tests(tree, preload, TESTS_ON_GPU, variables, arguments)


def run_tests(
    tree: Path,
    preload: list[str],
    names: tuple[str, ...],
    variables: dict[str, str],
    arguments: list[str],
) -> int:
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "LD_PRELOAD": " ".join(preload),
        # Python and torch do not free all memory, and torch throws through uninstrumented frames.
        "ASAN_OPTIONS": "detect_leaks=0:detect_container_overflow=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FASTGROW_IMPL": "",
        "OMP_NUM_THREADS": "2",
        **variables,
    }
    check = "from fastgrow import _native as n; assert n.CPU.loaded, n.CPU.reason; print(n.PACKAGE)"
    loaded = subprocess.run(
        [sys.executable, "-c", check], cwd=tree, env=environment, capture_output=True, text=True
    )
    if loaded.returncode != 0 or not loaded.stdout.startswith(str(tree)):
        output = loaded.stdout + loaded.stderr
        print(f"the sanitized extension does not load: {output}", file=sys.stderr)
        return 1
    files = [str(ROOT / "tests" / "ops" / name) for name in names]
    options = ["-x", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    command = [sys.executable, "-m", "pytest", *options, *files, *arguments]
    return subprocess.run(command, cwd=tree, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
