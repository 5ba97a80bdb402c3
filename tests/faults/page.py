"""docs/RELIABILITY.md: prose that stands in tests/faults/reliability.md, and a table of figures that were measured."""

from pathlib import Path
from typing import Any

from tests.faults.campaigns import CAMPAIGNS

ROOT = Path(__file__).resolve().parents[2]
FIGURES, PAGE = ROOT / "docs" / "reliability.json", ROOT / "docs" / "RELIABILITY.md"
PROSE = Path(__file__).with_name("reliability.md")


def page(figures: dict[str, Any]) -> str:
    """The whole page; a campaign that was not run says so."""
    text = PROSE.read_text(encoding="utf-8")
    return text.replace("<!-- figures -->", "\n".join(table(figures))).replace("<!-- versions -->", versions(figures))


def table(figures: dict[str, Any]) -> list[str]:
    """One row a campaign, in their order."""
    rows = ["| campaign | cases run (asked for) | what came of them | must not be | seed |", "|---|---|---|---|---|"]
    for campaign in CAMPAIGNS:
        found = figures.get(campaign.name)
        if found is None:
            rows.append(f"| {campaign.name}: {campaign.claim} | 0 ({campaign.asked:,}) | not run | - | - |")
            continue
        came = sorted(found["outcomes"].items(), key=lambda item: -item[1])
        told = ", ".join(f"{outcome}: {count:,}" for outcome, count in came)
        measured = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in found["measured"].items())
        beside = f"; {measured}" if measured else ""
        rows.append(
            f"| {campaign.name}: {campaign.claim} | {found['count']:,} ({campaign.asked:,}) | {told}{beside} "
            f"| **{len(found['failures'])}** | {found['seed']} |"
        )
    return rows


def versions(figures: dict[str, Any]) -> str:
    """What the figures were measured with."""
    keys = ("altgrad", "torch", "python", "system", "date")
    seen = {tuple(found[key] for key in keys) for found in figures.values()}
    return "; ".join(f"AltGrad {a}, torch {t}, Python {p}, {s}, {d}" for a, t, p, s, d in sorted(seen)) or "nothing yet"
