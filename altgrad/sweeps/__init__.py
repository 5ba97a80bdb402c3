"""Many runs: which they are, who runs them, and what came of them. The store is the only memory."""

from altgrad.sweeps.driver import Sweep, Track
from altgrad.sweeps.folder import SweepFolder
from altgrad.sweeps.launchers.launcher import Job, Launcher, LauncherSpec
from altgrad.sweeps.plan import Plan, PlannedRun, make_plan
from altgrad.sweeps.result import SweepResult, sweep

__all__ = [
    "Job", "Launcher", "LauncherSpec", "Plan", "PlannedRun", "Sweep", "SweepFolder", "SweepResult", "Track",
    "make_plan", "sweep",
]  # fmt: skip
