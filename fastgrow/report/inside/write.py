"""Write the page of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastgrow import _files
from fastgrow.errors import ConfigError
from fastgrow.report.inside.folders import FOLDERS, FolderKind
from fastgrow.report.inside.options import PageOptions
from fastgrow.report.page import Report

GENERATOR = "fastgrow report"


def write_page(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    options: PageOptions | None = None,
    kinds: Sequence[FolderKind] = FOLDERS,
) -> Path:
    """Write one self-contained HTML file with everything that a run folder contains.

    The page lists missing and damaged files of the folder.

    Args:
        folder: folder of a growth run, of several runs such as a demo, or of a saved model.
        out: path of the page. The default is `report.html` in the folder of a run, `page.html` in a
            folder of runs, and `NAME-report.html` next to the folder NAME of a model.
        options: what the page shows in addition to the records.
        kinds: kinds of folders, in the order in which they are tried.

    Returns:
        Path of the page.

    Raises:
        ConfigError: the folder does not exist or is of none of the kinds, or `out` exists and was
            not written by this function.
        OSError: the page cannot be written.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    kind = next((kind for kind in kinds if kind.recognises(folder)), None)
    if kind is None:
        raise ConfigError(
            f"{folder}: not a run folder; expected the folder of a growth run (run.json, "
            "growth.json, metrics.jsonl), of several runs (demo.json) or of a saved model "
            "(config.json)"
        )
    page = kind.page(folder) if out is None else Path(out)
    _refuse_foreign(page)
    report = Report(f"{folder.name}: {kind.name}")
    kind.add(report, folder, options or PageOptions())
    # JSON can contain lone surrogates, which UTF-8 cannot encode.
    text = report.html(folder, generator=GENERATOR, contents=True)
    _files.write_text(page, text.encode("utf-8", "replace").decode("utf-8"))
    return page


def _refuse_foreign(page: Path) -> None:
    """Raise ConfigError if the page exists and was not written by `fastgrow report`."""
    if not page.exists():
        return
    mark = f'<meta name="generator" content="{GENERATOR}">'
    if page.is_file():
        with page.open("rb") as file:
            if mark.encode() in file.read(500):
                return
    raise ConfigError(
        f"{page}: exists and was not written by `fastgrow report`; choose another path with --out"
    )
