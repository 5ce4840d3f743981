"""Make the folder that a GPU machine without a network needs in addition to the working tree.

    make gpu-bundle               write build/gpu-bundle
    make gpu-bundle REHEARSE=1    and run it here on the CPU, without the packages in the bundle

The folder has wheels of packages that such a machine does not have, both extensions, a substrate
for the growth run and `run.sh`. It is made with the interpreter of `make oldest`: the GPU machine
has that version of torch, and an extension built against the oldest torch works with all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastgrow.errors import FastgrowError  # noqa: E402
from fastgrow.substrate import Substrate  # noqa: E402

MOST_BYTES = 30_000_000
ARCHITECTURES = "90"  # H100, H200
PYTHON = "3.12"
# Packages that fastgrow or a measured library needs and the GPU machine does not have. Their
# dependencies are installed there.
MISSING = ("msgspec", "freetype-py", "datasets", "dill", "multiprocess", "liger-kernel==0.8.5")
# Platform tags of wheels; pip accepts only those that are named.
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1")
# Packages that are installed for `make oldest` and that the GPU machine does not have, either.
TOOLS = ("kernels", "import-linter", "grimp", "mypy", "ruff", "fastgrow", "types-PyYAML")
REHEARSAL_SECONDS = 300


class BundleError(Exception):
    """Raised if the bundle cannot be made; the message states why."""


def make(folder: Path) -> None:
    """Make the folder, replacing an existing one.

    Raises:
        BundleError: an extension is not built, or the folder is too large.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    build_extensions(folder / "native")
    download_wheels(folder / "wheels")
    substrate = build_substrate()
    substrate.save(folder / "substrate")
    shutil.copyfile(ROOT / "scripts" / "gpu_run.sh", folder / "run.sh")
    facts = {
        "commit": git("rev-parse", "HEAD"),
        "changed": git("status", "--short").splitlines(),
        "torch": importlib.metadata.version("torch"),
        "architectures": ARCHITECTURES,
        "wheels": sorted(path.name for path in (folder / "wheels").iterdir()),
        "substrate": f"{substrate!r} {substrate.fingerprint}",
    }
    (folder / "bundle.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{folder}: {check_size(folder) / 1e6:.1f} MB")


def build_extensions(folder: Path) -> None:
    """Build both extensions and their record, which _native compares with the sources."""
    places = {name: ROOT / "build" / f"gpu-{name}" for name in ("lib", "temp")}
    environment = {
        **os.environ,
        "FASTGROW_BUILD_EXT": "cuda",
        "FASTGROW_CUDA_ARCHITECTURES": ARCHITECTURES,
    }
    options = [f"--build-{name}={place}" for name, place in places.items()]
    command = [sys.executable, "setup.py", "-q", "build_ext", *options]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    built = places["lib"] / "fastgrow"
    for name, state in json.loads((built / "_build.json").read_text()).items():
        if not state["built"]:
            raise BundleError(f"fastgrow.{name} is not built: {state['detail']}")
    folder.mkdir()
    for name in ("_C.so", "_C_cuda.so", "_build.json"):
        shutil.copy2(built / name, folder / name)


def download_wheels(folder: Path) -> None:
    machine = sysconfig.get_platform().rpartition("-")[2]
    target = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:"]
    target += [f"--platform={platform}_{machine}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder), *MISSING]
    subprocess.run(command, check=True)


def build_substrate() -> Substrate:
    """Build the substrate of nine-layers-unicode.

    Without the author's n-gram lists, build the default substrate, which is as large.
    """
    data = os.environ.get("FASTGROW_DATA", "")
    lists = Path(data) / "bvv241"
    if data and lists.is_dir():
        return Substrate.build("bvv241-2-3", ngrams=lists)
    print(
        "FASTGROW_DATA is not a folder with the author's n-gram lists (bvv241); "
        "using the default substrate"
    )
    return Substrate.build()


def check_size(folder: Path) -> int:
    """Return the size of all files in bytes.

    Raises:
        BundleError: it is more than MOST_BYTES.
    """
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        names = ", ".join(f"{p.relative_to(folder)} ({sizes[p] / 1e6:.1f} MB)" for p in largest)
        raise BundleError(
            f"{folder} has {total / 1e6:.1f} MB, but at most {MOST_BYTES / 1e6:.0f} MB are "
            f"allowed; the largest files are {names}"
        )
    return total


def rehearse(folder: Path) -> int:
    """Run the bundle here, with a Python that has only the packages of the GPU machine."""
    place = ROOT / "build" / "gpu-rehearsal"
    shutil.rmtree(place, ignore_errors=True)
    python = restricted_python(place / "venv")
    environment = {
        **os.environ,
        "PYTHON": str(python),
        "FASTGROW_WORK": str(place / "work"),
        "LIMIT": str(REHEARSAL_SECONDS),
    }
    command = ["bash", str(folder / "run.sh"), str(place / "out"), "--", "--rehearse"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def restricted_python(folder: Path) -> Path:
    """Make a Python whose packages are links to this one's, except those in the bundle."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    missing = {*TOOLS, *(name.partition("==")[0] for name in MISSING)}
    hidden = {top for name in missing for top in top_level(name)}
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        is_editable = entry.name.startswith("__editable__")
        if entry.name not in hidden and not is_editable and not entry.name.endswith(".pth"):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def top_level(name: str) -> Iterator[str]:
    """Yield a distribution's entries in site-packages; none if it is not installed."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        yield file.parts[0]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    try:
        make(folder)
    except (BundleError, FastgrowError, subprocess.CalledProcessError) as error:
        print(f"gpu-bundle: {error}", file=sys.stderr)
        return 1
    return rehearse(folder) if options.rehearse else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
