"""study.json: the settings that a study's folder stands for."""

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
# More seeds are more of the same study; reference and lines are for its readers.
_FREE = ("seeds", "reference", "lines")


def claim_study(
    settings: StudySettings, folders: Sequence[Path], out: Path, *, extend: bool = False
) -> Study:
    """Begin a study in a folder, or go on with the one there.

    Args:
        settings: the study.
        folders: where its texts' files are.
        out: its folder.
        extend: go on in the folder of a study of other settings. Finished runs that are the same in
            both are used again, others are made beside the old ones, whose results are kept under
            another name.

    Raises:
        ConfigError: the folder holds a study of other settings, and `extend` is not set; or a
            training or rule of the study cannot be. The folder is as it was.
    """
    path = out / RECORD
    plain, difference = stated(settings), ""
    if path.exists():
        difference = _difference(stated(read_record(out).settings), plain)
        if difference and not extend:
            raise ConfigError(
                f"{out}: holds a study of other settings: {difference}. Choose another folder, go "
                "on with the old settings, or pass --extend to make what is new beside what is "
                "there"
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
    """The study that stands in a folder."""
    record = _files.read_json(out / RECORD)
    settings = changed(StudySettings, str(out / RECORD), record["settings"])
    return Study(settings, [Path(folder) for folder in record["folders"]], out)


def _difference(there: Any, here: Any, place: str = "") -> str:
    """The first place where two trees differ, in words; "" where they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            if not place and key in _FREE:
                continue
            inner = f"{place}.{key}" if place else key
            if key not in there or key not in here:
                return f"{inner} is {'new' if key in here else 'gone'}"
            if difference := _difference(there[key], here[key], inner):
                return difference
        return ""
    return "" if there == here else f"{place} was {there!r} and is {here!r}"


def _keep(out: Path) -> None:
    """Put the record and results of the study that was here aside, under the first free number."""
    number = 1
    while any(out.glob(f"old-{number}-*")):
        number += 1
    for name in (RECORD, "results.json", "report.md", "report.html"):
        if (out / name).exists():
            (out / name).replace(out / f"old-{number}-{name}")
