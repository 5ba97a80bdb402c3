"""python -m study.smoke: do the main findings keep their direction on three fresh seeds? Some minutes of two cores.

Every confirmed cell whose verdict has a sign, and its format's AdamW, each at its lr*, on seeds that no study used
(tests/study/test_smoke.py compares them with every result, matrix and pilot). Says of each cell whether the sign of B
came out the same, and exits 1 if one did not. Before cells are confirmed, p = 1, kappa = 2^-6 as the screen has it.

    python -m study.smoke --format e4m3f --seeds 2100,2101,2102      # one format's cells again, on the study's seeds

On a processor like that of its rows a seed of the study gives its losses to the last bit; both are printed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from study import confirmed, driver, parts, rows, run
from study.cell import Cell, format_of
from study.pairs import difference, mean
from study.second_tables import Second, place

SEEDS = (900, 901, 902)
SIGNED = ("benefit", "harm", "direction only")
FOLDER = driver.RUNS / "study-smoke"


class Asked(NamedTuple):
    """A cell that is run again: with its lr*, its reference's, and the B that the study found."""

    cell: Cell
    rate: float
    base: Cell
    base_rate: float
    known: float


def asked(study: Second, format_: str | None = None) -> list[Asked]:
    """The cells with a sign, of one format or of all."""
    found = [(one.cell, one.interval.mean) for one in study.judged if one.word in SIGNED]
    if not study.judged or any(one.missing for one in study.judged):
        cells = [confirmed.dial(study.tuned, name, 1.0, 2.0**-6) for name in parts.STORED]
        bases = [confirmed.reference_of(study.tuned, name) for name in parts.STORED]
        found = [(c, study.tuned[b].loss - study.tuned[c].loss) for c, b in zip(cells, bases, strict=True)]
    made = []
    for cell, known in found:
        name = str(format_of(cell))
        base = confirmed.reference_of(study.tuned, name)
        if format_ in (None, name):
            made.append(Asked(cell, study.tuned[cell].rate, base, study.tuned[base].rate, known))
    return made


def planned(cells: Sequence[Asked], seeds: Sequence[int]) -> list[parts.Planned]:
    """Their runs, each once, by seed."""
    examples = {cell: own[0].spec for cell, own in parts.cells_in("screen").items()}
    sides = dict.fromkeys(side for one in cells for side in ((one.base, one.base_rate), (one.cell, one.rate)))
    return [parts.Planned.of("smoke", parts.at(examples[cell], rate, seed)) for seed in seeds for cell, rate in sides]


def numbers(text: str) -> list[int]:
    """Seeds as they are given."""
    return [int(seed) for seed in text.split(",")]


def main() -> None:
    """Run, compare, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=parts.STORED, help="this format's cells alone")
    parser.add_argument("--seeds", type=numbers, default=SEEDS, help="comma-separated whole numbers")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument(
        "--results", type=Path, default=FOLDER, help="where rows are kept; those there are not run again"
    )
    options = parser.parse_args()
    study, seeds = Second(rows.read()), options.seeds
    cells = asked(study, options.format)
    if not cells:
        sys.exit(f"no cell of {options.format or 'the study'} has a verdict with a sign, so nothing can be repeated.")
    wanted = planned(cells, seeds)
    folder: Path = options.results.resolve()

    def missing() -> tuple[list[parts.Planned], dict[str, str]]:
        have = set(rows.read(folder)["fingerprint"])
        return [each for each in wanted if each.fingerprint not in have], {}

    with driver.alone(folder, "study.smoke"):
        driver.drive(
            missing,
            lambda pool, each: pool.submit(run.work, each.spec.tree(), each.part, str(driver.RUNS)),
            lambda row: rows.append(row, folder),
            options.workers,
        )
    same = [told(study, Second(rows.read(folder)), one, seeds) for one in cells]
    sys.exit(0 if all(same) else 1)


def told(study: Second, fresh: Second, one: Asked, seeds: Sequence[int]) -> bool:
    """Print what became of a cell; whether its sign is the study's."""
    sides = []
    for words, cell, rate in (("AdamW", one.base, one.base_rate), (place(one.cell), one.cell, one.rate)):
        now, then = (rows.losses(each.frame, cell, rate, seeds) for each in (fresh, study))
        for seed in sorted(set(now) & set(then)):
            print(f"{format_of(cell)}, {words}, seed {seed}: {now[seed]:.6f}; the study's run {then[seed]:.6f}")
        sides.append(now)
    pairs = difference(*sides)
    same = bool(pairs) and mean(pairs) * one.known > 0
    word = "the same direction" if same else "the OTHER direction" if pairs else "no pair ended"
    head = f"{format_of(one.cell)}, {place(one.cell)}"
    print(f"{head}: B {one.known:+.4f} in the study, {mean(pairs):+.4f} on {len(pairs)} seeds: {word}")
    return same


if __name__ == "__main__":
    main()
