"""`python -m benchmarks ship RESULTS`: the table that a run on a GPU made, put where launches look.

RESULTS is a folder that came back from the GPU's machine; this one needs no GPU.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import rehearsal
from benchmarks.results import load
from fastgrow import _files
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.kernels import tuned

TABLE = "tuning.json"
# How the note of a run's results begins that says how its tests on the device ended.
TESTED = "tests on the device: "


def ship(results: Path, folder: Path | None = None) -> Path:
    """Copy the tuning table of a GPU's results to where launches on such a GPU look for it.

    Returns:
        Where it is now: `folder`, or `kernels/tuning`, and the GPU's name.

    Raises:
        CheckpointError: there is no table or no results, or they cannot be read.
        ConfigError: tests failed on the device in that run, nothing was measured for a table, or it
            was a rehearsal.
    """
    if not results.is_dir():
        raise CheckpointError(f"{results}: expected a folder with results.json and {TABLE}")
    source = results / TABLE
    tree = _files.read_json(source)
    try:
        table = tuned.table_of(tree)
        gpu = str(tree["device"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{source} is no tuning table: {error}") from error
    if gpu == rehearsal.DEVICE:
        raise ConfigError(f"{source} is not shipped: it is of a rehearsal, not of a GPU")
    red = [n for n in load(results / "results.json").notes if n.startswith(f"{TESTED}failed")]
    if red:
        raise ConfigError(f"{source} is not shipped: {red[0]}")
    if not (table.entries or table.native):
        raise ConfigError(f"{source} is not shipped: it has no entry")
    path = tuned.path_of(gpu, folder)
    _files.write_json(path, tree)
    return path
