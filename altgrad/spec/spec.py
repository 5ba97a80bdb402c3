"""Specs: what a user may say, validated once, in frozen objects.

Two classes carry every room. A `Spec` is a frozen pydantic model that refuses unknown keys, does not coerce types, and
turns any error into one line with file, line, column, what is allowed and what was probably meant. A `Kind` is a Spec
that is one of a *family*: monitors, optimizers, datasets, models. A new member is one new file

    class StallSpec(MonitorSpec):
        kind: ClassVar[str] = "stall"
        every: int = 10

    class Stall(UpdateMonitor): ...                                what StallSpec builds

and YAML then says `stall` or `{kind: stall, every: 5}`. The family's package is searched at the first validation that
needs it, never at program start. Pydantic's own discriminated unions would need every member imported when the class is
built, and put the tag into error locations; so dispatch is ours, in a dozen lines.
"""

import copy
import functools
import hashlib
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import Field, GetCoreSchemaHandler, PlainValidator, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

from altgrad.document import ASSIGNED, Document, SpecError, scalar
from altgrad.formats import NumberFormat, Rounding, parse_format
from altgrad.spec.annotations import Shape
from altgrad.spec.assignment import assign_all, shortened
from altgrad.spec.credentials import refuse_credentials
from altgrad.spec.errors import Complaint, as_error, complaints
from altgrad.spec.messages import LONGEST, LocatedError, WrongTypeError, kind_meant, show


def _to_format(value: Any) -> NumberFormat:
    if isinstance(value, NumberFormat):
        return value
    is_table = isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith(("[", "{")))
    if not is_table and (not isinstance(value, str) or len(value) > LONGEST):
        raise WrongTypeError(f"{show(value)} is not a format such as e4m3fn.")
    return parse_format(value)


def _to_rounding(value: Any) -> Rounding:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise WrongTypeError(f"{show(value)} is not a rounding such as nearest_even.")
    return Rounding.parse(value)


Format = Annotated[NumberFormat, PlainValidator(_to_format)]
"""A field that takes a format's name, or the values of a table, and holds the NumberFormat."""

RoundingMode = Annotated[Rounding, PlainValidator(_to_rounding)]
"""A field that takes a rounding mode's name and holds the Rounding."""
DrawBits = Annotated[int, Field(ge=1, le=24)]
"""A number of bits of a random draw."""


