"""Interventions: what may step in when a run's numerics fail, one file each; off unless a spec asks."""

from altgrad.interventions.intervention import (
    Action,
    Answer,
    Intervention,
    InterventionSpec,
    Moment,
    Subject,
)
from altgrad.interventions.intervention_set import NOT_INTERVENED, Intervened, InterventionSet

__all__ = [
    "NOT_INTERVENED",
    "Action",
    "Answer",
    "Intervened",
    "Intervention",
    "InterventionSet",
    "InterventionSpec",
    "Moment",
    "Subject",
]
