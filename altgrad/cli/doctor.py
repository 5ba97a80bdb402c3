"""`altgrad doctor`: what this machine has and lacks, with remedies: `altgrad.training.machine`, drawn.

Exit code 0 whatever is found: a warning is advice, and what stops a run says so itself.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from altgrad.cli import console


def doctor(
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check what this machine has and what it lacks.

    Torch, compiler, BF16 speed, extras and disk space, and what to do about what is missing.
    """
    if not as_json and sys.stderr.isatty():
        console.say("Loading torch and measuring, some seconds ...", sys.stderr)
    from altgrad.training.machine import examine

    checks = []
    with console.one_line_errors():
        for check in examine(runs):
            checks.append(check)
            if not as_json:
                console.say(f"{check.name:<18} {check.found}")
                if check.warning:
                    console.say(f"{'':<18} ! {check.warning}")
    warnings = sum(bool(check.warning) for check in checks)
    if as_json:
        rows = [{"check": c.name, "found": c.found, "warning": c.warning or None, **c.facts} for c in checks]
        console.print_json({"warnings": warnings, "checks": rows})
    else:
        console.say(f"{warnings or 'No'} {'warning' if warnings == 1 else 'warnings'}.")
