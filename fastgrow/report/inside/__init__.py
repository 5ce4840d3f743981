"""A look inside a run: one page of whatever its folder holds."""

from fastgrow.report.inside.folders import FOLDERS, FolderKind
from fastgrow.report.inside.wishes import Wishes
from fastgrow.report.inside.write import write_page

__all__ = ["FOLDERS", "FolderKind", "Wishes", "write_page"]
