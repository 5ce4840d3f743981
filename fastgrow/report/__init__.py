"""Pages and pictures from a run's records."""

from fastgrow.report.heat_strip import write_heat_strip
from fastgrow.report.inside import FolderKind, Wishes, write_page
from fastgrow.report.page import Report, table_text
from fastgrow.report.plots import Curve, growth_curves, matrix

__all__ = [
    "Curve",
    "FolderKind",
    "Report",
    "Wishes",
    "growth_curves",
    "matrix",
    "table_text",
    "write_heat_strip",
    "write_page",
]
