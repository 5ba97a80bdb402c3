"""Specs: frozen, validated once, with errors that point at a line; families of kinds; what a schema says of them."""

from altgrad.document import Document, SpecError
from altgrad.spec.annotations import Since
from altgrad.spec.messages import LocatedError, LostProcessesError, MachineError, did_you_mean
from altgrad.spec.schema import json_schema
from altgrad.spec.spec import DrawBits, Format, Kind, RoundingMode, Spec

__all__ = [
    "Document",
    "DrawBits",
    "Format",
    "Kind",
    "LocatedError",
    "LostProcessesError",
    "MachineError",
    "RoundingMode",
    "Since",
    "Spec",
    "SpecError",
    "did_you_mean",
    "json_schema",
]
