"""Specs: frozen, validated once, with errors that point at a line; families of kinds; what a schema says of them."""

from altgrad.document import Document, SpecError
from altgrad.spec.schema import json_schema
from altgrad.spec.shape import Since
from altgrad.spec.spec import Format, Kind, RoundingMode, Spec
from altgrad.spec.words import LocatedError, did_you_mean

__all__ = [
    "Document",
    "Format",
    "Kind",
    "LocatedError",
    "RoundingMode",
    "Since",
    "Spec",
    "SpecError",
    "did_you_mean",
    "json_schema",
]
