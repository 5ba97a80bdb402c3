"""python -m claims.page: claims/FINDINGS.md from the rows that are in, whatever those are.

Claim by claim its tests with interval and n, and one of: reproduced, not reproduced, not seen at this size,
undecided, descriptive, or what is missing. Then the frontier of loss against bits, and what it all cost. Says what
rows say and nothing else.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from altgrad.numerals import signed
from altgrad.reports.bits import operand_bits
from altgrad.statistics.intervals import t_interval
from altgrad.store.files import write_atomic
from claims.arms import arms
from claims.judged import Judged, claim_word, judge
from claims.plan import Rows, at_edge, lr_star, pair_seeds, plan
from claims.registration import Claim, registered, settings
from claims.run import RESULTS, read

PAGE = Path(__file__).resolve().parent / "FINDINGS.md"
UNITS = {"loss": "nats", "sqnr_db": "dB", "sqnr_backward": "dB", "weight_sqnr_db": "dB"}
UNCAST = 0.2
"""Of five blocks the share that one is, where an arm leaves a block's worth of layers uncast."""


def page(frame: pd.DataFrame) -> str:
    """The page."""
    rows, claims = Rows(frame), registered()
    judged = {name: [judge(test, claim, rows) for test in claim.tests] for name, claim in claims.items()}
    hours = frame["cpu_seconds"].sum() / 3600 if len(frame) else 0.0
    commits = sorted({str(commit)[:7] for commit in frame["commit"].dropna()}) if "commit" in frame else []
    lines = [
        "# What the literature says about low precision, on one bench", "",
        "*Rendered by `python -m claims.page` from `claims/results`. Each claim was registered in `claims/registry`",
        "before its runs; [PLAN.md](PLAN.md) is the plan.*", "",
        f"{len(frame)} rows, {hours:.1f} h of a core, commits {', '.join(commits) or 'none'}. Llama-shaped, 299,712",
        "parameters, 1.5 M tokens of EU law. Nothing here is about larger models or longer runs: each claim says what",
        "this size cannot show.", "",
        "| claim | source | verdict | main test | n |", "|---|---|---|---|--:|",
        *(_summary(name, claims[name], judged[name]) for name in claims), "",
    ]  # fmt: skip
    for name, claim in claims.items():
        lines += section(name, claim, judged[name], rows)
    lines += ["## Loss against bits", "", *frontier(rows), "", "## Add your recipe", "", *ADD, ""]
    return "\n".join(lines)


ADD = [
    "An arm is a file of two lines, `recipe:` (of the book, or a file of yours) and `purpose:`. It is tuned and",
    "compared with BF16 and te_nvfp4, 14 runs, and described, not judged:", "",
    "    python -m claims.run --arm my.yaml --workers 2", "",
]  # fmt: skip


def verdict(claim: Claim, judged: list[Judged]) -> str:
    """Of a claim, by the first of its tests that is judged."""
    return claim_word([each.word for each in judged if not each.test.descriptive])


def _summary(name: str, claim: Claim, judged: list[Judged]) -> str:
    main = next((each for each in judged if not each.test.descriptive), judged[0])
    n = f"{main.interval.n} of {main.takes}"
    source = _source(claim)
    told = f"{main.test.name}: {_size(main)}"
    return f"| [{claim.title}](#{name}) | {source} | **{verdict(claim, judged)}** | {told} | {n} |"


def _source(claim: Claim) -> str:
    if claim.source.arxiv is not None:
        return f"[{claim.source.arxiv}](https://arxiv.org/abs/{claim.source.arxiv})"
    url = str(claim.source.url)
    return f"[{url.removeprefix('https://').partition('/')[0]}]({url})" if url.startswith("http") else "this bench"


def _size(judged: Judged) -> str:
    found = judged.interval
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]" if found.n > 1 else "no interval yet"


def section(name: str, claim: Claim, judged: list[Judged], rows: Rows) -> list[str]:
    """One claim."""
    lines = [
        f'<a id="{name}"></a>', "", f"## {claim.title}", "", f"{_source(claim)}: {claim.sentence.strip()}", "",
        f"**{verdict(claim, judged)}**", "",
        "| test | contrast | expected | margin | difference, simultaneous 95 % | n | power | word |",
        "|---|---|---|--:|---|--:|--:|---|",
    ]  # fmt: skip
    for each in judged:
        test, unit = each.test, UNITS.get(each.test.measure, "")
        found = each.interval
        lines.append(
            f"| {test.name} ({test.measure}) | {_contrast(test.contrast)} | {test.expect} | "
            f"{test.margin:g}{' ' * bool(unit)}{unit} | {_size(each)} | "
            f"{found.n} of {each.takes} | {test.power:.2f} | {each.word} |"
        )
    lines.append("")
    for each in judged:
        if each.share is not None:
            share, low, high = (100 * part for part in each.share)
            told = f"{share:.0f} % [{low:.0f}, {high:.0f}] of {_contrast(each.test.share_of or {})}"
            lines += [f"{each.test.name}: {told} (Fieller).", ""]
    controls = f" *Controls:* {'; '.join(claim.controls)}." if claim.controls else ""
    again = "Three of the pairs again" if claim.loss_tests else "Its looks again"
    if notes := _notes(claim, rows):
        lines += [*notes, ""]
    return [
        *lines, f"*Not reproduced if:* {claim.refuted_by}{controls}",
        f"*Not seen here:* {claim.scale.strip()}", "",
        f"{_missing(claim, rows)}Registered cost {claim.cost_hours:g} h of a core, spent {_spent(claim, rows):.1f} h.",
        f"{again}, on your machine:", "",
        f"    python -m claims.run --claim {name} --pairs 3 --results mine", "",
    ]  # fmt: skip


