"""Which commit of AltGrad is running, where it runs from a checkout: what a version number does not say."""

import subprocess
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


@cache
def revision(root: Path = HERE) -> str | None:
    """The commit that is checked out in the folder, with `-dirty` behind it if a file it tracks was changed.

    None where the folder is not the top of a git checkout, as for an installed package, or git does not answer.
    """
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        return (
            _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if Path(top) == root else None
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
