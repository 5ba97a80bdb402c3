"""The JSON Schema of a spec class: what an editor needs to complete and check a spec while it is typed.

Draft 7, which the YAML language servers of editors know best. It says what the annotations say: fields with limits,
defaults and descriptions (the docstrings), each family as the choice of its kinds, and the short forms (`range` for
`{kind: range}`, `e4m3fn` for `{format: e4m3fn}`, `none`). It refuses nothing that the program takes, except that
numbers and names may be compared with each other by the program alone.
"""

import inspect
import types
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from altgrad.formats import CATALOG, TABLES, NumberFormat
from altgrad.formats.catalog import ALIASES, OUTSIDE, TABLE_NAMES
from altgrad.spec.annotations import Alternative, Shape, alternatives, of_field, plain, short_forms

_LIMITS = {
    "ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum",
    "min_length": "minLength", "max_length": "maxLength", "pattern": "pattern",
}  # fmt: skip
_PLAIN = {int: "integer", float: "number", bool: "boolean", str: "string", types.NoneType: "null", dict: "object"}

Schema = dict[str, Any]


def json_schema(cls: type[Shape], title: str) -> Schema:
    """The schema of a spec file that holds a `cls`. Families are discovered, so their packages are imported."""
    definitions: dict[str, Schema] = {}
    root = _mapping(cls, definitions)
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": title}
    return {**head, **root, "definitions": dict(sorted(definitions.items()))}


def _mapping(cls: type[Shape], definitions: dict[str, Schema]) -> Schema:
    """The long form of one class."""
    fields = {name: _field(info, definitions) for name, info in cls.model_fields.items()}
    required = [name for name, info in cls.model_fields.items() if info.is_required()]
    kind = getattr(cls, "kind", "")
    if kind:
        fields, required = {"kind": {"const": kind}, **fields}, ["kind", *required]
    more = cls.model_config.get("extra") == "allow"
    schema: Schema = {"type": "object", "description": description(cls), "properties": fields}
    return {**schema, **({"required": required} if required else {}), "additionalProperties": more}


def _field(info: FieldInfo, definitions: dict[str, Schema]) -> Schema:
    schema = _any(of_field(info), definitions)
    if info.description:
        schema["description"] = inspect.cleandoc(info.description)
    if not info.is_required():
        schema["default"] = plain(info.get_default(call_default_factory=True))
    return schema


def _any(annotation: Any, definitions: dict[str, Schema]) -> Schema:
    options = [_one(option, definitions) for option in alternatives(annotation)]
    return options[0] if len(options) == 1 else {"anyOf": options}


def _one(option: Alternative, definitions: dict[str, Schema]) -> Schema:
    if option.shape is not None:
        return _reference(option.shape, definitions)
    if option.type is NumberFormat:
        definitions.setdefault("format", _format())
        return {"$ref": "#/definitions/format"}
    if get_origin(option.type) is Literal:
        return {"enum": list(get_args(option.type))}
    if items := option.items:
        if items[-1] is ...:
            return {"type": "array", "items": _any(items[0], definitions)}
        entries = [_any(item, definitions) for item in items]
        return {"type": "array", "items": entries, "minItems": len(items), "maxItems": len(items)}
    if get_origin(option.type) is dict:
        return {"type": "object", "additionalProperties": _any(get_args(option.type)[1], definitions)}
    named = _PLAIN.get(option.type)
    limits = {_LIMITS[name]: limit for name, limit in option.limits.items()}
    if option.known:
        return {"anyOf": [{"enum": list(option.known)}, {"type": named, **limits}]}
    return {"type": named, **limits} if named else {}


def _reference(cls: type[Shape], definitions: dict[str, Schema]) -> Schema:
    """A reference to the class's definition, made if it is not there; short forms are part of it."""
    name = cls.family if cls.is_root() else cls.__name__
    if name not in definitions:
        definitions[name] = {}  # a spec that holds its own kind refers to what is being made
        definitions[name] = _family(cls, definitions) if cls.is_root() else _with_short_forms(cls, definitions)
    return {"$ref": f"#/definitions/{name}"}


def _family(cls: type[Shape], definitions: dict[str, Schema]) -> Schema:
    members = cls.members()
    short = [kind for kind, member in members.items() if not any(f.is_required() for f in member.model_fields.values())]
    for kind, member in members.items():
        definitions[f"{cls.family}.{kind}"] = _mapping(member, definitions)
    long = [{"$ref": f"#/definitions/{cls.family}.{kind}"} for kind in members]
    return {"description": description(cls), "anyOf": ([{"enum": short}] if short else []) + long}


def _with_short_forms(cls: type[Shape], definitions: dict[str, Schema]) -> Schema:
    long = _mapping(cls, definitions)
    forms = [_one(option, definitions) for option in short_forms(cls)]
    forms += [{"enum": [word]} for word in ("none", None) if cls.expand(word) == {}]
    return {"description": long.pop("description"), "anyOf": [*forms, long]} if forms else long


def _format() -> Schema:
    """Names of the catalog, for completion, any other ExMy of 2 to 16 bits, or the values of a table."""
    splits = [f"{e}[mM]({'|'.join(str(m) for m in range(1 if e == 0 else 0, 16 - e))})" for e in range(16)]
    pattern = f"^[eE]({'|'.join(splits)})([bB]-?[0-9]+)?(ieee|fn|fnuz|p3109|f|IEEE|FN|FNUZ|P3109|F)?$"
    no_formats = [spelled for name in sorted(OUTSIDE) for spelled in (name, name.upper())]
    not_formats = {"anyOf": [{"pattern": "^[eE]4[mM]3([bB]-?[0-9]+)?$"}, {"enum": no_formats}]}
    word = {"type": "string", "pattern": "^([nN][aA][nN]|-?[iI][nN][fF])$"}
    numbers: Schema = {"type": "array", "items": {"anyOf": [{"type": "number"}, word]}}
    return {
        "description": "A number format: e<E>m<M>[b<bias>][ieee|fn|fnuz|p3109|f], a name of the catalog, or the values "
        "of a table, by code.",
        "anyOf": [
            {"enum": [entry.name for entry in (*CATALOG, *TABLES)]},
            {"enum": [spelled for alias in sorted([*ALIASES, *TABLE_NAMES]) for spelled in (alias, alias.upper())]},
            {"type": "string", "pattern": pattern, "not": not_formats},
            {"type": "string", "pattern": r"^\s*[\[{]"},
            {
                "type": "object",
                "properties": {
                    "values": numbers | {"minItems": 2, "description": "The values of the grid, by code."},
                    "midpoints": numbers | {"description": "Where nearest changes its mind; halfway if left out."},
                    "next": numbers | {"minItems": 2, "maxItems": 2, "description": "What follows beyond the ends."},
                },
                "required": ["values"],
                "additionalProperties": False,
            },
        ],
    }


def description(cls: type[Shape]) -> str:
    """A class's docstring."""
    return inspect.getdoc(cls) or ""
