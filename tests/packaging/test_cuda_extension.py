"""The CUDA extension compiles with setup.py's commands; running it would need a device."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT, run

# Prints setup.py's build steps, as on a machine with a CUDA build of torch.
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


class Kernel(NamedTuple):
    """Requirements on a kernel's machine code.

    Args:
        count: number of kernels with that name, at least one for each dtype.
        registers: maximum registers of a thread; 80 allow three blocks of 256 threads.
        loads: number of 16-byte loads that are issued before the first of them is used.
    """

    count: int
    registers: int
    loads: int = 0


# Of four experts two packs each, where there are registers enough. One part_kernel, the argmax of
# fp16 on sm_90, uses the first of its eight loads before it makes the last.
KERNELS = {
    "logit_mean_kernel": Kernel(9, 80, 8),
    "part_kernel": Kernel(6, 80, 7),
    "log_probability_kernel": Kernel(3, 48),
    "log_probability_backward_kernel": Kernel(3, 128, 8),
    "part_largest_kernel": Kernel(6, 80, 4),
    "argmax_kernel": Kernel(1, 32),
    "top_k_kernel": Kernel(1, 40),
    "draw_kernel": Kernel(3, 80),
    "draw_largest_kernel": Kernel(3, 128, 4),
    "philox_kernel": Kernel(1, 32),
    "masses_kernel": Kernel(1, 32),
    "mixture_kernel": Kernel(3, 80, 4),
    "part_divergence_kernel": Kernel(3, 80, 4),
    "divergence_kernel": Kernel(1, 32),
    "divergence_gradient_kernel": Kernel(3, 80, 4),
}
OPERATORS = {
    "logit_mean_out",
    "mean_log_probability_out",
    "mean_log_probability_backward_out",
    "mean_top_k_out",
    "mean_sample_out",
    "mean_sample_largest_out",
    "philox_uniform_",
    "probability_mean_out",
    "logit_kl_out",
    "logit_kl_gradient_",
}
# Loads a library in addition to that for a CPU, and prints what is registered.
REGISTERED = """
import json, sys
import torch
from fastgrow import _native
torch.ops.load_library(sys.argv[1])
found = {"cuda": {}, "native": {}}
for schema in torch._C._jit_get_all_schemas():
    library, _, name = schema.name.partition("::")
    if library in ("fastgrow_cuda", "fastgrow_native"):
        found[library.removeprefix("fastgrow_")][name] = {
            "arguments": [(a.name, str(a.type)) for a in schema.arguments],
            "has_kernel": torch._C._dispatch_has_kernel_for_dispatch_key(schema.name, "CUDA"),
        }
print(json.dumps(found))
"""
# The symbols of libtorch_cuda.so that a library for CUDA needs, if torch has no such library.
OF_CUDA = (
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
)

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def commands(folder: Path) -> list[list[str]]:
    """Those that compile, and last the one that links."""
    code = STEPS.replace("FOLDER", repr(str(folder)))
    code = code.replace("TORCH", repr(str(Path(torch.__file__).parent)))
    found: list[list[str]] = json.loads(run(sys.executable, "-c", code, cwd=ROOT).splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def link(commands: list[list[str]]) -> list[str]:
    assert {"-shared", "-ltorch_cuda"} <= {*commands[-1]}
    return commands[-1]


@pytest.fixture(scope="module")
def reports(commands: list[list[str]], folder: Path) -> list[str]:
    """ptxas's output for every kernel on every architecture; the machine code is in `folder`."""
    extra = ["-Xptxas=-v", "--keep", f"--keep-dir={folder}"]

    def compile_one(command: list[str]) -> str:
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    with ThreadPoolExecutor() as pool:
        return list(pool.map(compile_one, commands[:-1]))


def name_of(mangled: str) -> str:
    """Return `part_kernel` for `_ZN8fastgrow4cuda…11part_kernelINS0_…`; 11 is its length."""
    found = [name for name in KERNELS if f"{len(name)}{name}" in mangled]
    assert len(found) == 1, mangled
    return found[0]


@pytest.mark.slow
def test_no_kernel_spills_or_takes_too_many_registers(reports: list[str]) -> None:
    pattern = r"entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores.*?Used (\d+) reg"
    found = re.findall(pattern, "\n".join(reports), re.DOTALL)
    counts: Counter[tuple[str, str]] = Counter()
    for mangled, capability, spilled, registers in found:
        name = name_of(mangled)
        counts[name, capability] += 1
        assert int(spilled) == 0, (mangled, capability)
        assert int(registers) <= KERNELS[name].registers, (mangled, capability, registers)
    assert counts == {
        (name, capability): kernel.count
        for name, kernel in KERNELS.items()
        for capability in ("80", "90", "100")
    }


@pytest.mark.slow
def test_loads_of_sixteen_bytes_are_in_flight(reports: list[str], folder: Path) -> None:
    """Also from global memory: a pointer read from shared memory has no known address space."""
    disassembler = Path(torch.__file__).parents[1] / NVDISASM
    if not disassembler.is_file():
        pytest.skip("triton's nvdisasm is not here")
    seen = set()
    # The ptxas in triton may not support the newest architecture.
    for cubin in (
        c for capability in (80, 90) for c in folder.glob(f"*compute_{capability}.cubin")
    ):
        code = subprocess.run(
            [disassembler, "-c", cubin], capture_output=True, text=True, check=True
        ).stdout
        for function in code.split(".section\t.text.")[1:]:
            name = name_of(function.partition(",")[0])
            operations = re.findall(r"LDG\.E[\w.]*128|FFMA|FMUL|STG", function)
            runs = re.findall("L+", "".join(operation[0] for operation in operations))
            assert max(map(len, runs), default=0) >= KERNELS[name].loads, (name, cubin.name)
            assert not re.search(r"\b(LD|ST)\.E[\w.]*128", function), (name, cubin.name)
            seen.add(name)
    assert seen == {*KERNELS}


@pytest.mark.slow
def test_the_library_loads_and_its_operators_are_those_of_a_cpu(
    reports: list[str], link: list[str], folder: Path
) -> None:
    """Except for the plan and memory for parts of rows, which a GPU needs in addition."""
    assert reports
    libraries = Path(torch.__file__).parent / "lib"
    if not (libraries / "libtorch_cuda.so").is_file():
        stub = folder / "stub.c"
        stub.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in OF_CUDA))
        run("cc", "-shared", "-fPIC", stub, "-o", folder / "libtorch_cuda.so", cwd=folder)
    run(*link, f"-L{folder}", f"-Xlinker=-rpath={folder}", cwd=folder)
    printed = run(sys.executable, "-c", REGISTERED, folder / "_C_cuda.so", cwd=ROOT)
    found = json.loads(printed.splitlines()[-1])
    assert {name for name, operator in found["cuda"].items() if operator["has_kernel"]} == OPERATORS
    for name in OPERATORS & {*found["native"]} - {"probability_mean_out"}:
        of_gpu = [x for x in found["cuda"][name]["arguments"] if x[0] not in ("plan", "parts")]
        assert of_gpu == found["native"][name]["arguments"], name
