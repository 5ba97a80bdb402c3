"""What a spec class takes, read from its annotations: the one source for messages, `--set`, schemas and tables.

An annotation such as `Annotated[float, Field(gt=0)] | None` is a choice of *alternatives*, each a plain type with
limits. Everything that has to know the shape of a spec asks three questions of it: which alternatives are there, what
lies below this key, and how is it said in words (`a number above 0, or null`). Pydantic's messages and its JSON schema
were the road not taken: both describe its validators, and ours (formats, kinds, shorthands) are opaque to them.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PlainValidator
from pydantic.fields import FieldInfo

from altgrad.document import Key, Location
from altgrad.formats import NumberFormat, TableFormat
from altgrad.spec.messages import listed

LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
_PROBES = ("\0", 1.0)


@dataclass(frozen=True)
class Since:
    """Marks a field that the first edition did not have: `gate: Annotated[bool, Since(2)] = False`.

    At its default such a field is left out of `tree`, and so out of spec.yaml, fingerprint and run id: a spec that does
    not use it says what it said before, and names the same run. A default is therefore never changed later.
    """

    edition: int


@dataclass(frozen=True)
class Known:
    """Texts that an editor offers for a field that takes others, too: a book's names, where a path will do as well."""

    texts: tuple[str, ...]


class Shape(BaseModel):
    """What a spec class says of itself besides its fields. Spec and Kind build on it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    family: ClassVar[str] = ""
    """The name of the family, where this class is a family's root or member."""

    noun: ClassVar[str] = "this spec"
    """What error messages call this mapping."""

    @classmethod
    def expand(cls, value: Any) -> Any:
        """What a shorthand stands for (`e4m3fn` for `{format: e4m3fn}`), as the class's own validators read it.

        Anything but a scalar that is a shorthand comes back as it is.
        """
        if not isinstance(value, str | int | float | None):
            return value
        for name, validator in cls.__pydantic_decorators__.model_validators.items():
            if validator.info.mode == "before":
                value = getattr(cls, name)(value)
        return value

    @classmethod
    def shorthand(cls) -> str | None:
        """The field that a bare text or number stands for, or None."""
        for probe in _PROBES:
            if isinstance(expanded := cls.expand(probe), dict):
                return next((str(key) for key in expanded if expanded[key] == probe), None)
        return None

    @classmethod
    def is_root(cls) -> bool:
        """Whether a value picks one of several classes by its `kind`."""
        return False

    @classmethod
    def members(cls) -> dict[str, type["Shape"]]:
        """A root's classes by kind."""
        return {}

    @classmethod
    def member(cls, value: Any) -> "type[Shape] | None":
        """The class whose fields `value` has: for a root the one that its `kind` names, None if there is none."""
        if not cls.is_root():
            return cls
        value = cls.expand(value)
        kind = value.get("kind") if isinstance(value, dict) else None
        return cls.members().get(kind) if isinstance(kind, str) else None

    def tree(self) -> dict[str, Any]:
        """The spec as plain data (dict, list, str, int, float, bool, None), every default written out.

        A field that is younger than the first edition (`Since`) is left out while it is at its default.
        """
        unused = {name for name, default in _young(type(self)) if getattr(self, name) == default}
        return {name: plain(getattr(self, name)) for name in type(self).model_fields if name not in unused}


@cache
def _young(shape: type[Shape]) -> list[tuple[str, Any]]:
    """The fields that the first edition had not, with their defaults. Planning thousands of runs asks each part."""
    return [
        (name, info.get_default(call_default_factory=True))
        for name, info in shape.model_fields.items()
        if any(isinstance(item, Since) for item in info.metadata)
    ]


