"""The page of a Diagnosis as HTML (`altgrad.webpage`): its tables, a heat map of formats by layer, the policy to copy.

The tables are those of the terminal's page; the heat map has every layer, which no terminal has room for.
"""

import math
from html import escape
from typing import Any

from altgrad import webpage
from altgrad.diagnosis import page
from altgrad.numerals import counted
from altgrad.spec.ranking import badness

Json = dict[str, Any]


def html_page(facts: Json) -> str:
    """The whole page."""
    maker = {"replay": _replay, "oracle": _oracle, "against": _against}.get(facts["kind"], _examined)
    parts = maker(facts)
    return webpage.document(
        facts["name"], lead(facts), "".join(webpage.section(*part) for part in parts), kicker="altgrad diagnose",
        links=[(id, title) for id, title, *_ in parts], scripts=[webpage.COPY] if facts.get("policy") else [],
    )  # fmt: skip


Part = tuple[str, str, str, str]
"""Of a section: id, title, note and markup."""


def lead(facts: Json) -> str:
    """The answer in a sentence."""
    kind = facts["kind"]
    if kind == "oracle":
        answer = page.oracle_answer(facts)
        return f"{answer[0].upper()}{answer[1:]}."
    if kind == "against":
        step = facts["departure"]["step"]
        apart = "No divergence detected" if step is None else f"Losses diverge at step {step}"
        answer = page.bisection_answer(facts)
        return f"{apart}; {answer}." if answer else f"{apart}."
    if kind == "replay":
        if not facts["attribution"]:
            nearest = min(facts["variants"][1:], key=lambda each: badness(each["cosine"], "lower"))
            return f"Nearest to the step without casts: {nearest['name']}."
        worst = next(iter(page.attribution_cells(facts, 1)[1]), None)
        return f"Most of the gradient's error is from {worst[0]} ({worst[2]})." if worst else "No cast makes an error."
    chosen = [row["format"] for row in facts["advice"] if row["format"]]
    formats = ", ".join(f"{name} for {chosen.count(name)}" for name in dict.fromkeys(chosen))
    advice = f"Advised for {counted(len(chosen), 'operand')}: {formats}." if chosen else ""
    if kind != "run":
        return advice or "There is no layer to advise a format for."
    titles = list(dict.fromkeys(finding["title"] for finding in facts["symptoms"]))
    told = f"{counted(len(titles), 'symptom')}: {'; '.join(titles)}." if titles else "No symptom was found."
    return f"{told} {advice}".strip()


def _examined(facts: Json) -> list[Part]:
    parts = []
    if facts["kind"] == "run":
        watched = ", ".join(facts["monitors"]) or "none"
        status = f"{facts['status']} at step {facts['step']}, {facts['logged_steps']} steps logged by {watched}"
        parts.append(("symptoms", "Symptoms", status, _symptoms(facts)))
    header, rows = page.weight_cells(facts["weights"])
    broken = page.broken_weights(facts["weights"])
    table = webpage.table("", header, rows, numeric=range(2, 8), note=" ".join(page.WEIGHTS))
    parts.append(
        ("weights", "Weights", page.WEIGHTS_NOTE, (webpage.paragraph(broken, "bad") if broken else "") + table)
    )
    if facts["advice"]:
        parts.append(("advice", "Format advice", page.advice_source(facts), _heat_map(facts)))
    if facts.get("policy"):
        note = "the advice as altgrad train takes it; --policy-out FILE writes it"
        parts.append(("policy", "Policy", note, webpage.copyable(facts["policy"].rstrip() + "\n")))
    return parts


def _symptoms(facts: Json) -> str:
    groups = page.rows_by(facts["symptoms"], lambda finding: finding["name"])
    told = "".join(_symptom(group) for group in groups.values())
    rows = [[str(event["step"]), str(event["monitor"] or ""), str(event["message"])] for event in facts["alarms"]]
    alarms = webpage.table("Alarms", ("step", "monitor", "alarm"), rows, numeric={0}) if rows else ""
    return (told or webpage.paragraph("None.")) + alarms


def _symptom(group: list[Json]) -> str:
    first, worst = group[0], max(group, key=lambda finding: finding["observations"])
    places = [finding["place"] for finding in group if finding["place"]]
    where = f"{first['where']}: {', '.join(places[:8])}" + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    over = "" if any(finding["lasts"] for finding in group) else " (over by the end)"
    told = (("where", where + over), ("seen", worst["evidence"]), ("why", first["why"]), ("try", first["remedy"]))
    items = "".join(f"<dt>{word}</dt><dd>{escape(str(text))}</dd>" for word, text in told)
    return f'<h3 class="bad">{escape(first["title"])}</h3><dl>{items}</dl>\n'


def _heat_map(facts: Json) -> str:
    advice = facts["advice"]
    formats = list(advice[0]["formats"])
    values = [[row["formats"][name]["amax_power_of_two"]["sqnr_db"] for name in formats] for row in advice]
    finite = [value for line in values for value in line if math.isfinite(value)]
    low, span = min(finite, default=0.0), (max(finite, default=1.0) - min(finite, default=0.0)) or 1.0
    rows, shades = [], []
    for row, line in zip(advice, values, strict=True):
        cells = []
        for name, value in zip(formats, line, strict=True):
            estimate = "" if row["formats"][name]["exact_at_powers_of_two"] else "~"
            cells.append(f"{estimate}{value:.1f}{'*' if row['format'] == name else ''}")
        rows.append([row["layer"], row["operand"], *cells])
        shades.append([0, 0, *(_depth((value - low) / span) for value in line)])
    numeric = range(2, 2 + len(formats))
    return webpage.table(
        "SQNR in dB by layer and format", ("layer", "operand", *formats), rows, numeric=numeric,
        note=" ".join(page.ADVICE_BY_LAYER), shades=shades,
    )  # fmt: skip


def _depth(share: float) -> int:
    return 1 + round(share * (webpage.SHADES - 1)) if math.isfinite(share) else 0


def _replay(facts: Json) -> list[Part]:
    title, note = page.VARIANTS
    casts = webpage.table("", *page.variant_cells(facts), numeric=range(1, 6), note=" ".join(page.variant_notes(facts)))
    if not facts["attribution"]:
        return [("casts", title, note, casts)]
    shares = webpage.table("", *page.attribution_cells(facts, 200), numeric={2, 4})
    return [
        ("casts", title, note, casts),
        ("attribution", "Error attribution by cast", page.attribution_note(facts), shares),
    ]


def _oracle(facts: Json) -> list[Part]:
    header, rows = page.own_rate_cells(facts)
    own = webpage.table("", header, rows, numeric={1, 2}) if rows else ""
    others = webpage.table("", *page.other_rate_cells(facts), numeric={3, 4, 5})
    return [
        ("oracle", "Stall oracle", page.oracle_note(facts), own + webpage.paragraph(page.oracle_answer(facts))),
        ("otherwise", page.OTHERWISE, "", others),
    ]


def _against(facts: Json) -> list[Part]:
    parting, found = facts["departure"], facts["bisection"]
    told = f"Largest difference of the losses: {parting['difference']:+.3g}."
    sites = "".join(f"<li><code>{escape(site)}</code></li>" for site in found["sites"])
    inner = f"<ul>{sites}</ul>" + webpage.paragraph(page.bisection_answer(facts) or "None was found.")
    inner += webpage.paragraph(found["note"]) if found["note"] else ""
    return [
        ("departure", "Departure", page.band_note(facts), webpage.paragraph(told)),
        ("casts", "Casts", page.replays_note(facts), inner),
    ]
