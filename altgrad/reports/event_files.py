"""Curves from TensorBoard's event files: each folder that holds some is a run, named by its path.

Read by TensorBoard's own reader (the package tensorboard, without TensorFlow), every step of it. A step that was
written again after a resume counts as it was written last. Scalars are read in both forms: torch's and Lightning's
writers make simple values, TensorFlow's tensors.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.progress import progress
from altgrad.reports.compared_runs import foreign_run, name_and_seed
from altgrad.reports.loss_files import Reading, loss_key
from altgrad.reports.reading import Series

EVENTS = "*tfevents*"


def holds_events(folder: Path) -> bool:
    """Whether there are event files in a folder or up to two below it."""
    # Not deeper, since the folder may be anybody's: all of a disk takes minutes to look through.
    found = itertools.chain.from_iterable(folder.glob(above + EVENTS) for above in ("", "*/", "*/*/"))
    return folder.is_dir() and next(found, None) is not None


def read_event_files(folder: Path, key: str | None = None) -> Reading:
    """The runs below a folder. key: the tag of the values; found by its usual names where left out.

    ValueError where no run has such a tag; ImportError without the package tensorboard.
    """
    runs, chosen = [], key
    tags: dict[str, None] = {}
    for place, curves in _curves(folder):
        tags |= dict.fromkeys(curves)
        if not curves:
            continue
        try:
            chosen = loss_key(list(curves), chosen, str(place))
        except ValueError:
            continue
        name = place.absolute().name if place == folder else str(place.relative_to(folder))
        arm, seed = name_and_seed(name)
        runs.append(foreign_run(name, curves[chosen], arm=arm, seed=seed))
    if not runs:
        loss_key(list(tags), key, str(folder))  # says what is there
        raise ValueError(f"{folder} holds event files, but no curves.")
    return Reading(str(folder), runs, str(chosen))


def _curves(folder: Path) -> Iterator[tuple[Path, dict[str, Series]]]:
    """Folders with event files, and their curves by tag."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util import tensor_util
    except ImportError:
        raise ImportError(
            f'{folder} holds event files, which need tensorboard; pip install "altgrad[tensorboard]".'
        ) from None
    places = sorted({file.parent for file in folder.rglob(EVENTS)})
    for number, place in enumerate(places):
        progress("reading event files", number, len(places))
        events: Any = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        tags = events.Tags()
        curves = {tag: _series((e.step, e.value) for e in events.Scalars(tag)) for tag in tags["scalars"]}
        for tag in tags["tensors"]:
            values = [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
            if values and all(value.size == 1 and value.dtype.kind in "fiu" for _, value in values):
                curves[tag] = _series((step, float(value)) for step, value in values)
        yield place, curves


def _series(pairs: Iterator[tuple[int, float]]) -> Series:
    array = np.array(list(pairs), dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
