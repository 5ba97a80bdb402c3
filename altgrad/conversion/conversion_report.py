"""What quantising a model at rest did to it: how much each cast kept, as data and as a page.

`facts` is what `altgrad quantize-model --json` prints. SQNR, underflow and saturation are of the tensor's own cast;
nonfinite counts what came out of it, nan_count and inf_count what was in the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from altgrad.display import Line, html_lines, table_lines
from altgrad.numerals import percent, size_text

if TYPE_CHECKING:
    import pandas

_MEASURES = ["SQNR dB", "underflow", "saturated", "codes used", "never used"]


@dataclass(frozen=True, repr=False)
class ConversionReport:
    """results: for each format (or the one policy) a summary, with its tensors under `tensors`. out: None if nothing
    was written."""

    model: str
    out: str | None
    results: Sequence[Mapping[str, Any]]

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"model": self.model, "out": self.out, "results": list(self.results)}

    @property
    def tensors(self) -> "pandas.DataFrame":
        """A pandas DataFrame with a row for each tensor and format: what its cast kept, and its bytes."""
        import pandas

        rows = [{"name": each["name"], **row} for each in self.results for row in each["tensors"]]
        return pandas.DataFrame(rows)

    def page(self, width: int | None = None) -> list[Line]:
        """The tables: of one result all tensors; then every result; then what is to be known of the model."""
        lines = []
        first = self.results[0]
        if len(self.results) == 1:
            rows = [
                [
                    row["tensor"],
                    row["cast"],
                    *_measures(row),
                    size_text(row["bytes_before"]),
                    size_text(row["bytes_after"]),
                ]
                for row in first["tensors"]
            ]
            lines = [*table_lines("", ["tensor", "cast", *_MEASURES, "bytes", "after"], rows, width), Line.of("")]
        rows = [
            [
                each["name"], *_measures(each), size_text(each["bytes_after"]),
                f"{each['worst_sqnr_db']:.2f} in {each['worst']}",
            ]
            for each in self.results
        ]  # fmt: skip
        lines += table_lines("", ["", *_MEASURES, "bytes after", "lowest SQNR"], rows, width)
        said = [
            f"{first['cast_tensors']} of {first['tensors_in_model']} tensors quantised; the rest unchanged; "
            f"{size_text(first['bytes_before'])} before"
        ]
        for broken in first["nonfinite_tensors"]:
            words = nonfinite_words(broken, broken["elements"])
            said.append(f"not finite: {broken['tensor']}, {words}{'' if broken['cast'] else '; not cast'}")
        for each in self.results:
            if each["clamped_scale_count"]:
                said.append(f"{each['name']}: scales clamped to the end of their range: {each['clamped_scale_count']}")
        if self.out is not None:
            said.append(f"written to {self.out}")
        return [*lines, *(Line.of(text) for text in said)]

    def __repr__(self) -> str:
        return "\n".join(line.text.rstrip() for line in self.page())

    def _repr_html_(self) -> str:
        return html_lines(self.page())


def nonfinite_words(counts: Mapping[str, Any], elements: int) -> str:
    """`3 of 4,096 entries are not finite (1 NaN, 2 Inf)`."""
    nan, inf = counts["nan_count"], counts["inf_count"]
    return f"{nan + inf:,} of {elements:,} entries are not finite ({nan:,} NaN, {inf:,} Inf)"


def _measures(row: Mapping[str, Any]) -> list[str]:
    broken = row.get("nan_count", 0) + row.get("inf_count", 0)
    sqnr = f"{row['sqnr_db']:.2f}" + (f" ({broken:,} not finite)" if broken else "")
    return [sqnr, *(percent(row[key]) for key in ("underflow_rate", "saturation_rate", "utilisation", "unused_share"))]
