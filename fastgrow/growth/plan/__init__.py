"""A growth run counted and timed before it is run."""

from fastgrow.growth.plan.outcome import Plan, StagePlan
from fastgrow.growth.plan.plan import make_plan

__all__ = ["Plan", "StagePlan", "make_plan"]