def _contrast(contrast: dict[str, float]) -> str:
    """`nearest - te_nvfp4`; draws of one weight as one."""
    if len(contrast) > 4:
        positive = [arm for arm, weight in contrast.items() if weight > 0]
        return f"{' + '.join(positive)} - mean of {len(contrast) - len(positive)} draws"
    parts = [f"{'+' if weight > 0 else '-'} {arm}" for arm, weight in contrast.items()]
    return " ".join(parts).removeprefix("+ ")


def _notes(claim: Claim, rows: Rows) -> list[str]:
    """Arms whose rate lies at an end, and runs that diverged."""
    known, frame = arms(), rows.frame
    tuned = [arm for test in claim.loss_tests for arm in test.needs if lr_star(rows, arm, known) is not None]
    edges = sorted({arm for arm in tuned if at_edge(rows, arm, known)})
    lines = [f"lr* at an end of what was tried: {', '.join(edges)}."] if edges else []
    if "diverged" in frame:
        fell = frame[frame["arm"].isin(claim.arms) & frame["diverged"].eq(True)]
        if len(fell):
            told = ", ".join(f"{arm} {count}" for arm, count in fell["arm"].value_counts().items())
            lines.append(f"Diverged runs, which enter as ln 256: {told}.")
    return lines


def _missing(claim: Claim, rows: Rows) -> str:
    """How many of the runs that can be named now are not in."""
    left = [each for each in plan(rows.frame, {"": claim})[0] if each.fingerprint not in rows.have]
    if not left:
        return ""
    parts = {part: sum(each.part == part for each in left) for part in dict.fromkeys(each.part for each in left)}
    return f"Missing: {', '.join(f'{count} of {part}' for part, count in parts.items())}. "


def _spent(claim: Claim, rows: Rows) -> float:
    frame = rows.frame
    return float(frame.loc[frame["arm"].isin(claim.arms), "cpu_seconds"].sum()) / 3600 if len(frame) else 0.0


def bits_of(arm: str) -> float:
    """Bits of a number that enters a product of the blocks, scales included, mean over the three operands."""
    tree = arms()[arm].spec(arm, settings()["rates"][0], 0).tree()
    means = []
    for operand in ("weight", "input", "grad_output"):
        bits = operand_bits(tree, operand)
        means.append(UNCAST * max(bits) + (1 - UNCAST) * min(bits))
    return sum(means) / len(means)


def frontier(rows: Rows) -> list[str]:
    """Every arm with pairs: its gap to BF16 against its bits; an arm that none beats in both is on the frontier."""
    known, seeds = arms(), set(pair_seeds())
    shown = [arm for arm in known if known[arm].finish is None and not arm.startswith(("draw", "other_"))]
    found: dict[str, tuple[float, float, str]] = {}
    base = _pairs(rows, "bf16", seeds)
    for arm in shown:
        own = _pairs(rows, arm, seeds)
        gaps = [own[seed] - base[seed] for seed in own if seed in base]
        if len(gaps) > 1:
            interval = t_interval(pd.Series(gaps).to_numpy())
            ends = f"{signed(interval.mean)} [{signed(interval.low)}, {signed(interval.high)}], n = {interval.n}"
            found[arm] = bits_of(arm), interval.mean, ends
    if not found:
        return ["No arm has two pairs with bf16 yet."]
    lines = ["| arm | bits in products | gap to BF16 (nats) | lr* | on the frontier |", "|---|--:|---|--:|---|"]
    for arm, (bits, gap, ends) in sorted(found.items(), key=lambda item: item[1][:2]):
        ahead = any(b <= bits and g < gap for other, (b, g, _) in found.items() if other != arm)
        lines.append(f"| {arm} | {bits:.2f} | {ends} | {lr_star(rows, arm, known):.2g} | {'' if ahead else 'yes'} |")
    return [*lines, "", "Each arm at its own lr*; 95 % intervals one by one, not simultaneous: a picture, no verdict."]


def _pairs(rows: Rows, arm: str, seeds: Iterable[int]) -> dict[int, float]:
    rate = lr_star(rows, arm, arms())
    return {} if rate is None else {seed: loss for seed, loss in rows.losses(arm, rate).items() if seed in set(seeds)}


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is another text")
    said = parser.parse_args()
    text = page(read(said.results))
    if said.check:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1)
    write_atomic(PAGE, text.encode())


if __name__ == "__main__":
    main()
