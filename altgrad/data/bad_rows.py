"""Rows that cannot be used as they stand: an error that names them, or, with `bad_rows: skip`, left out and counted.

Exported data sets have them: a text that is null, a number where a text should be, a row without a label. What is
wrong with one row says nothing of the others, so it may be left out; what is wrong with a file (no JSON, no UTF-8, an
unknown split) may not.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from altgrad.data.dataset import SPLITS

__all__ = ["BadRows", "BadRowsSetting", "checked_text", "hashed_split"]

BadRowsSetting = Literal["error", "skip"]
"""What a data spec may say."""

_REMEDY = "correct it or set bad_rows: skip."


@dataclass
class BadRows:
    """What becomes of bad rows in one reading of a source. `skipped` counts them, by reason."""

    skip: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    first: str = ""
    """What was wrong with the first that was left out."""

    def leave_out(self, reason: str, problem: str) -> None:
        """Count a row under `reason`; or ValueError with the problem, which is one line with place and column."""
        if not self.skip:
            raise ValueError(problem)
        self.first = self.first or problem
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def text(self, name: Path | str, row: int, column: str, value: object) -> str | None:
        """The text of a cell as `checked_text` has it, or None for a row that is left out."""
        try:
            return checked_text(name, row, column, value)
        except ValueError as error:
            self.leave_out("no_text" if value is None else "not_text", str(error))
            return None

    def splits(self, rows: Sequence[tuple[str, int, str | None]]) -> list[str | None]:
        """The split of each row, given its source, number and what it names: "" where hashes decide (no row names
        one), None for a row that is left out since others name theirs."""
        if all(split is None for _, _, split in rows):
            return [""] * len(rows)
        for name, row, split in rows:
            if split is None:
                self.leave_out(
                    "no_split",
                    f"{name}: row {row}: column 'split' holds null where other rows name theirs; name one of "
                    f"{', '.join(SPLITS)} in every row or in none, or set bad_rows: skip.",
                )
        return [split for _, _, split in rows]

    def require_some(self, some: bool) -> None:
        """ValueError if every row there was has been left out."""
        if self.skipped and not some:
            raise ValueError(f"all {sum(self.skipped.values())} rows were left out, the first because: {self.first}")


def checked_text(name: Path | str, row: int, column: str, value: object) -> str:
    """The document that a cell holds. ValueError, with `name`, row and column, for a cell that holds none."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        shown = "nothing" if value is None else f"{value!r:.40} ({type(value).__name__})"
        raise ValueError(f"{name}: row {row}: column '{column}' holds {shown}; every row needs a string: {_REMEDY}")
    if "\0" in value:
        raise ValueError(f"{name}: row {row}: column '{column}' holds the character NUL; remove it from the text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: row {row}: column '{column}' is not valid Unicode ({error.reason}).") from None
    return value


def hashed_split(text: str) -> str:
    """The split that a text's own hash decides; see `altgrad.data.documents`."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]
