"""Interventions: what may step in when a run's numerics fail, one file each; off unless a spec asks."""

from altgrad.interventions.intervention import (
    Answer,
    Deed,
    Intervention,
    InterventionSpec,
    Moment,
    Subject,
)
from altgrad.interventions.roster import Intervened, Roster

__all__ = ["Answer", "Deed", "Intervened", "Intervention", "InterventionSpec", "Moment", "Roster", "Subject"]
