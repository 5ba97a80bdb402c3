"""`--set path=value`: one value of a spec changed before it is validated.

The path is dotted, entries of a list go by number, the value is YAML. An assignment changes the spec *as it would be
read*, so a path may lead through what is written short or not written at all:

    monitors: [range]        --set monitors.0.every=5        monitors: [{kind: range, every: 5}]
    weight: e4m3fn           --set weight.rounding=...       weight: {format: e4m3fn, rounding: ...}
    (no schedule)            --set schedule.warmup=10        schedule: {kind: cosine, warmup: 10, ...its defaults}
    (what a file says)       --set precision=@policy.yaml    the file, or what it has under `precision`

A new entry may be set right behind the last of a list. A path that means nothing is set all the same where it can be,
for validation to complain about with all it knows; only one that leads through a plain value is an error here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from altgrad.document import ASSIGNED, Document, Key, Location, SpecError
from altgrad.spec.annotations import Shape, alternatives, below, expand, plain
from altgrad.spec.credentials import REMEDY, asks_for_secret, looks_secret, refuse_credentials
from altgrad.spec.messages import dotted, show

LONGEST_ORIGIN = 80


def assign(document: Document, cls: type[Shape], assignment: str) -> None:
    """Apply one `path=value` to a document that `cls` will read. Raises SpecError, placed `--set path=value`."""
    path, equals, text = assignment.partition("=")
    path = path.strip()
    parts = path.split(".")
    if any(asks_for_secret(part) for part in parts) or looks_secret(text, parts[-1]) or looks_secret(path):
        raise SpecError("--set" if looks_secret(path) else f"--set {path}", f"this looks like a secret; {REMEDY}.")
    if not equals or "" in parts:
        raise SpecError(
            f"--set {assignment[:LONGEST_ORIGIN]}", "write --set path=value, as in --set optimizer.lr=1e-3."
        )
    try:
        value = _of_file(text[1:], parts[-1]) if text.startswith("@") else Document.parse(text, "").data
    except SpecError as error:
        raise SpecError(f"--set {path}" if not error.where else f"--set {path}={text}", error.message) from None
    put(document, cls, parts, value, f"{ASSIGNED}{assignment}")


def _of_file(name: str, key: str) -> Any:
    """What a YAML or JSON file holds: under the key, where it has that, as what writes a part names it, too."""
    data = Document.load(Path(name)).data
    return data[key] if isinstance(data, dict) and key in data else data


def assign_all(document: Document, cls: type[Shape], assignments: Iterable[str]) -> None:
    """Apply them in order. Raises SpecError, with all those that mean nothing."""
    wrong: list[SpecError] = []
    for assignment in assignments:
        try:
            assign(document, cls, assignment)
        except SpecError as error:
            wrong.append(error)
    if wrong:
        raise SpecError.of(wrong)


def put(document: Document, cls: type[Shape], parts: list[str], value: Any, origin: str) -> None:
    """Set the value at a path, whatever its source; `origin` (cut to 80 characters) is its place in error messages."""
    origin = shortened(origin)
    if document.data is None:
        document.data = {}
    node: Any = document.data
    annotation: Any = cls
    location: Location = ()
    for part in parts[:-1]:
        key = _entry(node, part, location, origin)
        under = below(annotation, node, key)
        child = _child(node, key)
        if child is None:
            child = _default(annotation, node, key)
            document.values[*location, key] = document.keys[*location, key] = origin
        child = expand(under, child) if under is not None else child
        _store(node, key, child)
        node, annotation, location = child, under, (*location, key)
    key = _entry(node, parts[-1], location, origin)
    _store(node, key, value)
    location = (*location, key)
    for places in (document.values, document.keys):
        for known in [known for known in places if known[: len(location)] == location]:
            del places[known]
        places[location] = origin
    refuse_credentials(document, location)


def shortened(origin: str) -> str:
    """The place of an assignment in messages, as one that is not too long."""
    return origin if len(origin) <= LONGEST_ORIGIN else origin[: LONGEST_ORIGIN - 3] + "..."


def _entry(node: Any, part: str, location: Location, origin: str) -> Key:
    """The key or index that a part of the path means in a node."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise SpecError(origin, f"{dotted(location)} is {show(node)}: it has no '{part[:60]}' to set.")
    if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) <= len(node)):
        entries = f"entries 0 to {len(node) - 1}" if node else "no entries"
        raise SpecError(
            origin, f"{dotted(location)} has {entries}; {len(node)} adds one, '{part[:60]}' is none of them."
        )
    return int(part)


def _child(node: Any, key: Key) -> Any:
    try:
        return node[key]
    except LookupError:
        return None


def _store(node: Any, key: Key, value: Any) -> None:
    if isinstance(node, list) and key == len(node):
        node.append(value)
    else:
        node[key] = value


def _default(annotation: Any, node: Any, key: Key) -> Any:
    """What an unwritten part would be read as, in plain data; an empty mapping where that is nothing."""
    for option in alternatives(annotation) if annotation is not None else ():
        member = option.shape and option.shape.member(node)
        if member and (info := member.model_fields.get(str(key))) and not info.is_required():
            default = plain(info.get_default(call_default_factory=True))
            return {} if default is None else default
    return {}
