"""Pydantic's findings in our words: `optimizer.lr is 'fast'; it takes a number, 0 or more.`

Only the place and the sort of a finding are pydantic's. What the field takes is said from its annotation, so one
sentence serves wrong types, limits, lengths and choices alike; unknown and missing keys have their own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from altgrad.document import Document, Location, SpecError
from altgrad.spec.annotations import Shape, alternatives, follow_location, words
from altgrad.spec.messages import LONGEST, LocatedError, WrongTypeError, did_you_mean, dotted, kind_meant, show


@dataclass(frozen=True)
class Complaint:
    """One thing wrong. `key`: its place is the key and not the value. `suggests`: the keys that may have been meant."""

    location: Location
    message: str
    key: bool = False
    missing: bool = False
    suggests: frozenset[str] = frozenset()


def complaints(error: ValidationError, cls: type[Shape], data: Any) -> list[Complaint]:
    """All that is wrong, each thing once; a missing key that another key may have been meant for does not count."""
    found = list(dict.fromkeys(_complaints(error, cls, data)))
    meant = {(*one.location[:-1], key) for one in found for key in one.suggests}
    return [one for one in found if not (one.missing and one.location in meant)]


def as_error(
    found: Sequence[Complaint], document: Document, blamed: Callable[[Complaint], str | None] = lambda _: None
) -> SpecError:
    """The complaints as one error, in the order of the document; what stands in it comes before what is missing.

    blamed: the place to name for a complaint, None for the document's own.
    """
    named = [blamed(one) for one in found]
    places = [
        document.where(one.location, key=one.key) if name is None else name
        for one, name in zip(found, named, strict=True)
    ]
    ranked = sorted(zip(found, places, strict=True), key=lambda pair: (pair[0].missing, *_line_and_column(pair[1])))
    return SpecError.of([SpecError(place, one.message) for one, place in ranked])


def _line_and_column(place: str) -> tuple[int, int]:
    """Of `file:line:column`; places without them (`--set`) come last."""
    parts = place.rsplit(":", 2)
    return (int(parts[1]), int(parts[2])) if len(parts) == 3 and (parts[1] + parts[2]).isdigit() else (1 << 30, 0)


def _complaints(error: ValidationError, cls: type[Shape], data: Any) -> Iterator[Complaint]:
    for found in error.errors(include_url=False):
        raw: Location = tuple(found["loc"])
        is_missing = found["type"] == "missing" and isinstance(raw[-1], str)
        if found["type"] == "missing" and not is_missing:
            raw = raw[:-1]  # a list that is too short is reported at the entry it lacks
        # Beyond what the annotations know, pydantic adds names of union members and the like.
        location, annotation, holder = follow_location(cls, data, raw)
        cause = found.get("ctx", {}).get("error")
        if found["type"] == "extra_forbidden" and holder is not None:
            yield _unknown_key((*location, raw[len(location)]), holder)
        elif is_missing:
            yield Complaint(location, f"{dotted(location)} is missing; it takes {words(annotation)}.", missing=True)
        elif isinstance(cause, LocatedError):
            yield Complaint((*location, *cause.location), str(cause))
        elif cause is not None and not isinstance(cause, WrongTypeError):
            yield Complaint(location, str(cause))
        else:
            value = found["input"]
            message = f"{dotted(location)} is {show(value)}; it takes {words(annotation)}."
            yield Complaint(location, message + _meant(value, annotation))


def _unknown_key(location: Location, holder: type[Shape]) -> Complaint:
    key, known = str(location[-1]), list(holder.model_fields)
    hint = did_you_mean(key, known) or (f" It takes {', '.join(known)}." if known else " It takes nothing.")
    suggests = frozenset(name for name in known if f"'{name}'" in hint)
    return Complaint(location, f"'{key[:LONGEST]}' is not a key of {holder.noun}.{hint}", key=True, suggests=suggests)


def _meant(value: Any, annotation: Any) -> str:
    choices = [
        choice
        for option in alternatives(annotation)
        if get_origin(option.type) is Literal
        for choice in get_args(option.type)
        if isinstance(choice, str)
    ]
    return kind_meant(value, choices) if isinstance(value, str) else ""
