"""A growth run counted and timed before it is run."""

from fastgrow.growth.plan.plan import Plan, StagePlan, make_plan

__all__ = ["Plan", "StagePlan", "make_plan"]
