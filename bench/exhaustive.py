"""python -m bench.exhaustive: our casts on all 2^32 float32 bit patterns, for every 8-bit format of the catalog.

Each format has up to six checks, each a pass over the patterns, judged by the table of `bench.oracle`:

    round_to    the general definition, nearest even, saturating, no scale: all patterns, NaNs and infinities too
    eager       the engine's short form, where it serves the format, keeping infinities as casts of training do
    compiled    the same fused, where there is a C++ compiler
    table       `round_to` of the format given as a table of its values, for two formats
    ml_dtypes   the table itself against ml_dtypes, on the finite patterns within the range; where it knows the format
    torch       the same against torch's own dtypes

So what agrees with the table agrees with ml_dtypes and torch bit for bit, and where those two decide otherwise than we
(overflow, infinity, NaN) the table follows AltGrad's own rule. Progress is kept by format, check and the code that the
check depends on: an interrupted run continues where it stopped, and changed code starts again (changed comments and
docstrings do not). The page docs/CONFORMANCE.md is refreshed at the end. Exit code 1 if anything is wrong.
"""

import argparse
import ast
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from altgrad.formats import CATALOG, FloatFormat
from altgrad.quantize.engine import missing_compiler
from bench.oracle import SIGN, Mismatch, Table
from bench.page import refresh
from bench.patterns import ORACLES, Cast, casts, check_patterns, tables
from bench.timing import machine

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "CONFORMANCE.md"
STATE = ROOT / ".exhaustive" / "progress.json"
SEGMENT = 1 << 26
"""Patterns between two savings of the progress."""

_BENCH = ("bench/oracle.py", "bench/patterns.py", "altgrad/formats")
SOURCES = {
    "round_to": (*_BENCH, *(f"altgrad/quantize/{file}.py" for file in ("grid", "traced", "noise", "table_grid"))),
    "table": (*_BENCH, *(f"altgrad/quantize/{file}.py" for file in ("grid", "traced", "noise", "table_grid"))),
    "eager": (*_BENCH, "altgrad/quantize"),
    "compiled": (*_BENCH, "altgrad/quantize"),
    "ml_dtypes": _BENCH,
    "torch": _BENCH,
}
"""What each check depends on, in its order of running."""


@dataclass
class Progress:
    """How far one check of one format is."""

    segments: int = 0
    patterns: int = 0
    mismatches: int = 0
    seconds: float = 0.0
    first: Mismatch | None = None

    @property
    def done(self) -> bool:
        return self.segments == (1 << 32) // SEGMENT

    @property
    def example(self) -> str:
        """The first mismatch in words, or nothing."""
        return f" first: {Mismatch(*self.first)}" if self.first else ""


def formats() -> list[str]:
    """The 8-bit formats of the catalog."""
    return [entry.name for entry in CATALOG if FloatFormat.parse(entry.name).bits == 8]


def check(cast: Cast, table: Table, progress: Progress, limit: int, save: Callable[[], None]) -> None:
    """Take a check from where it is to its end, saving after each segment."""
    while not progress.done:
        begun = time.perf_counter()
        start = progress.segments * SEGMENT
        compared, mismatches, first = check_patterns(cast, table, start, start + SEGMENT, limit)
        progress.seconds += time.perf_counter() - begun
        progress.segments += 1
        progress.patterns += compared
        progress.mismatches += mismatches
        progress.first = progress.first or first
        save()


def code(text: str) -> str:
    """A source without what does not run: comments, layout, docstrings of modules, classes, functions and fields."""

    class Silent(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
            said = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            return None if said else node

    return ast.unparse(Silent().visit(ast.parse(text)))


def fingerprint(sources: Iterable[str]) -> str:
    """A hash of the code in source files and of the packages it needs; a folder counts with every .py file in it."""
    digest = hashlib.sha256()
    for package in ("torch", "numpy", "ml_dtypes"):
        digest.update(f"{package} {version(package)}\n".encode())
    for source in sources:
        path = ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(ROOT).as_posix()}\0{code(file.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()[:16]


class State:
    """Every check's progress, in one JSON file; what was found with other sources is forgotten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prints = {name: fingerprint(sources) for name, sources in SOURCES.items()}
        try:
            kept = json.loads(path.read_text())
        except (OSError, ValueError):
            kept = {}
        current = tuple(f" {name} {mark}" for name, mark in self.prints.items())
        self.found = {key: Progress(**fields) for key, fields in kept.items() if key.endswith(current)}

    def of(self, fmt: str, name: str) -> Progress:
        return self.found.setdefault(f"{fmt} {name} {self.prints[name]}", Progress())

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".aside")
        aside.write_text(json.dumps({key: asdict(progress) for key, progress in self.found.items()}, indent=1))
        os.replace(aside, self.path)


def run(names: Sequence[str], state: State, say: Callable[[str], None] = print) -> int:
    """Finish every check of the formats; returns how many answers were wrong."""
    wrong = 0
    for name in names:
        fmt = FloatFormat.parse(name)
        judges, results = tables(fmt), {}
        for kind, cast in casts(fmt).items():
            table = judges[kind]
            results[kind] = state.of(name, kind)
            check(cast, table, results[kind], table.in_range if kind in ORACLES else SIGN, state.save)
        say(f"{name:12} {line(results)}")
        wrong += sum(progress.mismatches for progress in results.values())
    return wrong


def line(results: Mapping[str, Progress]) -> str:
    """One format in a line."""
    parts = [
        f"{name} {p.mismatches} of {p.patterns:,} wrong, {p.seconds:.0f} s;{p.example}" for name, p in results.items()
    ]
    return " ".join(parts)


def report(state: State) -> str:
    """The results so far as Markdown, for the page."""
    heads = ["format", *SOURCES, "seconds"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    examples = []
    for name in formats():
        fmt = FloatFormat.parse(name)
        known = {kind: state.of(name, kind) for kind in casts(fmt)}
        cells = [_cell(known.get(kind)) for kind in SOURCES]
        rows.append(f"| {' | '.join([name, *cells, f'{sum(p.seconds for p in known.values()):.0f}'])} |")
        examples += [f"* {name}, {kind}:{p.example}" for kind, p in known.items() if p.first]
    versions = ", ".join(f"{package} {version(package)}" for package in ("numpy", "ml_dtypes"))
    prints = ", ".join(f"{name} {mark}" for name, mark in state.prints.items())
    head = f"{date.today().isoformat()}; {machine()}, {versions}; one thread.\nSources: {prints}."
    return "\n".join([head, "", *rows, *([""] if examples else []), *examples])


def _cell(progress: Progress | None) -> str:
    if progress is None:
        return ""
    if not progress.done:
        return "not finished"
    return f"{progress.mismatches} of {progress.patterns:,}"


def main() -> None:
    """Parse the options, run, refresh the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "formats", nargs="*", metavar="FORMAT", help="only these; all 8-bit ones of the catalog if none"
    )
    parser.add_argument("--state", type=Path, default=STATE, help="where progress is kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to refresh")
    options = parser.parse_args()
    known = formats()
    if unknown := [name for name in options.formats if name not in known]:
        parser.error(f"{unknown[0]} is no 8-bit format of the catalog; choose from {', '.join(known)}.")
    if reason := missing_compiler(torch.device("cpu")):
        print(f"`compiled` is left out: {reason}", file=sys.stderr)
    torch.set_num_threads(1)
    state = State(options.state)
    try:
        wrong = run(options.formats or known, state)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    refresh(options.page, "exhaustive", report(state))
    print(f"{wrong} wrong" if wrong else "no mismatch")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
