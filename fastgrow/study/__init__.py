"""Studies: trainings, controls and ensembles for several seeds, in one resumable folder."""

from fastgrow.study.run import StudyReport, run_study
from fastgrow.study.settings import StudySettings

__all__ = ["StudyReport", "StudySettings", "run_study"]
