"""Pages and pictures from a run's records."""

from fastgrow.report.page import Report, table_text
from fastgrow.report.plots import Curve, growth_curves, matrix

__all__ = ["Curve", "Report", "growth_curves", "matrix", "table_text"]
