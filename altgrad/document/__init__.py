"""A YAML or JSON text as plain data with the place of every value, and the error that points there."""

from altgrad.document.document import MAX_CHARACTERS, MAX_DEPTH, Document, Key, Location, scalar
from altgrad.document.error import ASSIGNED, SpecError

__all__ = ["ASSIGNED", "MAX_CHARACTERS", "MAX_DEPTH", "Document", "Key", "Location", "SpecError", "scalar"]
