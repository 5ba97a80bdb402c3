"""What an export wrote and proved, as data and as a page. `facts` is what `altgrad export --to --json` prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altgrad.display import Line, html_lines, table_lines
from altgrad.numerals import size_text

__all__ = ["ExportReport"]


@dataclass(frozen=True, repr=False)
class ExportReport:
    """tensors: a row for each weight that was cast. compared: how many numbers were read again; none differs."""

    model: str
    out: str
    to: str
    files: int
    compared: int
    tensors: Sequence[Mapping[str, Any]]
    ignored: Sequence[str]

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "model": self.model, "out": self.out, "to": self.to, "files": self.files, "compared": self.compared,
            "differing": 0, "ignored": list(self.ignored), "tensors": [dict(row) for row in self.tensors],
        }  # fmt: skip

    def page(self, width: int | None = None) -> list[Line]:
        """A table of the weights that were cast, and what was compared."""
        rows = [
            [
                row["tensor"], row["layout"], f"{row['sqnr_db']:.2f}", size_text(row["bytes_before"]),
                size_text(row["bytes_after"]),
            ]
            for row in self.tensors
        ]  # fmt: skip
        files = f"{self.files} files" if self.files > 1 else "1 file"
        kept = f"; kept as they are: {', '.join(self.ignored)}" if self.ignored else ""
        return [
            *table_lines("", ["tensor", "layout", "SQNR dB", "bytes", "after"], rows, width),
            Line.of(""),
            Line.of(f"{len(self.tensors)} tensors quantised{kept}"),
            Line.of(f"read again: {self.compared:,} numbers, 0 differ"),
            Line.of(f"written to {self.out} ({self.to}, {files})"),
        ]

    def __repr__(self) -> str:
        return "\n".join(line.text.rstrip() for line in self.page())

    def _repr_html_(self) -> str:
        return html_lines(self.page())
