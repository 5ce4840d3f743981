"""Proof, on a user's own run, that what is to move moves and what is to rest rests."""

from fastgrow.growth.doctor.doctor import diagnose
from fastgrow.growth.doctor.findings import CHECKS, Diagnosis, Finding

__all__ = ["CHECKS", "Diagnosis", "Finding", "diagnose"]
