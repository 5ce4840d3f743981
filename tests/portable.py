"""`make test-portable`: run the numerical tests with other machines' instructions and threads.

A library uses the best instruction set of the processor. On another processor it uses others, which
add in another order; the same holds for other numbers of threads. This script sets each library's
choice by an environment variable, one setting at a time, and the tests must pass with each. The
machine's defaults are tested by `make test`; settings that its processor does not support are
listed and skipped.

    python tests/portable.py                 every other setting: a quarter of an hour on two cores
    python tests/portable.py --few           the most useful settings: three minutes
    python tests/portable.py MKL_CBWR        the settings of one variable
    python tests/portable.py --list
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgrow._cpu import cpu_flags

TESTS = Path(__file__).resolve().parent
# What starts processes or files, and computes next to nothing, is left out.
MODELS = (
    "nn", "compose", "evaluation", "interop", "growth", "training", "gpu", "test_examples.py",
    "-growth/plan", "-growth/doctor", "-growth/test_kills.py", "-growth/test_resume.py",
    "-training/test_checkpoint.py", "-training/test_log.py",
)  # fmt: skip
OPERATIONS = ("ops", "-ops/test_instruction_sets.py", "-ops/test_dispatch.py")
SUBSTRATE = ("substrate", "report/test_glyph_neighbours.py")
# Triton's interpreter multiplies by numpy.
KERNELS = ("kernels/test_smoke.py", "kernels/test_interpreted.py")
# Prints what each library takes by itself: a name and a value a line.
_FACTS = """
import os
import numpy, torch
from threadpoolctl import threadpool_info
from fastgrow import _native
blas = [i.get("architecture") for i in threadpool_info() if i["internal_api"] == "openblas"]
built = ("portable", "avx2", "avx512")
print("OPENBLAS_CORETYPE", *blas)
print("ATEN_CPU_CAPABILITY", torch.backends.cpu.get_cpu_capability().lower())
print("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", 1))
print("FASTGROW_CPU_CAPABILITY",
      built[torch.ops.fastgrow_native.instruction_set()] if _native.CPU.loaded else "")
print("MKL", torch.backends.mkl.is_available())
print("ONEDNN", torch.backends.mkldnn.is_available())
"""


@dataclass(frozen=True)
class Setting:
    """One setting of one library.

    Attributes:
        variable, value: the environment variable and its value.
        tests: paths in `tests` to run; a path after `-` is excluded.
        needs: a required flag in /proc/cpuinfo.
        library: a library that must be in the facts.
        few: whether `--few` includes it.
    """

    variable: str
    value: str
    tests: tuple[str, ...]
    needs: str = ""
    library: str = ""
    few: bool = False

    @property
    def name(self) -> str:
        return f"{self.variable}={self.value}"

    def missing(self, facts: dict[str, str], flags: Container[str]) -> str:
        """Return why the setting is skipped on this machine; "" if it is run."""
        if self.library and facts.get(self.library) in (None, "", "False"):
            return f"{MISSING[self.library]} here"
        if facts.get(self.variable, "").lower() == self.value.lower():
            return "what `make test` runs here"
        if self.needs and self.needs not in flags:
            return f"this processor has no {self.needs}"
        return ""


MISSING = {
    "OPENBLAS_CORETYPE": "numpy has another BLAS",
    "MKL": "torch has no MKL",
    "ONEDNN": "torch has no oneDNN",
    "FASTGROW_CPU_CAPABILITY": "the extension is not built",
}
NUMPY, TORCH, EXTENSION = (*SUBSTRATE, *KERNELS), (*MODELS, *OPERATIONS), ("compose", *OPERATIONS)
# oneDNN multiplies in half precision.
HALF = ("nn", "interop", *OPERATIONS)
SETTINGS = (
    Setting("OPENBLAS_CORETYPE", "Prescott", SUBSTRATE, "lm", "OPENBLAS_CORETYPE", few=True),
    Setting("OPENBLAS_CORETYPE", "Haswell", NUMPY, "avx2", "OPENBLAS_CORETYPE"),
    # Its kernels are Haswell's, under which Triton's interpreter is tried.
    Setting("OPENBLAS_CORETYPE", "Zen", SUBSTRATE, "avx2", "OPENBLAS_CORETYPE"),
    Setting("OPENBLAS_CORETYPE", "SkylakeX", NUMPY, "avx512f", "OPENBLAS_CORETYPE"),
    Setting("MKL_CBWR", "COMPATIBLE", TORCH, "", "MKL", few=True),
    Setting("MKL_CBWR", "AUTO", TORCH, "", "MKL"),
    Setting("ATEN_CPU_CAPABILITY", "default", TORCH, few=True),
    Setting("ATEN_CPU_CAPABILITY", "avx2", TORCH, "avx2"),
    Setting("ATEN_CPU_CAPABILITY", "avx512", TORCH, "avx512f"),
    Setting("ONEDNN_MAX_CPU_ISA", "SSE41", HALF, "", "ONEDNN"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX2", HALF, "avx2", "ONEDNN"),
    Setting("OMP_NUM_THREADS", "1", TORCH),
    Setting("OMP_NUM_THREADS", "2", TORCH),
    Setting("OMP_NUM_THREADS", "8", TORCH),
    Setting("FASTGROW_CPU_CAPABILITY", "portable", EXTENSION, "", "FASTGROW_CPU_CAPABILITY"),
    Setting("FASTGROW_CPU_CAPABILITY", "avx2", EXTENSION, "avx2", "FASTGROW_CPU_CAPABILITY"),
    Setting("FASTGROW_CPU_CAPABILITY", "avx512", EXTENSION, "avx512f", "FASTGROW_CPU_CAPABILITY"),
)


def find_facts() -> dict[str, str]:
    """Return the default choices of this installation's libraries."""
    command = [sys.executable, "-c", _FACTS]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = (line.partition(" ") for line in found.stdout.splitlines())
    return {name: value for name, _, value in lines}


def run(setting: Setting) -> subprocess.CompletedProcess[str]:
    """Run the tests of a setting in a separate process."""
    paths = [
        f"--ignore={TESTS / path[1:]}" if path.startswith("-") else str(TESTS / path)
        for path in setting.tests
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "not slow and not acceptance", *paths],
        cwd=TESTS.parent,
        env={**os.environ, setting.variable: setting.value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main(arguments: Sequence[str] | None = None, settings: Sequence[Setting] = SETTINGS) -> int:
    """Run the selected settings; return 1 if a test failed with one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({setting.variable for setting in settings})
    parser.add_argument("variables", nargs="*", metavar="VARIABLE", help=", ".join(names))
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--list", action="store_true", help="list the settings to run, and stop")
    options = parser.parse_args(arguments)
    for variable in options.variables:
        if variable not in names:
            parser.error(f"{variable}: unknown; there are {', '.join(names)}")
    facts, flags = find_facts(), cpu_flags()
    failed = []
    for setting in settings:
        if options.variables and setting.variable not in options.variables:
            continue
        if options.few and not setting.few:
            continue
        missing = setting.missing(facts, flags)
        if missing or options.list:
            print(f"{setting.name}: {f'skipped: {missing}' if missing else 'to run'}", flush=True)
            continue
        started = time.monotonic()
        done = run(setting)
        last = (done.stdout.strip().splitlines() or ["printed nothing"])[-1].strip("= ")
        print(f"{setting.name}: {last} ({time.monotonic() - started:.0f} s in all)", flush=True)
        if done.returncode != 0:
            failed.append(setting.name)
            print(done.stdout, flush=True)
    if failed:
        print(f"failed under {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
