"""study.json: the settings of the study in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastgrow import _files
from fastgrow.errors import ConfigError
from fastgrow.study.compose import check_ensembles
from fastgrow.study.plan import Study, stated
from fastgrow.study.settings import StudySettings, changed

RECORD = "study.json"
# Settings that may change in an existing folder: further seeds extend the same study, and
# reference and lines affect the report only.
_FREE = ("seeds", "reference", "lines")


def claim_study(
    settings: StudySettings, folders: Sequence[Path], out: Path, *, extend: bool = False
) -> Study:
    """Start a study in a folder, or continue the study that is there.

    Args:
        settings: settings of the study.
        folders: folders in which the texts' files are searched.
        out: folder of the study.
        extend: continue in a folder whose study has other settings. Finished runs that are the same
            in both studies are reused, new runs are added next to the old ones, and the old results
            are renamed.

    Raises:
        ConfigError: the folder holds a study with other settings and `extend` is not set, or a
            training or rule of the study is not valid. The folder is then not changed.
    """
    path = out / RECORD
    plain, difference = stated(settings), ""
    if path.exists():
        difference = _difference(stated(read_record(out).settings), plain)
        if difference and not extend:
            raise ConfigError(
                f"{out}: holds a study with other settings: {difference}. Choose another folder, "
                "use the old settings, or pass --extend to add the new runs to this folder"
            )
    study = Study(settings, folders, out)
    for name in settings.trainings:
        study.run(name, settings.seeds[0])
    check_ensembles(study)
    if difference:
        _keep(out)
    _files.write_json(
        path, {"settings": plain, "folders": [str(folder.resolve()) for folder in folders]}
    )
    return study


def read_record(out: Path) -> Study:
    """Load the study in a folder."""
    record = _files.read_json(out / RECORD)
    settings = changed(StudySettings, str(out / RECORD), record["settings"])
    return Study(settings, [Path(folder) for folder in record["folders"]], out)


def _difference(there: Any, here: Any, place: str = "") -> str:
    """Describe the first difference between two trees; "" if they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            if not place and key in _FREE:
                continue
            inner = f"{place}.{key}" if place else key
            if key not in there or key not in here:
                return f"{inner} was {'added' if key in here else 'removed'}"
            if difference := _difference(there[key], here[key], inner):
                return difference
        return ""
    return "" if there == here else f"{place} was {there!r} and is now {here!r}"


def _keep(out: Path) -> None:
    """Rename the old study's record and results to old-N-…, with the first free number N."""
    number = 1
    while any(out.glob(f"old-{number}-*")):
        number += 1
    for name in (RECORD, "results.json", "report.md", "report.html"):
        if (out / name).exists():
            (out / name).replace(out / f"old-{number}-{name}")