class Spec(Shape):
    """Base of everything a spec file can hold: frozen, no unknown keys, no coercion, lists held as tuples."""

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, value: Any) -> Any:
        if isinstance(value, cls) or not isinstance(value, dict):
            return value
        return {key: _tuples(item) for key, item in value.items()}

    @classmethod
    def load(cls, path: str | Path, sets: Iterable[str] = ()) -> Self:
        """Read a YAML or JSON file, apply `path=value` assignments in order, validate. Raises SpecError."""
        return cls.check(Document.load(Path(path)), sets)

    @classmethod
    def parse(cls, text: str, name: str = "<text>", sets: Iterable[str] = ()) -> Self:
        """The same from YAML text; `name` stands for the file in error messages."""
        return cls.check(Document.parse(text, name), sets)

    @classmethod
    def check(cls, document: Document, sets: Iterable[str] = ()) -> Self:
        """Validate a document after its assignments, which stay in it. Raises SpecError, with all that is wrong.

        What is wrong only by an assignment is placed there, whatever part of the spec it shows in.
        """
        refuse_credentials(document)
        sets = list(sets)
        before = copy.deepcopy(document.data) if sets else None
        assign_all(document, cls, sets)
        try:
            return cls.model_validate(document.data)
        except ValidationError as error:
            found = complaints(error, cls, document.data)

            def blamed(one: Complaint) -> str | None:
                if not sets or document.where(one.location, key=one.key).startswith(ASSIGNED):
                    return None
                without = [left_out for left_out in sets if one not in _wrong(cls, before, sets, left_out)]
                return ", ".join(shortened(f"{ASSIGNED}{each}") for each in without) or None

            raise as_error(found, document, blamed) from None

    @classmethod
    def made_from(cls, value: Any, name: str = "") -> Self:
        """From a Python value: one already made, or plain data. Raises SpecError, `name` (if any) before the complaint.

        `model_validate` does the same but raises pydantic's own error, of many lines, which the validators inside
        others need.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise as_error(complaints(error, cls, value), Document(value, ""), lambda _: name) from None

    def to_yaml(self) -> str:
        """The resolved spec as YAML that this class reads back to an equal spec."""
        return yaml.dump(self.tree(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)

    def fingerprint(self) -> str:
        """sha256, as hex, of what decides (`deciding`) in the resolved spec; equal specs and only they share it."""
        return hashlib.sha256(json.dumps(self.deciding(), sort_keys=True).encode()).hexdigest()

    def deciding(self) -> dict[str, Any]:
        """The part of `tree` that decides what comes of this spec, which is all of it unless a class says otherwise."""
        return self.tree()


class Kind(Spec):
    """A member of a family; see the head of this file. The root is declared with `family=` and `package=`."""

    kind: ClassVar[str] = ""
    package: ClassVar[str] = ""

    def __init_subclass__(cls, family: str = "", package: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if family:
            cls.family, cls.package = family, package
        cls.noun = f"{cls.family} {cls.kind}"

    @model_validator(mode="before")
    @classmethod
    def _own_kind(cls, value: Any) -> Any:
        """A member reads what its `tree` writes."""
        if isinstance(value, dict) and value.get("kind") == cls.kind != "":
            return {key: item for key, item in value.items() if key != "kind"}
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if cls.is_root():
            return core_schema.no_info_plain_validator_function(cls.of)
        return handler(source)

    @classmethod
    def is_root(cls) -> bool:
        """Whether the family was declared here."""
        return "package" in cls.__dict__ and cls.package != ""

    @classmethod
    def expand(cls, value: Any) -> Any:
        """A root reads a bare text as a kind."""
        return {"kind": value} if cls.is_root() and isinstance(value, str) else super().expand(value)

    @classmethod
    def members(cls) -> dict[str, type[Shape]]:
        return dict(cls.kinds())

    @classmethod
    def of(cls, value: Any) -> Self:
        """The member that `value` names: a kind, a mapping with `kind`, or already a member. Raises ValueError."""
        if isinstance(value, cls):
            return value
        fields = cls.expand(value)
        if not isinstance(fields, dict):
            raise WrongTypeError(f"{show(value)} names no {cls.family}; there are {', '.join(cls.kinds())}.")
        known, kind = cls.kinds(), fields.get("kind")
        if not isinstance(kind, str):
            at = ("kind",) if "kind" in fields else ()
            raise LocatedError(at, f"{cls.family} needs a kind, one of {', '.join(known)}.")
        if kind not in known:
            hint = kind_meant(kind, known) or f" There are {', '.join(known)}."
            article = "an" if cls.family[0] in "aeiou" else "a"
            at = ("kind",) if isinstance(value, dict) else ()
            raise LocatedError(at, f"'{kind[:LONGEST]}' is not {article} {cls.family}.{hint}")
        return known[kind].model_validate(fields)

    @classmethod
    def product(cls) -> Any:
        """The class that this kind builds: for `StallSpec` the `Stall` of the same file."""
        return getattr(sys.modules[cls.__module__], cls.__name__.removesuffix("Spec"))

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Every member of this family by kind, sorted; imports the family's package if that has not happened yet."""
        _import_all(cls.package)
        found: dict[str, type[Self]] = {}
        waiting = cls.__subclasses__()
        while waiting:
            member = waiting.pop()
            waiting += member.__subclasses__()
            if "kind" in member.__dict__:
                found[member.kind] = member
        return dict(sorted(found.items()))

    def tree(self) -> dict[str, Any]:
        """Plain data with `kind` first."""
        return {"kind": self.kind, **super().tree()}


def _wrong(cls: type[Spec], data: Any, sets: Sequence[str], left_out: str) -> list[Complaint]:
    """What is wrong with a spec where one of its assignments is left out."""
    document = Document(copy.deepcopy(data), "")
    try:
        assign_all(document, cls, [each for each in sets if each != left_out])
        cls.model_validate(document.data)
    except ValidationError as error:
        return complaints(error, cls, document.data)
    except SpecError:
        pass
    return []


@functools.cache
def _import_all(package: str) -> None:
    """Import every module of a package, once: a matrix of thousands of runs asks thousands of times."""
    for module in pkgutil.iter_modules(getattr(importlib.import_module(package), "__path__", [])):
        importlib.import_module(f"{package}.{module.name}")


def _tuples(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.2 (or PyYAML's 1.1) reads as something else; short lists go on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out each time."""
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        bare = isinstance(scalar(text), str) and text.isprintable()
    except ValueError:
        bare = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


def _write_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    flow = all(not isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(list, _write_list)
