"""Growth: train a model in stages that insert blocks, train some and freeze all others.

`grow` (run.py) runs the stages of a `GrowthSchedule`; stage_run.py runs one stage.
"""

from fastgrow.growth.active import StageShape, stage_shape
from fastgrow.growth.moments import Moments
from fastgrow.growth.result import GrowthResult, StageResult
from fastgrow.growth.run import grow
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.stage import LoRA, Rates, Stage
from fastgrow.growth.stop_criteria import Budget, Plateau, StageLength, StopCriterion
from fastgrow.growth.trunk import Trunk
from fastgrow.training.lr_controller import StopDecision, StopRule
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
    "StageLength",
    "StageResult",
    "StageShape",
    "StopCriterion",
    "StopDecision",
    "StopRule",
    "Trunk",
    "grow",
    "stage_shape",
]
