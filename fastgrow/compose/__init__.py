"""Combining models: ensembles, the rules that merge their predictions, and `load`."""

from fastgrow.compose.adapter import Adapter
from fastgrow.compose.cache import EnsembleCache
from fastgrow.compose.callables import CallableExpert
from fastgrow.compose.distill import distill
from fastgrow.compose.ensemble import Ensemble
from fastgrow.compose.files import load
from fastgrow.compose.learned import LearnedWeights
from fastgrow.compose.logit_rules import Contrast, Temperature
from fastgrow.compose.per_request import PerRequest
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
from fastgrow.compose.support import TokenSupport, token_support
from fastgrow.compose.top_k import TopK
from fastgrow.compose.tune import tune

__all__ = [
    "Adapter",
    "CallableExpert",
    "Contrast",
    "Ensemble",
    "EnsembleCache",
    "LearnedWeights",
    "LogitRule",
    "Mean",
    "PerRequest",
    "Posterior",
    "ProbabilityMean",
    "ProbabilityRule",
    "Rule",
    "RuleState",
    "Temperature",
    "TokenSupport",
    "Tokens",
    "TopK",
    "Weighted",
    "distill",
    "load",
    "token_support",
    "tune",
]
