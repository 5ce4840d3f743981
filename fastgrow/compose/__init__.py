"""Several models that speak as one: rules, ensembles, and `load` for whatever was saved."""

from fastgrow.compose.cache import EnsembleCache
from fastgrow.compose.callables import CallableExpert
from fastgrow.compose.distill import distill
from fastgrow.compose.ensemble import Ensemble
from fastgrow.compose.files import load
from fastgrow.compose.logit_rules import Contrast, Temperature
from fastgrow.compose.posterior import Posterior
from fastgrow.compose.rules import (
    LogitRule,
    Mean,
    ProbabilityMean,
    ProbabilityRule,
    Rule,
    RuleState,
    Tokens,
    Weighted,
)
from fastgrow.compose.top_k import TopK

__all__ = [
    "CallableExpert",
    "Contrast",
    "Ensemble",
    "EnsembleCache",
    "LogitRule",
    "Mean",
    "Posterior",
    "ProbabilityMean",
    "ProbabilityRule",
    "Rule",
    "RuleState",
    "Temperature",
    "Tokens",
    "TopK",
    "Weighted",
    "distill",
    "load",
]
