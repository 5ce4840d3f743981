"""`python -m benchmarks ship RESULTS`: install the tuning table of a run on a GPU machine.

RESULTS is the results folder copied from the GPU machine; this command needs no GPU.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import rehearsal
from benchmarks.results import load
from fastgrow import _files
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.kernels import tuned

TABLE = "tuning.json"
# Prefix of the note in a run's results on the outcome of its tests on the device.
TESTED = "tests on the device: "


def ship(results: Path, folder: Path | None = None) -> Path:
    """Copy the tuning table of a GPU's results to the folder from which launches load tables.

    Args:
        results: folder with results.json and tuning.json.
        folder: folder to copy to; None for `kernels/tuning`.

    Returns:
        The path of the installed table, which is named after the GPU.

    Raises:
        CheckpointError: there is no table or no results, or they cannot be read.
        ConfigError: tests failed on the device in that run, the table has no entry, or the run was
            a rehearsal.
    """
    if not results.is_dir():
        raise CheckpointError(f"{results}: expected a folder with results.json and {TABLE}")
    source = results / TABLE
    tree = _files.read_json(source)
    try:
        table = tuned.table_of(tree)
        gpu = str(tree["device"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{source}: is not a tuning table: {error}") from error
    if gpu == rehearsal.DEVICE:
        raise ConfigError(f"{source} is not installed: it is from a rehearsal, not from a GPU")
    failed = [n for n in load(results / "results.json").notes if n.startswith(f"{TESTED}failed")]
    if failed:
        raise ConfigError(f"{source} is not installed: {failed[0]}")
    if not (table.entries or table.native):
        raise ConfigError(f"{source} is not installed: it has no entry")
    path = tuned.path_of(gpu, folder)
    _files.write_json(path, tree)
    return path
