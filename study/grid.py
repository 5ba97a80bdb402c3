"""The E x M grid of the study as FIRST.md asks for it: E down, M across. It describes; there are no verdicts."""

import math

from altgrad.formats import FloatFormat
from altgrad.numerals import signed
from altgrad.spec.messages import listed
from study.results import Results


class Grid(Results):
    """A project whose formats vary E and M on their own."""

    def at_rate(self, optimizer: str, rate: float) -> dict[str, float]:
        """By storage format, the mean loss of the tuning seeds at one learning rate; nothing is chosen here."""
        found = {}
        for arm, rates in self.project.arms(self.family.condition).items():
            losses = next((by_seed for r, by_seed in rates.items() if math.isclose(r, rate, rel_tol=1e-3)), None)
            tuning = [] if losses is None else [loss for seed, loss in losses.items() if seed in self.family.tuning]
            if arm.optimizer == optimizer and tuning:
                found[arm.format] = math.fsum(tuning) / len(tuning)
        return found

    def benefit_at(self, rate: float) -> dict[str, float]:
        """B with both arms at one rate, tuning seeds."""
        ours, theirs = self.at_rate("adamw", rate), self.at_rate("manifold_adamw", rate)
        return {name: ours[name] - loss for name, loss in theirs.items()}

    def benefit_table(self) -> str:
        """B as planned, each arm at its own rate, confirmation seeds, and half its interval."""
        intervals = self.family.intervals.items()
        return _table({name: f"{signed(found.mean)} \u00b1 {found.half_width:.3f}" for name, found in intervals})

    def benefit_table_at(self, rate: float) -> str:
        """`benefit_at`."""
        return _table({name: signed(found) for name, found in self.benefit_at(rate).items()})

    def loss_table_at(self, rate: float) -> str:
        """AdamW's loss at one rate."""
        return _table({name: f"{loss:.4f}" for name, loss in self.at_rate("adamw", rate).items()})

    def spread(self) -> tuple[float, float]:
        """The least and the largest standard deviation of paired differences."""
        found = [each.sd for each in self.family.intervals.values()]
        return min(found), max(found)

    def decided(self) -> str:
        """The formats whose interval leaves zero out."""
        return listed([name for name, each in self.family.intervals.items() if each.high < 0 or each.low > 0], "and")


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
