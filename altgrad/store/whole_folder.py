"""A folder that appears complete or not at all: filled under a name aside, renamed when it is whole.

Whatever ends the block, an interrupt and a full disk among them, takes what was written with it.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from altgrad.store.files import fsync

__all__ = ["appearing_whole", "require_vacant"]


def require_vacant(folder: Path) -> None:
    """ValueError if something is there that writing would replace; an empty folder is nothing."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} already exists; choose another path or delete it.")


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends, and vanishes if the block fails."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.aside")
    aside.mkdir()
    try:
        yield aside
        fsync(aside)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync(folder.parent)
