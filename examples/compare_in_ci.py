"""A check for continuous integration: fails where a change makes losses worse than the main branch's.

Losses come from files of any loop, a row a step; here they are made up. On the command line:
altgrad compare change-s*.csv main-s*.csv --reference main --margin 0.02 --exit-code
"""

import random
import sys
from pathlib import Path

import altgrad

for name, offset in (("main", 0.0), ("change", 0.001)):
    for seed in range(6):
        draw = random.Random(seed)  # the same data order, so the same noise: pairs
        rows = [f"{step},{2 + 3 / step + offset + draw.gauss(0, 0.01)}" for step in range(1, 201)]
        Path(f"{name}-s{seed}.csv").write_text("\n".join(["step,loss", *rows]))

table = altgrad.compare(*sorted(map(str, Path().glob("*-s*.csv"))), reference="main", margin=0.02)
print(table.attrs["sentence"])
verdicts = set(table["verdict"]) - {"reference"}
sys.exit(0 if verdicts <= {"better", "equivalent"} else 6)
