"""docs/RELIABILITY.md says what docs/reliability.json holds, and the json holds what campaigns there are."""

import json

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.page import FIGURES, PAGE, page


def test_the_page_is_written_from_the_figures() -> None:
    figures = json.loads(FIGURES.read_text())
    assert PAGE.read_text(encoding="utf-8") == page(figures), "python -m tests.faults --write"
    assert figures.keys() <= {campaign.name for campaign in CAMPAIGNS}
    assert all(found["failures"] == [] for found in figures.values())


def test_a_campaign_that_was_not_run_whole_says_so() -> None:
    whole = CAMPAIGNS[0]
    figures = {
        whole.name: {"count": 7, "seed": 3, "outcomes": {"noticed": 7}, "failures": [], "measured": {}, "altgrad": "0",
                     "torch": "2", "python": "3", "system": "Linux", "date": "2026-01-01"}
    }  # fmt: skip
    text = page(figures)
    assert f"| 7 ({whole.asked:,}) | noticed: 7 | **0** | 3 |" in text and "| 0 (500) | not run |" in text
    assert "Measured with: AltGrad 0, torch 2, Python 3, Linux, 2026-01-01." in text
