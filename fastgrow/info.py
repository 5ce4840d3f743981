"""Report of versions, devices and available implementations: `python -m fastgrow.info`.

The last line recommends a command that would make fastgrow faster on this machine.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys

import torch

import fastgrow
from fastgrow import _native, ops
from fastgrow._cpu import cpu_flags
from fastgrow.ops.softmax_attention import explain_sdpa

PACKAGES = ("triton", "numpy", "tokenizers", "safetensors")
CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16", "asimd")
# Names of the values that `instruction_set` of csrc/cpu/instruction_set.h returns.
INSTRUCTION_SETS = ("portable code", "AVX2", "AVX-512")


def report() -> str:
    """Return the report as text."""
    sections = {
        "Versions": _versions(),
        "Device": _device(),
        "Extension": _extension(),
        "Operations": _operations(),
        "Attention by SDPA": explain_sdpa(device()),
        "Tuning": ops.explain_tuning(),
        "Variables": _variables(),
    }
    lines = []
    for title, content in sections.items():
        lines += [title, *(f"  {line}" for line in content), ""]
    return "\n".join([*lines, f"Faster: {advice()}"])


def device() -> torch.device:
    """Return the default device of fastgrow's commands: the first GPU, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def advice() -> str:
    """Return a command that would make fastgrow faster on this machine, or "nothing to do"."""
    rebuild = "pip install --no-build-isolation --force-reinstall --no-deps fastgrow"
    if (_native.PACKAGE.parent / "setup.py").is_file():
        rebuild = "pip install --no-build-isolation --no-deps -e ."
    if torch.version.cuda is None and shutil.which("nvidia-smi") is not None:
        return "pip install --force-reinstall torch  (this torch build cannot use the NVIDIA GPU)"
    if _version("triton") is None and torch.cuda.is_available():
        return "pip install triton"
    if not _native.CPU.loaded:
        compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
        if compiler is None:
            return f"apt-get install g++ && {rebuild}"
        return f"FASTGROW_BUILD_EXT=auto {rebuild}"
    return "nothing to do"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[str]:
    lines = [f"fastgrow {fastgrow.__version__} in {_native.PACKAGE}"]
    lines.append(f"Python {platform.python_version()} on {platform.platform()}")
    # torch.__version__ includes the build, such as 2.13.0+cpu; the package metadata may not.
    lines.append(f"torch {torch.__version__}")
    return lines + [f"{name} {_version(name) or 'is not installed'}" for name in PACKAGES]


def _device() -> list[str]:
    lines = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        lines.append(f"cuda:{index} {gpu.name}, sm_{gpu.major}{gpu.minor}, {memory}")
    if not lines:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        lines.append(f"no GPU (torch is {build})")
    flags = cpu_flags()
    known = [flag for flag in CPU_FLAGS if flag in flags] or ["no known vector flags"]
    lines.append(f"{platform.machine()} CPU, {torch.get_num_threads()} threads: {' '.join(known)}")
    return lines


def _extension() -> list[str]:
    lines = []
    for extension in (_native.CPU, _native.CUDA):
        state = f"fastgrow.{extension.name}: loaded, " if extension.loaded else ""
        lines.append(state + extension.reason)
    if _native.CPU.loaded:
        used = INSTRUCTION_SETS[torch.ops.fastgrow_native.instruction_set()]
        lines.append(f"CPU operations run with {used}")
    lines.append("supported operations, whether built or not:")
    for names, on_cpu, on_gpu in ops.native_support():
        lines.append(f"  {', '.join(names)}: on a CPU {on_cpu}; on a GPU {on_gpu}")
    return lines


def _operations() -> list[str]:
    return [line for e in ops.explain_all(device()) for line in str(e).splitlines()]


def _variables() -> list[str]:
    names = sorted(name for name in os.environ if name.startswith("FASTGROW_"))
    return [f"{name}={os.environ[name]}" for name in names] or ["no FASTGROW_ variable is set"]


def main() -> int:
    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
