"""Estimate the FLOPs, memory and time of a growth run before it is started."""

from fastgrow.growth.plan.outcome import Plan, StagePlan
from fastgrow.growth.plan.plan import make_plan

__all__ = ["Plan", "StagePlan", "make_plan"]
