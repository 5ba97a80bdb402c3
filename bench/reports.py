"""What a large project takes: planning its sweep, then `altgrad compare` and `altgrad report` on 10,000 runs.

Runs are files alone, with numbers that are made up: five recipes of 2,000 seeds, 11 rows each, as the made projects of
the tests. They are written 250 at a time and moved, since the store looks through a project's folder at each new run.

    python -m bench.reports [--runs 10000]      # a sweep of 2,000: planned in 10 s, reported in 60 s and 1 GB
"""

import argparse
import tempfile
from pathlib import Path

from bench.sweep import command, matrix
from tests.reports.made_projects import CASTS, trained

CHUNK = 50


def make(root: Path, runs: int) -> None:
    """The project `study` in the store `root`."""
    (root / "study").mkdir(parents=True)
    for start in range(0, runs // len(CASTS), CHUNK):
        for seed in range(start, min(start + CHUNK, runs // len(CASTS))):
            for name in CASTS:
                trained(root / "aside", name, seed, points=10, sited=False)
        for path in (root / "aside" / "study").iterdir():
            path.rename(root / "study" / path.name)


def main() -> None:
    """Print seconds of wall and of CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        matrix(folder, runs // 500)
        make(folder / "runs", runs)
        for arguments in (("compare", "study", "--json"), ("report", "--project", "study")):
            wall, cpu, megabytes = command(folder, *arguments)
            told = f"{cpu:.1f} s of CPU, {wall:.1f} s in all, {megabytes:.0f} MB"
            print(f"{' '.join(arguments)} on {runs:,} runs: {told}", flush=True)


if __name__ == "__main__":
    main()
