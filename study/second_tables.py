"""The tables of the second edition, from whatever rows are in. A number that rows do not give is a dash, and said.

B = L(AdamW) - L(manifold): positive where geometry helps. Intervals are simultaneous over the family that the table
names; a cell whose runs are not all in says how many are missing, never a verdict.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from altgrad.numerals import signed
from altgrad.statistics.distributions import rank_correlation
from altgrad.statistics.intervals import Interval, simultaneous
from study import confirmed, parts, rows
from study.cell import Cell, format_of, named, reference
from study.pairs import difference, interval_cells, mean, pooled
from study.verdicts import Judged, Pairs, confirmed_pairs, fixed_pairs, judged

SGD_FROM = 1.0
"""From this eps on Adam's rule is SGD: roots of second moments are far below."""
MASTERS = "masters"
CLIPPED = 1e-4
"""The largest share of w~ beyond +-max in a run that counts as evidence."""
Lines = list[str]


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Lines:
    """Markdown."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in body)]


def number(value: float | None, digits: int = 4) -> str:
    """A loss; a dash for none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def place(cell: Cell) -> str:
    """`p = 1/4, kappa = 2^-6`."""
    found = named(cell)
    rule = "SGD" if found["eps"] >= SGD_FROM else "AdamW"
    if found["optimizer"] != "manifold_adamw":
        return rule
    p = {0.25: "1/4", 0.5: "1/2", 1.0: "1"}[found["p"]]
    field = f"p = {p}, kappa = {({0: '1'}).get(k := round(math.log2(found['kappa'])), f'2^{k}')}"
    return field if rule == "AdamW" else f"{rule}, {field}"


VERDICT_HEAD = ("stored in", "cell", "lr*", "pairs", "B", "95 % interval", "width", "verdict")


def verdict_row(one: Judged) -> list[str]:
    """A row below VERDICT_HEAD."""
    i = one.interval
    rates = f"{one.base_rate:.3g} / {one.rate:.3g}" if one.base_rate else f"{one.rate:.3g}"
    width = number(i.high - i.low, 3)
    return [one.format, place(one.cell), rates, str(i.n), *interval_cells(i), width, one.notes]


