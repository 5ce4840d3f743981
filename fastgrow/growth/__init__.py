"""Growth: schedule → stage → freeze → stack, with a state that survives being stopped anywhere."""

from fastgrow.growth.active import StageShape, stage_shape
from fastgrow.growth.result import GrowthResult, StageResult
from fastgrow.growth.run import grow
from fastgrow.growth.schedule import GrowthSchedule, LoRA, Stage
from fastgrow.growth.when import Budget, Plateau

__all__ = [
    "Budget",
    "GrowthResult",
    "GrowthSchedule",
    "LoRA",
    "Plateau",
    "Stage",
    "StageResult",
    "StageShape",
    "grow",
    "stage_shape",
]
