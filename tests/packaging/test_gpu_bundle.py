"""`make gpu-bundle`: its size, and its `run.sh` with a fake suite."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

# Writes its arguments and environment, and more files than allowed.
SUITE = """
    import json, os, pathlib, subprocess, sys, time
    import fastgrow, carried
    import fastgrow.kernels.probe
    out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    child = "import fastgrow.kernels.probe, carried; print(fastgrow.kernels.probe.VALUE)"
    seen = {
        "arguments": sys.argv[1:],
        "cwd": os.getcwd(),
        "built": (pathlib.Path(fastgrow.__file__).parent / "_C.so").read_text(),
        "child": subprocess.check_output([sys.executable, "-c", child], cwd="/", text=True).strip(),
        "caches": [os.environ["TRITON_CACHE_DIR"], os.environ["TORCHINDUCTOR_CACHE_DIR"]],
    }
    (out / "results.json").write_text(json.dumps(seen))
    (out / "record.jsonl").open("a").write("a case\\n")
    for i in range(12):
        (out / "parts" / str(i)).mkdir(parents=True, exist_ok=True)
        (out / "parts" / str(i) / "part.json").write_text("{}")
    print("the suite was here")
    if "SUITE_LEAVES" in os.environ:
        subprocess.Popen(["sleep", os.environ["SUITE_LEAVES"]], start_new_session=True)
    time.sleep(float(os.environ.get("SUITE_SLEEPS", 0)))
    sys.exit(int(os.environ.get("SUITE_STATUS", 0)))
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bundle() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "gpu_bundle.py")))


@pytest.fixture
def run_sh(tmp_path: Path) -> Run:
    """Runs run.sh in the root of a small tree, whose `fastgrow` has no kernels and extensions."""
    tree = tmp_path / "tree"
    files = {
        "benchmarks/__init__.py": "",
        "benchmarks/__main__.py": textwrap.dedent(SUITE),
        "fastgrow/__init__.py": "",
        "kernels/probe.py": "VALUE = 'probe'\n",
        "build/gpu-bundle/bundle.json": '{"commit": "abc"}\n',
        "build/gpu-bundle/native/_C.so": "the bundle's",
        "fastgrow/_C.so": "of this machine",
        ".venv/large": "",
    }
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    wheels = tree / "build" / "gpu-bundle" / "wheels"
    wheels.mkdir()
    facts = "Metadata-Version: 2.1\nName: carried\nVersion: 1\n"
    with zipfile.ZipFile(wheels / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr("carried-1.dist-info/METADATA", facts)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("carried-1.dist-info/WHEEL", tags)
        wheel.writestr("carried-1.dist-info/RECORD", "")
    shutil.copy2(ROOT / "scripts" / "gpu_run.sh", tree / "build" / "gpu-bundle" / "run.sh")

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"PYTHON": sys.executable, "FASTGROW_WORK": str(tmp_path / "work"), **environment}
        return subprocess.run(
            ["bash", "build/gpu-bundle/run.sh", *map(str, arguments)],
            cwd=tree,
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_run_uses_what_was_brought_and_packs_what_goes_back(run_sh: Run, tmp_path: Path) -> None:
    before = sorted((tmp_path / "tree").rglob("*"))
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    earlier.mkdir()
    (earlier / "record.jsonl").write_text("an earlier case\n")
    done = run_sh(out, earlier, "--", "--only", "mlp", SUITE_STATUS="3")
    # The suite's exit status: some row was wrong.
    assert done.returncode == 3, done.stdout + done.stderr
    seen = json.loads((out / "results.json").read_text())
    assert seen["built"] == "the bundle's"
    assert seen["child"] == "probe"
    assert seen["cwd"] == str(tmp_path / "work" / "tree")
    assert all(Path(cache).parent == tmp_path / "work" for cache in seen["caches"])
    given = seen["arguments"]
    assert given[0] == "gpu"
    assert given[-2:] == ["--only", "mlp"]
    # Nine minutes, less the setup and the time reserved for packing.
    assert 7 < float(given[given.index("--minutes") + 1]) <= 530 / 60
    assert (out / "record.jsonl").read_text() == "an earlier case\na case\n"
    assert "the suite was here" in (out / "log.txt").read_text()
    assert '"commit": "abc"' in (out / "log.txt").read_text()
    files = sorted(path.name for path in out.iterdir())
    names = ["environment.txt", "log.txt", "record.jsonl", "rest.tar.gz", "results.json"]
    assert files == names
    assert sorted((tmp_path / "tree").rglob("*")) == before


@pytest.mark.slow
def test_what_the_suite_leaves_running_is_not_waited_for(run_sh: Run, tmp_path: Path) -> None:
    started = time.monotonic()
    done = run_sh(tmp_path / "out", SUITE_LEAVES="60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 50
    assert "== packed after" in (tmp_path / "out" / "log.txt").read_text()


def test_run_says_where_it_has_to_be_started(run_sh: Run, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "tree" / "kernels")
    done = run_sh(tmp_path / "out")
    assert done.returncode == 2
    assert "is not the root of fastgrow's working tree" in done.stderr
    assert "usage" in run_sh().stderr


@pytest.mark.slow
def test_a_suite_that_does_not_end_is_stopped_in_time(run_sh: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_sh(out, LIMIT="16", SUITE_SLEEPS="600")
    assert done.returncode == 124, done.stdout + done.stderr
    assert (out / "rest.tar.gz").is_file()


def test_size_is_limited(bundle: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "substrate").mkdir()
    with (tmp_path / "substrate" / "large").open("wb") as file:
        file.truncate(bundle.MOST_BYTES)
    assert bundle.check_size(tmp_path) == bundle.MOST_BYTES
    (tmp_path / "one").write_text("1")
    with pytest.raises(
        bundle.BundleError, match=r"at most 30 MB are allowed; .*substrate/large \(30\.0 MB\)"
    ):
        bundle.check_size(tmp_path)