@dataclass(frozen=True)
class Alternative:
    """One of the types that a field takes, with its limits (`ge`, `max_length`, ...) by name, and texts to offer."""

    type: Any
    limits: dict[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()

    @property
    def shape(self) -> type[Shape] | None:
        """The spec class, if it is one."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, Shape) else None

    @property
    def items(self) -> tuple[Any, ...]:
        """A list's entries: their annotations, `(X, ...)` where all have the same."""
        return get_args(self.type) if get_origin(self.type) is tuple else ()


def plain(value: Any) -> Any:
    """A field's value as a spec file would hold it."""
    if isinstance(value, Shape):
        return value.tree()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value + 0.0  # -0.0 equals 0.0, so both must be written alike
    if isinstance(value, TableFormat) and not value.label:
        return value.tree()
    return str(value) if isinstance(value, NumberFormat | Enum | Path) else value


def of_field(info: FieldInfo) -> Any:
    """A field's annotation with its limits."""
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def alternatives(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[Alternative]:
    """The types that an annotation allows. A validator that replaces pydantic's speaks for itself (see below)."""
    origin = get_origin(annotation)
    if origin is Annotated:
        bare, *more = get_args(annotation)
        yield from alternatives(bare, (*more, *metadata))
    elif origin in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from alternatives(option, metadata)
        if any(_takes_none(validator) for validator in metadata):
            yield Alternative(Literal["none"])
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        yield Alternative(Literal[tuple(member.value for member in annotation)])
    else:
        known = [text for item in metadata if isinstance(item, Known) for text in item.texts if annotation is str]
        yield Alternative(annotation, dict(_limits(metadata)), tuple(known))


def _takes_none(validator: Any) -> bool:
    """Whether a PlainValidator reads the text `none` as null: only asking it can tell."""
    if not isinstance(validator, PlainValidator):
        return False
    read: Any = validator.func
    try:
        return read("none") is None
    except ValueError:
        return False


def _limits(metadata: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _limits(tuple(item.metadata))
        for name in LIMITS:
            if (limit := getattr(item, name, None)) is not None:
                yield name, limit


def below(annotation: Any, value: Any, key: Key) -> Any:
    """The annotation of what lies under `key` of a value with this annotation; None where nothing can."""
    for option in alternatives(annotation):
        if (member := option.shape and option.shape.member(value)) and key in member.model_fields:
            return of_field(member.model_fields[str(key)])
        items = option.items
        if isinstance(key, int) and items:
            if items[-1] is ...:
                return items[0]
            if key < len(items):
                return items[key]
        if get_origin(option.type) is dict:
            return get_args(option.type)[1]
    return None


def expand(annotation: Any, value: Any) -> Any:
    """A shorthand written out, if the annotation has one for `value`."""
    for option in alternatives(annotation):
        if option.shape is not None:
            value = option.shape.expand(value)
    return value


def follow_location(annotation: Any, value: Any, location: Location) -> tuple[Location, Any, type[Shape] | None]:
    """How far `location` leads: the part that exists, its annotation, and the last spec class passed."""
    last = None
    for depth, key in enumerate(location):
        shapes = [option.shape.member(value) for option in alternatives(annotation) if option.shape]
        last = next(iter(shapes), last)
        under = below(annotation, value, key)
        if under is None:
            return location[:depth], annotation, last
        value = expand(annotation, value)
        try:
            value = value[key]
        except (LookupError, TypeError):
            value = None
        annotation = under
    return location, annotation, last


def words(annotation: Any) -> str:
    """What a field takes, as the end of a sentence: `a whole number, 1 or more`; `a number above 0, or null`."""
    options = list(alternatives(annotation))
    empty = [option for option in options if option.type is types.NoneType]
    said = [_say(option) for option in options if option not in empty]
    return ", or ".join(dict.fromkeys(said + ["null"] * bool(empty)))


def _say(option: Alternative) -> str:
    kind = option.type
    if shape := option.shape:
        return _say_shape(shape)
    if kind in (int, float):
        return _between("a whole number" if kind is int else "a number", option.limits)
    if get_origin(kind) is Literal:
        choices = [choice if isinstance(choice, str) else str(choice).lower() for choice in get_args(kind)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if option.items:
        if option.items[-1] is ...:
            return f"a list, each entry {words(option.items[0])}"
        said = list(dict.fromkeys(words(item) for item in option.items))
        return f"a list of {len(option.items)}, {'each ' if len(said) == 1 else ''}{', then '.join(said)}"
    if get_origin(kind) is dict:
        return f"a mapping, each value {words(get_args(kind)[1])}"
    if kind is str and option.limits.get("min_length"):
        return "text that is not empty"
    plain = {bool: "true or false", str: "text", Path: "a path", NumberFormat: "a format such as e4m3fn"}
    return plain.get(kind, "any value")


def short_forms(shape: type[Shape]) -> list[Alternative]:
    """What the class reads in place of a mapping: the values of the field that a bare text or number stands for."""
    short = shape.shorthand()
    options = alternatives(of_field(shape.model_fields[short])) if short else iter(())
    found: list[Alternative] = []
    for option in options:
        inner = option.shape
        found += [option] if inner is None or inner.is_root() else short_forms(inner)
    return [option for option in found if option.type is not types.NoneType]


def _say_shape(shape: type[Shape]) -> str:
    if shape.is_root():
        return f"a kind of {shape.family}: {listed(shape.members())}"
    bare = "".join(f"{said}, or " for said in dict.fromkeys(map(_say, short_forms(shape))))
    return f"{bare}a mapping of {', '.join(shape.model_fields) or 'nothing'}"


def _between(noun: str, limits: dict[str, Any]) -> str:
    ge, gt, le, lt = (_number(limits.get(name)) for name in ("ge", "gt", "le", "lt"))
    if ge is not None and le is not None:
        return f"{noun} from {ge} to {le}"
    low = f"{ge} or more" if ge is not None else f"above {gt}" if gt is not None else ""
    high = f"{le} or less" if le is not None else f"below {lt}" if lt is not None else ""
    said = " and ".join(part for part in (low, high) if part)
    return f"{noun}, {said}" if low.endswith("more") or high.endswith("less") else f"{noun} {said}".rstrip()


def _number(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit
