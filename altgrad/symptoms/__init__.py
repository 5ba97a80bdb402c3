"""Failure modes as data, what of them a run's metrics show, and what to try that the run has not got."""

from altgrad.symptoms.cures import Cure, cures_of, fitting_remedies
from altgrad.symptoms.symptoms import SYMPTOMS, Finding, Symptom, findings, grouped, split_key

__all__ = [
    "SYMPTOMS",
    "Cure",
    "Finding",
    "Symptom",
    "cures_of",
    "findings",
    "fitting_remedies",
    "grouped",
    "split_key",
]
