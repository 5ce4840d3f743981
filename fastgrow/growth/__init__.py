"""Growth: schedule → stage → freeze → stack, with a state that survives being stopped anywhere."""

from fastgrow.growth.run import GrowthResult, StageResult, grow
from fastgrow.growth.schedule import GrowthSchedule, Stage

__all__ = ["GrowthResult", "GrowthSchedule", "Stage", "StageResult", "grow"]
