"""python -m study.rates NAME: from tuning seeds to the runs that come next, as study/README.md says.

Reads project NAME's results and writes matrices into study/matrices/:

1. where lr* of either arm of a format is an end of the grid, NAME-edges.yaml: both arms of that format at the next
   quarter decade, on the tuning seeds;
2. else, where the eighth of a decade to either side of an lr* was not run, NAME-finer-ARM.yaml: those rates, on them;
3. else NAME-ARM.yaml: every format at that arm's lr*, on the confirmation seeds.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from altgrad.report.effects import FamilyOfFormats, families
from altgrad.report.project import load
from altgrad.store import RunStore

ROOT = Path(__file__).resolve().parents[1]
TUNING, FIRST = (0, 1, 2), 10
START = (2.0e-3, 3.56e-3, 6.32e-3, 1.12e-2)
FURTHEST = 3
QUARTER, EIGHTH = 10**0.25, 10**0.125


def further(rates: Sequence[float], edge: str) -> float | None:
    """The next rate beyond that end of the grid, to three digits; None after three steps beyond the first grid."""
    end = max(rates) if edge == "high" else min(rates)
    beyond = sum(rate > max(START) if edge == "high" else rate < min(START) for rate in rates)
    return None if beyond >= FURTHEST else rounded(end * QUARTER if edge == "high" else end / QUARTER)


def rounded(rate: float) -> float:
    """To three digits, as rates stand in the matrices."""
    return float(f"{rate:.2e}")


def edges(family: FamilyOfFormats) -> dict[str, set[float]]:
    """Rates to try next, by format: those beyond an end on which one of the two arms has its lr*."""
    found: dict[str, set[float]] = {}
    for effect in family.effects:
        rates = sorted({*effect.standard.choice.rates, *effect.manifold.choice.rates})
        for choice in (effect.standard.choice, effect.manifold.choice):
            if choice.rate in (rates[0], rates[-1]):
                rate = further(rates, "high" if choice.rate == rates[-1] else "low")
                if rate is not None:
                    found.setdefault(effect.format, set()).add(rate)
    return found


def finer(family: FamilyOfFormats) -> dict[str, list[tuple[str, float]]]:
    """By arm, (format, rate): an eighth of a decade to either side of lr*, where no run has been."""
    found: dict[str, list[tuple[str, float]]] = {}
    for effect in family.effects:
        for arm, choice in (("adamw", effect.standard.choice), ("manifold", effect.manifold.choice)):
            for rate in (rounded(choice.rate / EIGHTH), rounded(choice.rate * EIGHTH)):
                if not any(abs(rate / run - 1) < 0.02 for run in choice.rates):
                    found.setdefault(arm, []).append((effect.format, rate))
    return found


def chosen(family: FamilyOfFormats) -> dict[str, dict[str, float]]:
    """lr* by arm (`adamw`, `manifold`) and format."""
    return {
        "adamw": {effect.format: effect.standard.choice.rate for effect in family.effects},
        "manifold": {effect.format: effect.manifold.choice.rate for effect in family.effects},
    }


def matrix(
    source: Mapping[str, Any],
    arms: Sequence[str],
    cells: Sequence[tuple[str, float]],
    seeds: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """The matrix `source` with these arms alone, at these (format, rate) pairs and seeds."""
    formats, rates = zip(*cells, strict=True)
    paths = ("storage.0.format", "optimizer.lr")
    return {
        "base": "../../matrices/" + source["base"],
        "purpose": f"{source['purpose']}: what its tuning seeds lead to, written by `python -m study.rates`",
        "set": source["set"],
        "arms": {name: source["arms"][name] for name in arms},
        "axes": dict(zip(paths, (list(formats), list(rates)), strict=True)),
        "zip": [list(paths)],
        "seeds": {name: list(some) for name, some in seeds.items()},
    }


def source_of(project: str) -> dict[str, Any]:
    """The matrix in matrices/ that a project of the study started from."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "matrices" / f"{project.replace('-', '_')}.yaml").read_text())
    return found


def write_matrix(name: str, content: dict[str, Any]) -> Path:
    """Put it into study/matrices/; where it is."""
    path = ROOT / "study" / "matrices" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False, width=120), encoding="utf-8")
    return path


def main() -> None:
    """Parse the options, write the next matrices and say what to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", choices=["study-primary"], help="matrices/ holds its matrix, with underscores")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--pairs", type=int, default=8, help="confirmation seeds")
    options = parser.parse_args()
    source = source_of(options.project)
    try:
        found = families(load(RunStore(options.runs), options.project, tuning=TUNING))
    except ValueError as error:
        sys.exit(str(error))
    family = next((family for family in found if family.is_primary), None)
    if family is None:
        sys.exit(f"{options.project} has no format with results of both arms yet; sweep its matrix first.")
    if more := edges(family):
        cells = [(name, rate) for name, rates in more.items() for rate in sorted(rates)]
        _write(f"{options.project}-edges", matrix(source, ["adamw", "manifold"], cells, {"tuning": TUNING}))
        return
    if between := finer(family):
        for arm, some in between.items():
            _write(f"{options.project}-finer-{arm}", matrix(source, [arm], some, {"tuning": TUNING}))
        return
    seeds = {"confirmation": range(FIRST, FIRST + options.pairs)}
    for arm, rates in chosen(family).items():
        _write(f"{options.project}-{arm}", matrix(source, [arm], list(rates.items()), seeds))


def _write(name: str, content: dict[str, Any]) -> None:
    print(f"altgrad sweep {write_matrix(name, content).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
