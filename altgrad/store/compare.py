"""What makes runs different: the lines of their specs, and the first number in which two of them part.

Specs are compared as trees, leaf by leaf, under dotted paths (`model.layers`, `monitors.0.every`); for people by the
largest parts that differ (`differing_parts`), since a rule that one run lacks is one difference and not its 37 leaves.
Metrics are compared exactly: two runs of one spec are meant to agree to the last bit, so the first difference is the
interesting one, however small. Keys under `time/` depend on the clock and do not count.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any

from altgrad.document import Document
from altgrad.store.files import spell_nonfinite
from altgrad.store.runs import SPEC, Run

ABSENT = "absent"
USUAL: tuple[Any, ...] = (None, "same", "shared", "nearest_even", "current", ABSENT, [], {})
"""What goes without saying in a part of a spec."""


@dataclass(frozen=True)
class SpecDifference:
    """One leaf that differs; a side without it reads `absent`."""

    path: str
    first: Any
    second: Any


@dataclass(frozen=True)
class MetricDifference:
    """The first step and key at which two runs' metrics differ; None: that run has no such value (or ended before)."""

    step: int
    key: str
    first: float | None
    second: float | None


def spec_differences(first: Run, second: Run) -> list[SpecDifference]:
    """The leaves in which the two stored specs differ, in the first one's order; ValueError if one is damaged."""
    ours, theirs = (dict(leaves(Document.parse(run.spec_text(), str(run.path / SPEC)).data)) for run in (first, second))
    paths = list(dict.fromkeys((*ours, *theirs)))
    pairs = ((path, ours.get(path, ABSENT), theirs.get(path, ABSENT)) for path in paths)
    return [SpecDifference(*pair) for pair in pairs if not _same(pair[1], pair[2])]


def first_metric_difference(first: Run, second: Run) -> MetricDifference | None:
    """Where the metrics part; None if they agree from first to last. Reads no further than the difference."""
    for ours, theirs in zip_longest(_by_step(first.metrics()), _by_step(second.metrics())):
        if ours is None or theirs is None or ours[0] != theirs[0]:
            # The step that comes first is the one the other run lacks.
            step, values, is_ours = min((side[0], side[1], side is ours) for side in (ours, theirs) if side is not None)
            key, value = next(iter(values.items()), ("step", float(step)))
            return MetricDifference(step, key, value if is_ours else None, None if is_ours else value)
        for key in dict.fromkeys((*ours[1], *theirs[1])):
            pair = ours[1].get(key), theirs[1].get(key)
            if not _same(*pair):
                return MetricDifference(ours[0], key, *pair)
    return None


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every scalar, and of every empty list or mapping."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, Mapping):
        children = tree.items()
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        children = enumerate(tree)
    empty = True
    for name, child in children:
        empty = False
        yield from leaves(child, f"{path}.{name}" if path else str(name))
    if empty:
        yield path, tree


def differing_parts(trees: Sequence[Any], path: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(dotted path, the part of each tree) for the largest parts that differ.

    A part is taken apart only where all trees have one with fields, and of two kinds only the fields that both have.
    """
    if all(isinstance(tree, Mapping) and tree for tree in trees):
        keys = list(dict.fromkeys(key for tree in trees for key in tree))
        if len({repr(tree.get("kind")) for tree in trees}) > 1:
            keys = [key for key in keys if key == "kind" or all(key in tree for tree in trees)]
        children = [(key, tuple(tree.get(key, ABSENT) for tree in trees)) for key in keys]
    elif all(isinstance(tree, list | tuple) and tree for tree in trees):
        longest = max(map(len, trees))
        children = [(i, tuple(tree[i] if i < len(tree) else ABSENT for tree in trees)) for i in range(longest)]
    else:
        if not all(_same(trees[0], tree) for tree in trees):
            yield path, tuple(trees)
        return
    for key, parts in children:
        yield from differing_parts(parts, f"{path}.{key}" if path else str(key))


def in_words(part: Any) -> str:
    """A part of a spec in one line, as short as a spec would have it: `e4m3fn delayed`; `none` for an empty one."""
    if isinstance(part, Mapping):
        if "format" in part or "kind" in part:
            head = [str(part[key]) for key in ("kind", "format") if part.get(key)]
            inner = part.get("scaling")
            scaling = inner.get("kind") if isinstance(inner, Mapping) else inner
            return " ".join(head + [str(each) for each in (part.get("rounding"), scaling) if each not in USUAL])
        said = [(str(key), in_words(value)) for key, value in part.items() if value not in USUAL]
        return ", ".join(f"{key} {words}" for key, words in said if words != "none") or "none"
    if isinstance(part, list | tuple):
        return "; ".join(map(in_words, part)) or "none"
    if part is None:
        return "none"
    return part if isinstance(part, str) else json.dumps(spell_nonfinite(part), ensure_ascii=False, default=str)


def _by_step(rows: Iterable[Mapping[str, float]]) -> Iterator[tuple[int, dict[str, float]]]:
    """Neighbouring rows of one step as one, without `step` and the clock's keys."""
    for step, group in groupby(rows, key=lambda row: int(row["step"])):
        merged = {key: value for row in group for key, value in row.items()}
        yield step, {key: value for key, value in merged.items() if key != "step" and not key.startswith("time/")}


def _same(first: Any, second: Any) -> bool:
    """Equal in type and value; a NaN is the same as a NaN, and -0.0 is not 0.0."""
    return type(first) is type(second) and repr(first) == repr(second)
