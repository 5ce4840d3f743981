"""Studies: trainings, their controls and their compositions over seeds, in one resumable folder."""

from fastgrow.study.run import StudyReport, run_study
from fastgrow.study.settings import StudySettings

__all__ = ["StudyReport", "StudySettings", "run_study"]
