"""Making the page and putting it where it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastgrow import _files
from fastgrow.errors import ConfigError
from fastgrow.report.inside.folders import FOLDERS, FolderKind
from fastgrow.report.inside.wishes import Wishes
from fastgrow.report.page import Report

GENERATOR = "fastgrow report"


def write_page(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    wishes: Wishes | None = None,
    kinds: Sequence[FolderKind] = FOLDERS,
) -> Path:
    """Make one HTML file, with nothing outside it, of whatever a run's folder holds.

    What is missing or damaged in the folder is named on the page.

    Args:
        folder: of a growth run, of several runs such as a demo, or of a saved model.
        out: the file; by default `report.html` in a run's folder, `page.html` in a folder of runs,
            and beside a model's folder a file of its name.
        wishes: what to show beside the records.
        kinds: of folders, in the order in which they are tried.

    Returns:
        The file.

    Raises:
        ConfigError: the folder is missing or none of the kinds, or at `out` stands a file that this
            function did not write.
        OSError: the page cannot be written.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    kind = next((kind for kind in kinds if kind.recognises(folder)), None)
    if kind is None:
        raise ConfigError(
            f"{folder}: is no run's folder; expected one of a growth run (run.json, growth.json, "
            "metrics.jsonl), of several runs (demo.json), or of a saved model (config.json)"
        )
    page = kind.page(folder) if out is None else Path(out)
    _refuse_foreign(page)
    report = Report(f"{folder.name}: {kind.name}")
    kind.add(report, folder, wishes or Wishes())
    # A lone surrogate, which JSON can hold, is no text; it must not cost the page.
    text = report.html(folder, generator=GENERATOR, contents=True)
    _files.write_text(page, text.encode("utf-8", "replace").decode("utf-8"))
    return page


def _refuse_foreign(page: Path) -> None:
    """Leave alone what something else has written."""
    if not page.exists():
        return
    mark = f'<meta name="generator" content="{GENERATOR}">'
    if page.is_file():
        with page.open("rb") as file:
            if mark.encode() in file.read(500):
                return
    raise ConfigError(
        f"{page}: is not a page that `fastgrow report` wrote; it stays, so name another by --out"
    )
