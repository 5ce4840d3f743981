"""Package folders and the build of the C++/CUDA extension; pyproject.toml has all other settings.

The environment variable FASTGROW_BUILD_EXT selects what to build:

- `auto` (default): the CUDA extension if nvcc and a CUDA build of torch are installed, and the CPU
  extension if there is a C++ compiler;
- `cpu`, `cuda`: only this one (`cuda` includes `cpu`, which is used for tensors on the host);
- `0`: nothing.

FASTGROW_CUDA_ARCHITECTURES selects the GPUs, as compute capabilities times ten, such as `90` or
`80;90`; the default is all of CUDA_ARCHITECTURES. Building for one takes a third of the time.

CXX and CXXFLAGS are used as usual. If the build fails, the installation continues without the
extension, and the reason is written to `fastgrow/_build.json`, which `python -m fastgrow.info`
shows.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "0", "cpu", "cuda")
OLDEST_TORCH = (2, 11)
# The stable ABI of that version: the extension works with every later torch and with every Python.
ABI = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"

# Compute capabilities 8.0 (A100), 9.0 (H100, H200) and 10.0 (B200).
CUDA_ARCHITECTURES = (80, 90, 100)


class NotBuilt(Exception):
    """Raised if an extension cannot be built; the message for the user states why."""


@dataclass(frozen=True)
class Torch:
    """The torch that the extension is compiled against."""

    folder: Path
    version: str
    has_cuda: bool


@dataclass(frozen=True)
class Step:
    """One run of a compiler."""

    output: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]


def find_torch() -> Torch:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise NotBuilt(
            "torch is not installed at build time; install torch first, then fastgrow with "
            "--no-build-isolation"
        )
    folder = Path(spec.origin).parent
    version = importlib.metadata.version("torch")
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TORCH:
        raise NotBuilt(f"torch {version} is older than {'.'.join(map(str, OLDEST_TORCH))}")
    if not (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
        raise NotBuilt(f"torch {version} was installed without its C++ headers")
    return Torch(folder, version, (folder / "lib" / "libtorch_cuda.so").is_file())


def find_compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise NotBuilt(f"no C++ compiler ({' '.join(named) or 'c++, g++, clang++'}) is on the PATH")


def cpu_steps(torch: Torch, sources: list[Path], folder: Path, target: Path) -> list[Step]:
    compiler = find_compiler()
    flags = [
        *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
        # No automatic fused multiply-adds, so that the tail of a row is rounded like its body.
        "-ffp-contract=off",
        f"-DTORCH_TARGET_VERSION={ABI}",
        *("-isystem", str(torch.folder / "include")),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]
    steps = []
    for source in sources:
        output = folder / f"{source.stem}.o"
        # The dependency file lists for ninja which headers the object was made from.
        depends = ("-MMD", "-MF", f"{output}.d")
        # GPU kernels are compiled as C++ to emulate them (csrc/sanitize.py).
        language = ("-x", "c++", "-Wno-unknown-pragmas") if source.suffix == ".cu" else ()
        command = (*compiler, *flags, *depends, *language, "-c", str(source), "-o", str(output))
        steps.append(Step(output, (source,), command))
    objects = tuple(step.output for step in steps)
    link = [
        *compiler,
        *shlex.split(os.environ.get("CXXFLAGS", "")),
        *("-shared", *map(str, objects), "-o", str(target)),
        *(f"-L{torch.folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"),
    ]
    return [*steps, Step(target, objects, tuple(link))]


def cuda_architectures() -> list[int]:
    """Return the architectures in FASTGROW_CUDA_ARCHITECTURES in ascending order, or all."""
    named = os.environ.get("FASTGROW_CUDA_ARCHITECTURES", "")
    if not named:
        return list(CUDA_ARCHITECTURES)
    numbers = named.split(";")
    if not all(re.fullmatch(r"\d{2,3}", number) for number in numbers):
        raise NotBuilt(
            f"FASTGROW_CUDA_ARCHITECTURES={named!r}: expected a list of compute capabilities times "
            "ten, such as '90' or '80;90;100'"
        )
    return sorted(set(map(int, numbers)))


def cuda_steps(torch: Torch, sources: list[Path], folder: Path, target: Path) -> list[Step]:
    if shutil.which("nvcc") is None:
        raise NotBuilt("nvcc is not on the PATH")
    if not torch.has_cuda:
        raise NotBuilt(f"torch {torch.version} is not a CUDA build")
    flags = ["-std=c++17", "-O3", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={ABI}"]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", "-isystem", str(torch.folder / "include")]
    if os.environ.get("CXX"):
        flags += ["-ccbin", shlex.split(os.environ["CXX"])[0]]
    # Machine code for each architecture, and PTX of the last one for later GPUs.
    architectures = cuda_architectures()
    for number in architectures:
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
    last = architectures[-1]
    flags.append(f"-gencode=arch=compute_{last},code=compute_{last}")
    steps = []
    for source in sources:
        output = folder / f"{source.stem}.o"
        depends = ("-MMD", "-MF", f"{output}.d")
        command = ("nvcc", *flags, *depends, "-c", str(source), "-o", str(output))
        steps.append(Step(output, (source,), command))
    objects = tuple(step.output for step in steps)
    # The CUDA runtime is linked statically; torch's libraries have everything else.
    link = ["nvcc", "-shared", "-cudart=static", *map(str, objects), "-o", str(target)]
    link += [f"-L{torch.folder / 'lib'}", "-Xlinker=--no-as-needed", "-ltorch", "-ltorch_cpu"]
    link += ["-ltorch_cuda"]
    return [*steps, Step(target, objects, tuple(link))]


STEPS = {"_C": cpu_steps, "_C_cuda": cuda_steps}
WANTED_BY = {"_C": ("auto", "cpu", "cuda"), "_C_cuda": ("auto", "cuda")}


def run_steps(steps: list[Step], folder: Path) -> None:
    """Run compilers, in parallel if ninja is installed.

    Raises:
        NotBuilt: a compiler failed; the message ends with its output.
    """
    next_to_python = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(next_to_python) if next_to_python.is_file() else None)
    if ninja is None:
        for step in steps:
            run(step.command)
        return

    def quote(path: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    lines = ["rule run", "  command = $command", "rule compile", "  command = $command"]
    lines += ["  deps = gcc", "  depfile = $out.d"]
    for step in steps:
        rule = "compile" if "-MMD" in step.command else "run"
        lines.append(f"build {quote(step.output)}: {rule} {' '.join(map(quote, step.inputs))}")
        lines.append(f"  command = {shlex.join(step.command).replace('$', '$$')}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    run((ninja, "-C", str(folder)))


def run(command: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NotBuilt(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()[-2000:] or "no output"
        raise NotBuilt(f"{Path(command[0]).name} failed with status {done.returncode}: {output}")


def build(name: str, sources: list[Path], folder: Path, target: Path) -> str:
    """Build one extension.

    Returns:
        What it was built against.

    Raises:
        NotBuilt: it was not built; the message states why.
    """
    choice = os.environ.get("FASTGROW_BUILD_EXT", "auto")
    if choice not in CHOICES:
        raise NotBuilt(f"FASTGROW_BUILD_EXT={choice!r}: expected one of {', '.join(CHOICES)}")
    if choice not in WANTED_BY[name]:
        raise NotBuilt(f"FASTGROW_BUILD_EXT={choice} excludes it")
    torch = find_torch()
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    run_steps(STEPS[name](torch, sources, folder, target), folder)
    return f"built against torch {torch.version}"


class BuildNative(build_ext):
    """Builds the extensions that can be built, and records why others are not."""

    def get_ext_filename(self, fullname: str) -> str:
        # Without a Python version in the name: the file has no Python symbols.
        return fullname.replace(".", os.sep) + ".so"

    def run(self) -> None:
        build_lib = Path(self.build_lib).resolve()
        states = {}
        for extension in self.extensions:
            name = extension.name.rpartition(".")[2]
            target = build_lib / self.get_ext_filename(extension.name)
            # Remove the file of an earlier build, so that it is not taken for this build's.
            target.unlink(missing_ok=True)
            sources = [ROOT / source for source in extension.sources]
            try:
                detail = build(name, sources, Path(self.build_temp).resolve() / name, target)
            except Exception as error:
                known = isinstance(error, NotBuilt)
                detail = str(error) if known else f"{type(error).__name__}: {error}"
                self.warn(f"fastgrow.{name} is not built: {detail}")
            digests = {
                file: hashlib.sha256((ROOT / file).read_bytes()).hexdigest()
                for file in (*extension.sources, *extension.depends)
            }
            states[name] = {"built": target.exists(), "detail": detail, "sources": digests}
        record = build_lib / "fastgrow" / "_build.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(states, indent=1) + "\n")
        if self.inplace:
            self.copy_extensions_to_source()

    def copy_extensions_to_source(self) -> None:
        for name in ("_build.json", *(f"{name}.so" for name in STEPS)):
            built = Path(self.build_lib) / "fastgrow" / name
            (ROOT / "fastgrow" / name).unlink(missing_ok=True)
            if built.exists():
                shutil.copy2(built, ROOT / "fastgrow" / name)


class StableWheel(bdist_wheel):
    """Tags the wheel for any Python 3: the extension depends only on the platform and torch."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def native(name: str, folder: str, suffix: str) -> Extension:
    found = [*(ROOT / "csrc").glob("*.h"), *(ROOT / folder).glob("*")]
    files = sorted(file.relative_to(ROOT).as_posix() for file in found)
    sources = [file for file in files if file.endswith(suffix)]
    headers = [file for file in files if file.endswith((".h", ".inl", ".cuh"))]
    return Extension(f"fastgrow.{name}", sources, depends=headers, optional=True)


setup(
    # `kernels/` is installed as `fastgrow.kernels` and has no __init__.py: at the repository root a
    # top-level package of that name would shadow Hugging Face's `kernels`.
    packages=[*find_packages(include=["fastgrow", "fastgrow.*"]), "fastgrow.kernels"],
    package_dir={"fastgrow": "fastgrow", "fastgrow.kernels": "kernels"},
    ext_modules=[native("_C", "csrc/cpu", ".cpp"), native("_C_cuda", "csrc/cuda", ".cu")],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": StableWheel},
)
