"""Many runs: which they are, who runs them, and what came of them. The store is the only memory."""

from altgrad.sweep.folder import SweepFolder
from altgrad.sweep.launchers.launcher import Job, Launcher, LauncherSpec
from altgrad.sweep.plan import Plan, Planned, make_plan
from altgrad.sweep.sweep import Sweep, Track

__all__ = ["Job", "Launcher", "LauncherSpec", "Plan", "Planned", "Sweep", "SweepFolder", "Track", "make_plan"]
