"""python -m study.rates NAME: from tuning seeds to the runs that come next, as study/FIRST_PLAN.md says.

Reads project NAME's results and writes matrices into study/matrices/:

1. study-primary alone: where lr* of either arm of a format is an end of the grid, NAME-edges.yaml: both arms of that
   format at the next quarter decade, on the tuning seeds;
2. else, where the eighth of a decade to either side of an lr* was not run, NAME-finer-ARM.yaml: those rates, on them;
3. else NAME-ARM.yaml: every format at that arm's lr*, on the confirmation seeds.

Until study-secondary and study-stiffness have results of every arm there is a step of their own, NAME-start-ARM.yaml:
PRIMARY's lr* of that format and the eighth of a decade to either side, on the tuning seeds. Every arm but `adamw` takes
`manifold`'s.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from altgrad.formats import FloatFormat
from altgrad.reports.archive import load_archives
from altgrad.reports.effects import families
from altgrad.reports.project import Project
from altgrad.reports.rates import ChosenRate, choose_rate
from altgrad.reports.sources import load_project
from altgrad.store import RunStore

ROOT = Path(__file__).resolve().parents[1]
PRIMARY = "study-primary"
STARTED_FROM_PRIMARY = ("study-secondary", "study-stiffness")
PROJECTS = (PRIMARY, *STARTED_FROM_PRIMARY, "geometry-grid")
TUNING, FIRST = (0, 1, 2), 10
START = (2.0e-3, 3.56e-3, 6.32e-3, 1.12e-2)
FURTHEST = 3
QUARTER, EIGHTH = 10**0.25, 10**0.125

Tuned: TypeAlias = Mapping[str, Mapping[str, ChosenRate]]


def tuned(project: Project) -> Tuned:
    """What tuning seeds chose, by the matrix's name of an arm and by format; what is not stored on a grid is left out.

    ValueError: no format has results of AdamW and of a manifold arm.
    """
    family = next((family for family in families(project) if family.storage == "stochastic"), None)
    if family is None:
        raise ValueError(f"{project.name} has no format with results of both arms yet; sweep its matrix first.")
    found: dict[str, dict[str, ChosenRate]] = {}
    for arm, losses in project.arms(family.condition).items():
        choice = choose_rate(losses, TUNING)
        if choice is not None and (arm.storage, arm.casts, arm.frozen) == (family.storage, family.casts, False):
            name = project.of(arm, family.condition, choice.rate)[0].id.rsplit("-", 2)[0]
            found.setdefault(name, {})[arm.format] = choice
    return found


def further(rates: Sequence[float], edge: str) -> float | None:
    """The next rate beyond that end of the grid, to three digits; None after three steps beyond the first grid."""
    end = max(rates) if edge == "high" else min(rates)
    beyond = sum(rate > max(START) if edge == "high" else rate < min(START) for rate in rates)
    return None if beyond >= FURTHEST else rounded(end * QUARTER if edge == "high" else end / QUARTER)


def rounded(rate: float) -> float:
    """To three digits, as rates stand in the matrices."""
    return float(f"{rate:.2e}")


def edges(found: Tuned) -> dict[str, set[float]]:
    """Rates to try next, by format: those beyond an end on which one of its arms has its lr*."""
    more: dict[str, set[float]] = {}
    for format_ in {name: None for by_format in found.values() for name in by_format}:
        choices = [by_format[format_] for by_format in found.values() if format_ in by_format]
        rates = sorted({rate for choice in choices for rate in choice.rates})
        for choice in choices:
            if choice.rate in (rates[0], rates[-1]):
                rate = further(rates, "high" if choice.rate == rates[-1] else "low")
                if rate is not None:
                    more.setdefault(format_, set()).add(rate)
    return more


def beside(rate: float) -> tuple[float, float]:
    """The eighth of a decade to either side."""
    return rounded(rate / EIGHTH), rounded(rate * EIGHTH)


def finer(found: Tuned) -> dict[str, list[tuple[str, float]]]:
    """By arm, (format, rate): an eighth of a decade to either side of lr*, where no run has been."""
    more: dict[str, list[tuple[str, float]]] = {}
    for arm, by_format in found.items():
        for format_, choice in by_format.items():
            for rate in beside(choice.rate):
                if not any(abs(rate / run - 1) < 0.02 for run in choice.rates):
                    more.setdefault(arm, []).append((format_, rate))
    return more


def chosen(found: Tuned) -> dict[str, dict[str, float]]:
    """lr* by arm and format."""
    return {arm: {name: choice.rate for name, choice in by_format.items()} for arm, by_format in found.items()}


def start(primary: Tuned, arms: Sequence[str], formats: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """By arm, (format, rate): PRIMARY's lr* and what is beside it."""
    first: dict[str, list[tuple[str, float]]] = {}
    for arm in arms:
        rates = chosen(primary)["adamw" if arm == "adamw" else "manifold"]
        for format_ in formats:
            low, high = beside(rate := rates[str(FloatFormat.parse(format_))])
            first.setdefault(arm, []).extend((format_, each) for each in (low, rate, high))
    return first


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
        "arms": {name: {key: value for key, value in source["arms"][name].items() if key != "axes"} for name in arms},
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
    parser.add_argument("project", choices=PROJECTS, help="matrices/ holds its matrix, with underscores")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--pairs", type=int, default=8, help="confirmation seeds")
    options = parser.parse_args()
    name, source = options.project, source_of(options.project)
    tuning = {"tuning": source["seeds"]["tuning"]}
    try:
        found = tuned(load_project(RunStore(options.runs), name, tuning=TUNING))
    except ValueError as error:
        if name not in STARTED_FROM_PRIMARY:
            sys.exit(str(error))
        found = {}
    formats = source["axes"]["storage.0.format"]
    if name in STARTED_FROM_PRIMARY and not all(len(found.get(arm, {})) == len(formats) for arm in source["arms"]):
        archives = sorted((ROOT / "study" / "results").glob(f"{PRIMARY}*.parquet"))
        primary = tuned(load_archives(archives, tuning=TUNING))
        for arm, cells in start(primary, list(source["arms"]), formats).items():
            _write(f"{name}-start-{arm}", matrix(source, [arm], cells, tuning))
        return
    if name == PRIMARY and (more := edges(found)):
        cells = [(format_, rate) for format_, rates in more.items() for rate in sorted(rates)]
        _write(f"{name}-edges", matrix(source, ["adamw", "manifold"], cells, tuning))
        return
    if between := finer(found):
        for arm, some in between.items():
            _write(f"{name}-finer-{arm}", matrix(source, [arm], some, tuning))
        return
    seeds = {"confirmation": range(FIRST, FIRST + options.pairs)}
    for arm, rates in chosen(found).items():
        _write(f"{name}-{arm}", matrix(source, [arm], list(rates.items()), seeds))


def _write(name: str, content: dict[str, Any]) -> None:
    print(f"altgrad sweep {write_matrix(name, content).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
