"""Growth: schedule → stage → freeze → stack, with a state that survives being stopped anywhere."""

from fastgrow.growth.active import StageShape, stage_shape
from fastgrow.growth.moments import Moments
from fastgrow.growth.result import GrowthResult, StageResult
from fastgrow.growth.run import grow
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.stage import LoRA, Rates, Stage
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.when import Budget, Plateau
from fastgrow.training.optimizer import Rate

__all__ = [
    "Budget",
    "GrowthResult",
    "GrowthSchedule",
    "LoRA",
    "Moments",
    "Plateau",
    "Rate",
    "Rates",
    "Stage",
    "StageResult",
    "StageShape",
    "Trunk",
    "grow",
    "stage_shape",
]
