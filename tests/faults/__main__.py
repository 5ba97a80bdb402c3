"""`python -m tests.faults`: campaigns whole, their figures kept in docs/reliability.json, docs/RELIABILITY.md written.

python -m tests.faults                      every campaign, with the counts that docs/RELIABILITY.md asks for
python -m tests.faults --only corrupt       those whose name has this in it
python -m tests.faults --share 0.1          a tenth of the counts
python -m tests.faults --write              nothing is run: the page is written from the figures kept
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from altgrad import __version__
from tests.faults.campaign import Campaign
from tests.faults.campaigns import CAMPAIGNS
from tests.faults.page import FIGURES, PAGE, page


def run(campaign: Campaign, seed: int, share: float) -> dict[str, Any]:
    """The campaign's figures as plain data, with where and when they were measured."""
    count = max(1, round(campaign.asked * share))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="altgrad-faults-") as folder:
        found = campaign.run(seed, count, Path(folder))
    return {
        "count": found.count, "seed": seed, "outcomes": dict(found.outcomes), "failures": found.failures[:20],
        "measured": found.measured, "seconds": round(time.monotonic() - began, 1),
        "date": datetime.now(UTC).date().isoformat(), "altgrad": __version__, "torch": str(torch.__version__),
        "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def kept() -> dict[str, Any]:
    """The figures of every campaign so far, by its name."""
    found: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return found


def main() -> int:
    """1 if anything came out as it must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--only", default="", help="campaigns whose name has this in it, _ for a blank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of each campaign's count")
    parser.add_argument("--write", action="store_true", help="write the page from the figures kept")
    asked = parser.parse_args()
    failed = False
    for campaign in [] if asked.write else CAMPAIGNS:
        if asked.only.replace("_", " ") not in campaign.name:
            continue
        if why := campaign.skip():
            print(f"{campaign.name}: left out, since {why}", flush=True)
            continue
        found = run(campaign, asked.seed, asked.share)
        failed = failed or bool(found["failures"])
        # Read anew: another campaign may have ended beside this one.
        FIGURES.write_text(json.dumps(kept() | {campaign.name: found}, indent=1, sort_keys=True) + "\n")
        print(
            f"{campaign.name}: {found['outcomes']} in {found['seconds']} s", *found["failures"], sep="\n  ", flush=True
        )
    PAGE.write_text(page(kept()), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
