"""One page with everything that a run folder contains."""

from fastgrow.report.inside.folders import FOLDERS, FolderKind
from fastgrow.report.inside.options import PageOptions
from fastgrow.report.inside.write import write_page

__all__ = ["FOLDERS", "FolderKind", "PageOptions", "write_page"]
