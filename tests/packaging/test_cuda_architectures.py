"""FASTGROW_CUDA_ARCHITECTURES selects the GPUs that the CUDA extension is built for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from conftest import ROOT, run

# Prints the result of setup.py for each value: nvcc's -gencode options of a file, or the error.
QUERY = """
import json, os, runpy, shutil, sys
from pathlib import Path
folder, *values = sys.argv[1:]
sys.argv = ["setup.py", "-q", "--name"]
setup = runpy.run_path("setup.py")
shutil.which = lambda name: name
torch = setup["Torch"](Path(folder), "2.11.0", True)
results = {}
for value in values:
    os.environ["FASTGROW_CUDA_ARCHITECTURES"] = value
    try:
        steps = setup["cuda_steps"](torch, [Path("a.cu")], Path("."), Path("a.so"))
        options = [o for o in steps[0].command if o.startswith("-gencode=")]
        results[value] = [option.partition("code=sm_")[2] or option for option in options]
    except setup["NotBuilt"] as error:
        results[value] = str(error)
print(json.dumps(results))
"""


def test_what_is_asked_for_is_built() -> None:
    values = ("", "90", "100;80", "9.0", "90,80", "all")
    folder = Path(torch.__file__).parent
    results = json.loads(
        run(sys.executable, "-c", QUERY, folder, *values, cwd=ROOT).splitlines()[-1]
    )
    # PTX for newer GPUs is that of the last architecture.
    assert results[""] == ["80", "90", "100", "-gencode=arch=compute_100,code=compute_100"]
    assert results["90"] == ["90", "-gencode=arch=compute_90,code=compute_90"]
    assert results["100;80"] == ["80", "100", "-gencode=arch=compute_100,code=compute_100"]
    for value in ("9.0", "90,80", "all"):
        assert results[value].startswith(f"FASTGROW_CUDA_ARCHITECTURES={value!r}: expected a list")
