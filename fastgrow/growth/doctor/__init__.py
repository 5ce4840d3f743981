"""Check a growth run: active parameters are updated, frozen ones are not, and it can be resumed."""

from fastgrow.growth.doctor.doctor import diagnose
from fastgrow.growth.doctor.findings import CHECKS, Diagnosis, Finding

__all__ = ["CHECKS", "Diagnosis", "Finding", "diagnose"]
