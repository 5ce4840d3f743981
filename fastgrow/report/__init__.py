"""Reports and figures from the records of runs."""

from fastgrow._terminal import table_text
from fastgrow.report.heat_strip import write_heat_strip
from fastgrow.report.inside import FolderKind, PageOptions, write_page
from fastgrow.report.page import Report
from fastgrow.report.plots import Curve, Unit, growth_curves, matrix, study_curves, study_lines

__all__ = [
    "Curve",
    "FolderKind",
    "PageOptions",
    "Report",
    "Unit",
    "growth_curves",
    "matrix",
    "study_curves",
    "study_lines",
    "table_text",
    "write_heat_strip",
    "write_page",
]
