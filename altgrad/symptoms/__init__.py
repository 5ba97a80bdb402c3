"""Failure modes as data, what of them a run's metrics show, and what to try that the run has not got."""

from altgrad.symptoms.cures import Cure, cures_of, fitting_remedies
from altgrad.symptoms.symptoms import (
    APPLIED,
    LOST,
    MOSTLY_DEAD,
    PHASES,
    SLOTS,
    SYMPTOMS,
    Examination,
    Finding,
    Phase,
    Symptom,
    findings,
    grouped,
    is_stalled,
    is_suspicious,
    phase_of_site,
)  # fmt: skip

__all__ = [
    "APPLIED", "LOST", "MOSTLY_DEAD", "PHASES", "SLOTS", "SYMPTOMS", "Cure", "Examination", "Finding", "Phase",
    "Symptom", "cures_of", "findings", "fitting_remedies", "grouped", "is_stalled", "is_suspicious", "phase_of_site",
]  # fmt: skip
