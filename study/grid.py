"""The E x M grid of the study as FINDINGS.md asks for it: E down, M across. It describes; there are no verdicts."""

import math

from altgrad.formats import FloatFormat
from altgrad.report.effects import side_of
from altgrad.report.intervals import Interval
from altgrad.report.section import signed
from study.results import Results


class Grid(Results):
    """A project whose formats vary E and M on their own."""

    def losses(self) -> dict[str, float]:
        """Mean confirmed loss of AdamW by storage format, E = 1 included."""
        found = {}
        for arm, rates in self.project.arms(self.family.condition).items():
            if arm.optimizer == "adamw":
                side = side_of(self.project, self.family.condition, arm, rates, set(self.family.tuning))
                if side is not None and side[0].by_seed:
                    found[arm.format] = math.fsum(side[0].by_seed.values()) / len(side[0].by_seed)
        return found

    def at(self, exponent: int, mantissa: int) -> Interval:
        """B of the format with so many bits of each, simultaneous over the grid."""
        return self.family.intervals[FloatFormat.parse(f"e{exponent}m{mantissa}f").name]

    def benefit_table(self) -> str:
        """B, and half its interval."""
        return _table(
            {n: f"{signed(found.mean)} \u00b1 {found.half_width:.3f}" for n, found in self.family.intervals.items()}
        )

    def loss_table(self) -> str:
        """AdamW's loss."""
        return _table({name: f"{loss:.4f}" for name, loss in self.losses().items()})

    def slope(self, *, along: str) -> tuple[float, float]:
        """Least and largest change of B for one bit more, `exponent` or `mantissa`, over neighbours of the grid."""
        steps = []
        places = {_bits(name): found.mean for name, found in self.family.intervals.items()}
        for (e, m), here in places.items():
            there = places.get((e + 1, m) if along == "exponent" else (e, m + 1))
            if there is not None:
                steps.append(there - here)
        return min(steps), max(steps)


def _bits(name: str) -> tuple[int, int]:
    fmt = FloatFormat.parse(name)
    return fmt.exponent_bits, fmt.mantissa_bits


def _table(cells: dict[str, str]) -> str:
    places = {_bits(name): text for name, text in cells.items()}
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    lines = [f"| E = {e} | " + " | ".join(places.get((e, m), "-") for m in columns) + " |" for e in rows]
    return "\n".join(
        ["| | " + " | ".join(f"M = {m}" for m in columns) + " |", "|---" + "|--:" * len(columns) + "|", *lines]
    )
