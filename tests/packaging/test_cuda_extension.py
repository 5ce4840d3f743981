"""The CUDA extension compiles as setup.py would compile it; running it takes a device."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run

# Asks setup.py for its steps, as on a machine with a CUDA build of torch.
STEPS = """
import json, runpy, sys
from pathlib import Path
sys.argv = ["setup.py", "-q", "--name"]
setup = runpy.run_path("setup.py")
torch = setup["Torch"](Path(sys.argv[0]).parent / TORCH, "2.13.0", True)
sources = sorted(Path("csrc/cuda").resolve().glob("*.cu"))
steps = setup["cuda_steps"](torch, sources, Path(FOLDER), Path(FOLDER) / "_C_cuda.so")
print(json.dumps([step.command for step in steps]))
"""
NVDISASM = "triton/backends/nvidia/bin/nvdisasm"
# Three blocks of 256 threads on a multiprocessor.
REGISTERS = {"logit_mean_kernel": 80, "part_kernel": 80, "": 40}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[str]:
    """What ptxas says of every kernel on every architecture; the machine code is in `folder`."""
    code = STEPS.replace("FOLDER", repr(str(folder)))
    code = code.replace("TORCH", repr(str(Path(torch.__file__).parent)))
    *compile_, link = json.loads(run(sys.executable, "-c", code, cwd=ROOT).splitlines()[-1])
    assert {"-shared", "-ltorch_cuda"} <= set(link)
    extra = ["-Xptxas=-v", "--keep", f"--keep-dir={folder}"]

    def compile_one(command: list[str]) -> str:
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    with ThreadPoolExecutor() as pool:
        return list(pool.map(compile_one, compile_))


@pytest.mark.slow
def test_no_kernel_spills_or_takes_too_many_registers(reports: list[str]) -> None:
    pattern = r"entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores.*?Used (\d+) reg"
    found = re.findall(pattern, "\n".join(reports), re.DOTALL)
    assert {int(capability) for _, capability, _, _ in found} == {80, 90, 100}
    for kernel, capability, spilled, registers in found:
        limit = next(most for name, most in REGISTERS.items() if name in kernel)
        assert int(spilled) == 0, (kernel, capability)
        assert int(registers) <= limit, (kernel, capability, registers)
    kernels = {kernel for kernel, *_ in found}
    for name, count in (("logit_mean_kernel", 18), ("part_kernel", 12), ("argmax_kernel", 1)):
        assert sum(name in kernel for kernel in kernels) == count


@pytest.mark.slow
def test_eight_loads_of_sixteen_bytes_are_in_flight(reports: list[str], folder: Path) -> None:
    """Of four experts two packs each, before the first of them is used."""
    disassembler = Path(torch.__file__).parents[1] / NVDISASM
    if not disassembler.is_file():
        pytest.skip("triton's nvdisasm is not here")
    # What triton brings may not know the newest architecture.
    for capability in (80, 90):
        cubin = folder / f"logit_mean.compute_{capability}.cubin"
        code = subprocess.run(
            [disassembler, "-c", cubin], capture_output=True, text=True, check=True
        ).stdout
        functions = code.split(".section\t.text.")[1:]
        packed = [f for f in functions if re.search(r"LDG\.E[\w.]*128", f)]
        assert len(packed) == 9
        for function in packed:
            operations = re.findall(r"LDG\.E[\w.]*128|FFMA|FMUL|STG", function)
            loads = re.findall("L+", "".join(name[0] for name in operations))
            assert max(map(len, loads)) >= 8
