"""The answer in a paragraph: what the confirmed cells' verdicts say, and of those cells alone."""

from altgrad.numerals import signed
from study.causes import SENTENCES, judge
from study.pairs import interval_cells
from study.second_tables import Lines, Second, place
from study.verdicts import Judged

ORDER = ("benefit", "harm", "direction only", "no practical effect", "undecided")


def named_cells(cells: list[Judged]) -> str:
    """`e4m3f at p = 1, kappa = 2^-6: -0.105 [-0.12, -0.09], n = 20; ...`."""
    return "; ".join(
        f"{one.format} at {place(one.cell)}: {' '.join(interval_cells(one.interval))}, n = {one.interval.n}"
        for one in cells
    )


def other_words(study: Second) -> Lines:
    """The cells whose word at fixed rates is another one; nothing while pairs are missing there."""
    fixed = {(one.format, one.cell): one for one in study.at_fixed_rates}
    if not fixed or any(one.missing for one in fixed.values()):
        return []
    changed = [
        fixed[at] for one in study.judged if (at := (one.format, one.cell)) in fixed and fixed[at].word != one.word
    ]
    if not changed:
        return ["At fixed rates every word is the same.", ""]
    told = "; ".join(f"**{one.word}** in {named_cells([one])}" for one in changed)
    return [f"At fixed rates, on the seeds after the first eight, these words are others: {told}.", ""]


def answer(study: Second) -> Lines:
    """The paragraph; what it waits for, as long as pairs are missing."""
    if not study.judged:
        return ["Not yet: the screen and its edges are not complete."]
    if missing := sum(one.missing for one in study.judged):
        return [f"Not yet: {missing} pairs of the confirmed cells are missing."]
    by = {word: [one for one in study.judged if one.word == word] for word in ORDER}
    head = "some confirmed cells do" if by["benefit"] else "none of the confirmed cells is shown to"
    lines = [
        "Does an 8-bit format benefit, by 0.01 nats or more, from updates measured in its own spacings, where storage "
        f"clips nothing? At this size, at the places of the dial that were confirmed, **{head}**.", "",
        *[f"* **{word}**: {named_cells(cells)}." for word, cells in by.items() if cells], "",
    ]  # fmt: skip
    lines += other_words(study)
    whole = [one for one in study.judged if place(one.cell) == "p = 1, kappa = 2^-6"]
    ranked = sorted(whole, key=lambda one: -one.interval.mean)
    order = ", ".join(f"{one.format} {signed(one.interval.mean)}" for one in ranked)
    lines += [f"At p = 1, kappa = 2^-6, from the best to the worst: {order}.", ""]
    holds = [judged for judged in (judge(sentence, study) for sentence in SENTENCES) if judged.word == "holds"]
    if holds:
        lines += ["Of the causal sentences that the plan put to the test, these hold:", ""]
        lines += [f"* {one.sentence.words} ({one.sentence.runs}){reading(one.sentence.words, study)}." for one in holds]
    return lines


def reading(words: str, study: Second) -> str:
    """Where a sentence says more than its checks: what they do say."""
    if "hides a benefit" not in words:
        return ""
    none, rms = study.side("none", "none", "e4m3f"), study.side("screen", "manifold", "e4m3f")
    return f": in e4m3f, which loses less without it, B {none} and not {rms}; against AdamW both lose"


THREATS = (
    "one size (120,000 parameters), one text by bytes, 800 steps: losses have not levelled",
    "storage alone is in 8 bits, one power-of-two scale a tensor, rounded stochastically; casts of operands, scales of "
    "blocks and other roundings may differ",
    "what is not stored (embeddings, norms, head) has one rate in all arms",
    "lr* is chosen on three seeds; confirmation takes the vertex of three rates and says where it is outside them",
    "the best and the worst cell are chosen on the screen, where their B is too extreme; confirmation has other seeds",
    "side tables have three seeds and an sd pooled over each: exploratory",
    "rows come from at least two kinds of processors, on which last bits differ (the screen's first are older)",
)
