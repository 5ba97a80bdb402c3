"""python -m study.smoke: do the main findings keep their direction on three fresh seeds? A few minutes of CPU.

The formats whose PRIMARY verdict has a sign, each arm at the rate the study chose for it, on seeds that no study used
(tests/study/test_smoke.py compares them with every result, matrix and pilot). Says of each whether the sign came out
the same, and exits 1 if one did not. `make study-smoke` calls it. Storage clips here as in PRIMARY: see FINDINGS.md.
"""

import math
import subprocess
import sys
from pathlib import Path

from altgrad.reports.effects import families
from altgrad.reports.sources import load_project
from altgrad.store import RunStore
from study.rates import ROOT, chosen, matrix, source_of, tuned, write_matrix
from study.results import Results

SEEDS = (900, 901, 902)
SIGNED = ("benefit", "harm", "direction only")
NAME = "study-smoke"


def plan(study: Results) -> list[Path]:
    """Matrices to sweep, one for each arm."""
    family = study.family
    signed = [effect.format for effect in family.effects if family.verdicts[effect.format] in SIGNED]
    source = source_of("study-primary")
    source["set"] = source["set"] | {"project": NAME}
    found = []
    for arm, rates in chosen(tuned(study.project)).items():
        cells = [(name, rates[name]) for name in signed]
        found.append(write_matrix(f"{NAME}-{arm}", matrix(source, [arm], cells, {"fresh": SEEDS})))
    return found


def main() -> None:
    """Sweep, compare, say."""
    study = Results("study-primary")
    family = study.family
    for path in plan(study):
        done = subprocess.run([sys.executable, "-m", "altgrad.cli.main", "sweep", str(path)], cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(done.returncode)
    (fresh,) = families(load_project(RunStore(ROOT / "runs"), NAME))
    same = True
    for effect in fresh.effects:
        pairs = [effect.pairs[seed] for seed in SEEDS]  # a store may hold runs of another smoke check
        mean, known = math.fsum(pairs) / len(pairs), family.intervals[effect.format].mean
        agrees = mean * known > 0
        same &= agrees
        word = "the same direction" if agrees else "the OTHER direction"
        print(f"{effect.format}: B {known:+.4f} in the study, {mean:+.4f} on {len(pairs)} fresh seeds: {word}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
