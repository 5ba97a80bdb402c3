"""A YAML or JSON text as plain data with the place of every value, and the error that points there."""

from altgrad.document.document import ASSIGNED, MAX_CHARACTERS, MAX_DEPTH, Document, Key, Location, SpecError, scalar

__all__ = ["ASSIGNED", "MAX_CHARACTERS", "MAX_DEPTH", "Document", "Key", "Location", "SpecError", "scalar"]