class Second:
    """The rows, and what the plan makes of them."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.have = set(frame["fingerprint"])

    @cached_property
    def tuned(self) -> confirmed.Tuned:
        """lr* by cell of the screen, of the cells whose rates are in with all seeds."""
        found = {}
        for cell, own in parts.cells_in("screen").items():
            rates = parts.rates_run(self.frame, cell, own)
            if not any(map(math.isnan, rows.mean_losses(self.frame, cell, rates, parts.SCREEN))):
                found[cell] = confirmed.choose(self.frame, cell, rates, parts.SCREEN)
        return found

    def status(self) -> Lines:
        """By part, how many runs are in."""
        body = []
        planned, waits = parts.plan(self.frame)
        for name in parts.PARTS:
            own = [each for each in planned if each.part == name]
            done = sum(each.fingerprint in self.have for each in own)
            body.append([name, f"waits for {waits[name]}" if name in waits else f"{done} of {len(own)}"])
        return table(["part", "runs in"], body)

    def made(self) -> str:
        """How many runs, at how many commits, on what, for how long."""
        if not len(self.frame):
            return "No run is in."
        diverged, hours = int(self.frame["diverged"].sum()), self.frame["cpu_seconds"].sum() / 3600
        return (
            f"{len(self.frame):,} runs, {diverged} of them diverged, {hours:.1f} h of a core, at "
            f"{self.frame['commit'].nunique()} commits (each row names its own)."
        )

    def marks(self, cell: Cell, rate: float | None = None) -> str:
        """`even`, `clipped`: why a cell is no evidence."""
        own = self.frame[self.frame["cell"] == cell]
        own = own if rate is None else own[abs(own["rate"] / rate - 1) < 1e-3]
        if not len(own):
            return ""
        even = named(cell)["optimizer"] == "manifold_adamw" and own["cv_t"].mean() < confirmed.EVEN
        fixed = own["scale"] == "fixed"
        stored = own["storage"] != "master"  # no storage clips a master
        clipped = (stored & (own["saturated"] > CLIPPED)) | (fixed & (own["pinned"] > CLIPPED))
        return ", ".join(["even"] * bool(even) + ["clipped"] * bool(clipped.any()))

    def screen(self, format_: str) -> Lines:
        """B over the dial, each arm at its own lr*."""
        body = []
        cells = [cell for cell in parts.cells_in("screen") if format_of(cell) == format_]
        base = next(cell for cell in cells if named(cell)["optimizer"] == "adamw")
        for cell in cells:
            found = self.tuned.get(cell)
            if found is None:
                missing = sum(each.fingerprint not in self.have for each in parts.cells_in("screen")[cell])
                body.append([place(cell), "-", "-", "-", "-", f"{missing} runs missing"])
                continue
            b = "" if cell == base else signed(self.tuned[base].loss - found.loss) if base in self.tuned else "-"
            body.append(
                [place(cell), f"{found.rate:.3g}", number(found.loss), b, number(found.cv, 2), self.marks(cell)]
            )
        return table(["arm", "lr*", "loss", "B", "cv(T)", ""], body)

    def dial(self, format_: str) -> np.ndarray:
        """B by (kappa, p), NaN where it is not in: for the picture."""
        grid = np.full((3, 3), math.nan)
        for row, kappa in enumerate((1.0, 2.0**-3, 2.0**-6)):
            for column, p in enumerate((0.25, 0.5, 1.0)):
                try:
                    base = self.tuned[confirmed.reference_of(self.tuned, format_)]
                    grid[row, column] = base.loss - self.tuned[confirmed.dial(self.tuned, format_, p, kappa)].loss
                except (StopIteration, KeyError):
                    continue
        return grid

    @cached_property
    def unevenness(self) -> dict[str, dict[Cell, tuple[float, float]]]:
        """cv(T^p) and B of every manifold cell of the screen, by format, and of those on masters, each at its lr*."""
        found: dict[str, dict[Cell, tuple[float, float]]] = {name: {} for name in (*parts.STORED, MASTERS)}
        for part in ("screen", "masters"):
            for cell in parts.cells_in(part):
                base = reference(cell)
                if base is None or (own := self.lowest(cell)) is None or (other := self.lowest(base)) is None:
                    continue
                cvs = rows.losses(self.frame, cell, own.rate, parts.SCREEN, "cv").values()
                name = MASTERS if part == "masters" else str(format_of(cell))
                found[name][cell] = math.fsum(cvs) / len(cvs), other.loss - own.loss
        return found

    def uneven_rank(self) -> str:
        """Spearman's rho of B with cv(T^p) over the stored cells of the screen."""
        stored = [one for name in parts.STORED for one in self.unevenness[name].values()]
        x, y = np.array(stored).reshape(-1, 2).T
        rho, _ = rank_correlation(x, y)
        return f"{signed(rho, 2)} over {len(stored)} cells"

    def surface(self, format_: str) -> str:
        """The quadratic surface through the nine cells, exploratory."""
        z = self.dial(format_)
        if np.isnan(z).any():
            return f"{format_}: cells are missing."
        k, p = (a.ravel() for a in np.meshgrid([0.0, -3.0, -6.0], [0.25, 0.5, 1.0], indexing="ij"))
        design = np.stack([np.ones(9), p, k, p * p, k * k, p * k], axis=1)
        found, *_ = np.linalg.lstsq(design, z.ravel(), rcond=None)
        left = z.ravel() - design @ found
        share = 1 - left @ left / ((z.ravel() - z.mean()) ** 2).sum()
        terms = ["", " p", " k", " p^2", " k^2", " p k"]
        told = " ".join(f"{signed(c)}{term}" for c, term in zip(found, terms, strict=True))
        return f"{format_}: B = {told}, k = log2 kappa; R^2 {share:.2f}."

    @cached_property
    def confirmed_pairs(self) -> dict[tuple[str, Cell], Pairs]:
        """B of the confirmed cells at the vertex, by format and cell; empty before the screen is complete."""
        return confirmed_pairs(self.frame)

    @cached_property
    def judged(self) -> list[Judged]:
        """Every confirmed cell at the vertex; one family of all of them."""
        return judged(self.confirmed_pairs, self.tuned, self.marks)

    @cached_property
    def fixed(self) -> dict[tuple[str, Cell], Pairs]:
        """The same pairs at rates that the first stage chose, on the seeds after it."""
        return fixed_pairs(self.frame)

    @cached_property
    def at_fixed_rates(self) -> list[Judged]:
        """Every confirmed cell so; one family."""
        return judged(self.fixed, self.tuned, self.marks)

    def verdicts(self) -> Lines:
        """Verdicts of the confirmed cells."""
        if not self.judged:
            return ["No verdict yet: the screen and its edges are not complete."]
        return table(VERDICT_HEAD, [verdict_row(one) for one in self.judged])

    def fixed_rates(self) -> Lines:
        """Verdicts at fixed rates."""
        if not self.at_fixed_rates:
            return ["No second stage yet."]
        return table(VERDICT_HEAD, [verdict_row(one) for one in self.at_fixed_rates])

    def b(self, name: str, p: float, kappa: float) -> str:
        """B of a confirmed cell."""
        found = (
            one
            for one in self.judged
            if one.format == name and (named(one.cell)["p"], named(one.cell)["kappa"]) == (p, kappa)
        )
        return next((signed(one.interval.mean) for one in found), "(not in yet)")

    def side(self, part: str, arm: str, name: str) -> str:
        """B of an arm of a matrix at p = 1, kappa = 2^-6, by the screen's seeds."""
        cells = [cell for cell in parts.cells_in(part) if (self.name_of(part, cell), format_of(cell)) == (arm, name)]
        (cell,) = (cell for cell in cells if (named(cell)["p"], named(cell)["kappa"]) == (1.0, 2.0**-6))
        by = self.paired(cell, reference(cell))
        return signed(mean(by)) if by else "(not in yet)"

    def at_screened_rates(self) -> str:
        """B of p = 1, kappa = 2^-6 on the confirmation seeds, had both arms only the rate that the screen chose."""
        told = []
        for name, cell in self.confirmed_pairs:
            if place(cell) == "p = 1, kappa = 2^-6":
                base = confirmed.reference_of(self.tuned, name)
                one, two = (rows.losses(self.frame, c, self.tuned[c].rate, parts.CONFIRM) for c in (base, cell))
                told.append(f"{name} {signed(mean(difference(one, two)))}")
        return ", ".join(told) or "not in"

    def swept(self, part: str, reference: Callable[[Cell], Cell | None], title: str = "arm") -> Lines:
        """Cells of a matrix of three seeds beside their references; intervals by the sd pooled over the table."""
        sides = {cell: self.lowest(cell) for cell in parts.cells_in(part)}
        found_by = {cell: self.paired(cell, reference(cell)) for cell in sides}
        paired = {cell: by for cell, by in found_by.items() if by}
        intervals, body = pooled(paired), []
        for cell, found in sides.items():
            head = [self.name_of(part, cell), str(format_of(cell) or "-"), place(cell)]
            if found is None:
                body.append([*head, "-", "-", "-", "-", "runs missing"])
                continue
            one = interval_cells(intervals[cell]) if cell in intervals else ["-", "-"]
            body.append([*head, f"{found.rate:.3g}", number(found.loss), *one, self.marks(cell)])
        return table([title, "format", "cell", "lr*", "loss", "B", "95 % interval", ""], body)

    def paired(self, cell: Cell, base: Cell | None) -> dict[int, float]:
        """B by seed of the screen, each at its own lr*; empty where runs are missing, or there is no reference."""
        found = self.lowest(cell)
        other = None if base is None or base == cell else self.lowest(base)
        if found is None or other is None or base is None:
            return {}
        one = rows.losses(self.frame, base, other.rate, parts.SCREEN)
        two = rows.losses(self.frame, cell, found.rate, parts.SCREEN)
        return difference(one, two)

    def name_of(self, part: str, cell: Cell) -> str:
        """The name of the arm in its matrix."""
        name = str(parts.cells_in(part)[cell][0].spec.name)
        return f"{name}, QK-norm" if "qk_norm" in named(cell)["model"] else name

    @cached_property
    def _owners(self) -> dict[Cell, list[parts.Planned]]:
        found: dict[Cell, list[parts.Planned]] = {}
        for name in parts.SWEPT:
            for cell, own in parts.cells_in(name).items():
                found.setdefault(cell, own)
        return found

    def runs_of(self, cell: Cell) -> list[parts.Planned]:
        """The runs of the matrix in which a cell is swept; none for a cell of no such matrix."""
        return self._owners.get(cell, [])

    def lowest(self, cell: Cell) -> confirmed.Choice | None:
        """lr* of a cell among its rates; None where runs are missing."""
        if not (own := self.runs_of(cell)):
            return None
        seeds = sorted({each.spec.seed for each in own})
        rates = parts.rates_run(self.frame, cell, own)
        if any(map(math.isnan, rows.mean_losses(self.frame, cell, rates, seeds))):
            return None
        return confirmed.choose(self.frame, cell, rates, seeds)

    def _finetuned(self) -> tuple[dict[Cell, float], dict[Cell, dict[int, float]], dict[Cell, Interval]]:
        """Of the fine-tune's cells: lr* of the tuning seeds, losses by seed at it, and the interval of B."""
        chosen: dict[Cell, float] = {}
        for cell, own in parts.cells_in("finetune").items():
            rates = parts.rates_run(self.frame, cell, own, parts.QUARTER)
            if not any(map(math.isnan, rows.mean_losses(self.frame, cell, rates, parts.TUNING))):
                chosen[cell] = confirmed.choose(self.frame, cell, rates, parts.TUNING).rate
        by = {cell: rows.losses(self.frame, cell, rate, parts.FINETUNE) for cell, rate in chosen.items()}
        paired: dict[Cell, dict[int, float]] = {}
        for cell in by:
            if named(cell)["optimizer"] == "manifold_adamw":
                base = next((c for c in by if format_of(c) == format_of(cell) and c != cell), None)
                paired[cell] = difference({} if base is None else by[base], by[cell])
        return chosen, by, simultaneous(paired)

    def finetune(self) -> Lines:
        """A cell's loss and F1 on the confirmation seeds, at its lr* of the tuning seeds, and B by pairs."""
        chosen, by, intervals = self._finetuned()
        body = []
        for cell in parts.cells_in("finetune"):
            name = str(format_of(cell) or "nothing")
            if cell not in chosen:
                body.append([name, place(cell), *["-"] * 6, "runs missing"])
                continue
            f1 = rows.losses(self.frame, cell, chosen[cell], parts.FINETUNE, "f1") if by[cell] else {}
            told = interval_cells(intervals[cell]) if cell in intervals else ["", ""]
            body.append([
                name, place(cell), f"{chosen[cell]:.3g}", number(mean(by[cell])), number(mean(f1), 3), *told,
                str(len(by[cell])), self.marks(cell),
            ])  # fmt: skip
        return table(["stored in", "arm", "lr*", "loss", "F1", "B", "95 % interval", "seeds", ""], body)

    def finetune_words(self) -> str:
        """B of each format with where its interval lies, as the plan has it: above 0, below 0, or open."""
        told = []
        for cell, one in self._finetuned()[2].items():
            word = "above 0" if one.low > 0 else "below 0" if one.high < 0 else "open"
            told.append(f"{word} in {format_of(cell)} ({' '.join(interval_cells(one))})")
        return ", ".join(told)

    def robustness(self) -> Lines:
        """Mean over nine eighths around lr* of min(L, L at step 0) - L*, screen seeds; diverged runs beside it."""
        body = []
        for cell in parts.cells_in("cliff"):
            found = self.tuned.get(cell)
            if found is None:
                continue
            rates = [parts.beside(found.rate, step) for step in range(-parts.AROUND, parts.AROUND + 1)]
            own = self.frame[(self.frame["cell"] == cell) & self.frame["seed"].isin(list(parts.SCREEN))]
            seen = [own[abs(own["rate"] / rate - 1) < 1e-3] for rate in rates]
            extra = [np.minimum(rows_["loss"], rows_["loss_start"]).mean() - found.loss for rows_ in seen if len(rows_)]
            diverged = sum(int(rows_["diverged"].sum()) for rows_ in seen)
            cost = number(float(np.mean(extra))) if len(extra) == 9 else f"{9 - len(extra)} rates missing"
            body.append([str(format_of(cell)), place(cell), f"{found.rate:.3g}", cost, str(diverged)])
        return table(["stored in", "cell", "lr*", "mean cost of nine rates", "diverged"], body)

    def fp32(self) -> str:
        """The loss of AdamW with nothing stored, at its lr*."""
        cell = next(cell for cell in parts.cells_in("masters") if reference(cell) is None)
        return number(found.loss) if (found := self.lowest(cell)) else "(not in yet)"

    def clipping(self) -> Lines:
        """By storage: the largest saturated share of w~, the share at +-max, beta / rms(w)."""
        if not len(self.frame):
            return ["No rows."]
        body = []
        kept = self.frame[self.frame["storage"] != "master"]
        for (name, scale, optimizer), own in kept.groupby(["format", "scale", "optimizer"]):
            body.append([
                str(name), str(scale), str(optimizer), str(len(own)), f"{own['saturated'].max():.1e}",
                f"{own['pinned'].max():.1e}", f"{own['beta_over_rms'].mean():.2g}",
            ])  # fmt: skip
        head = ["stored in", "scale", "optimizer", "runs", "saturated, most", "at +-max, most", "beta / rms(w)"]
        return table(head, body)
