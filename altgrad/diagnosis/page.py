"""The page of a Diagnosis: lines of styled text from its facts, and the tables that the HTML page has, too.

Layers of one kind (the same name but for its numbers) share a row with their median, so that the page of a large model
is as long as that of a small one; the facts have every layer. A row is never wider than the window: names are shortened
first.
"""

import math
import statistics
import textwrap
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

from altgrad.diagnosis.advice import layer_kind
from altgrad.display import Line, clean, shorten
from altgrad.numerals import number, percent
from altgrad.spec.messages import listed
from altgrad.spec.ranking import badness

Json = dict[str, Any]
Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)
Cells: TypeAlias = tuple[list[str], list[list[str]]]
"""A table: its header and its rows."""
_BARS = "▁▂▃▄▅▆▇█"
_WHERE = {"forward": "cyan", "backward": "magenta", "optimizer": "yellow", "training": "red"}
_NOTHING = Line.of("")
VARIANTS = ("The same step under other casts", "gradient against casts off")
OTHERWISE = "The same weights kept otherwise"
WEIGHTS_NOTE = "medians over layers of one kind"
ADVICE = (
    "SQNR in dB at the power-of-two amax scale, median over the layers; * the choice (*n: of n layers). Exact for the",
    "tensors seen, ~ where it is an estimate. One cast of one tensor: where to start, not what training will say.",
)
ADVICE_BY_LAYER = ("SQNR in dB at the power-of-two amax scale; * the choice. Exact for the", ADVICE[1])
WEIGHTS = (
    "field: weights by spacing 2^k (small left, one column a binade); used: entropy of the codes over its maximum;",
    "offset: distance from the grid in spacings (masters 0.25, stored weights 0).",
)


def page(facts: Json, width: int) -> list[Line]:
    """The whole page, no line wider than `width` columns (at least 60)."""
    parts = [_head(facts)]
    if facts["kind"] == "replay":
        parts += [_variants(facts, width), *([_attribution(facts, width)] if facts["attribution"] else [])]
    elif facts["kind"] == "oracle":
        parts += [_own_rates(facts, width), _rates_otherwise(facts, width)]
    elif facts["kind"] == "against":
        parts.append(_against(facts, width))
    else:
        if facts["kind"] == "run":
            parts.append(_symptoms(facts, width))
        parts += [_weights(facts["weights"], width), _advice(facts, width), _policy(facts["policy"])]
    lines: list[Line] = []
    for part in parts:
        lines += [*([_NOTHING] if lines else []), *part]
    return [line if line.width <= width else line.fit(width) for line in lines]


def _head(facts: Json) -> list[Line]:
    parts: list[str | tuple[str, str]] = [(clean(facts["name"]), "bold")]
    if facts["kind"] == "run":
        style = {"completed": "green", "diverged": "red", "failed": "red"}.get(facts["status"], "yellow")
        parts += ["  ", (f"● {facts['status']}", style), (f"  at step {facts['step']}", "dim")]
    elif facts["step"] is not None:
        parts += [(f"  the step after {facts['step']}", "dim")]
    if facts.get("reason"):
        parts += [("  " + clean(facts["reason"]), "dim")]
    return [Line.of(*parts)]


def _symptoms(facts: Json, width: int) -> list[Line]:
    found, logged = facts["symptoms"], f"{facts['logged_steps']} logged steps"
    watched = ", ".join(facts["monitors"]) or "none"
    if not found:
        lines = [heading("Symptoms", f"none in {logged}; monitors: {watched}")]
    else:
        groups = rows_by(found, lambda finding: finding["name"])
        lines = [heading("Symptoms", f"{len(groups)} in {logged}; monitors: {watched}")]
        for group in groups.values():
            lines += _symptom(group, width)
    for event in facts["alarms"][:5]:
        start = f"  alarm at step {event['step']}  "
        first, *rest = textwrap.wrap(clean(str(event["message"])), max(20, width - len(start))) or [""]
        lines.append(Line.of((start, "yellow"), first))
        lines += [Line.of(" " * len(start) + more) for more in rest]
    if len(facts["alarms"]) > 5:
        lines.append(Line.of((f"  and {len(facts['alarms']) - 5} more alarms", "dim")))
    return lines


def _symptom(group: Sequence[Json], width: int) -> list[Line]:
    first = group[0]
    worst = max(group, key=lambda finding: finding["observations"])
    places = [finding["place"] for finding in group if finding["place"]]
    where = f" {places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "") if places else ""
    over = "" if any(finding["lasts"] for finding in group) else "  (over by the end)"
    head = Line.of(("● ", "red"), (first["title"], "bold"), f"  [{first['where']}]", (" " + clean(where) + over, "dim"))
    lines = [head]
    for word, style, text in (
        ("seen", "dim", worst["evidence"]), ("why", "dim", first["why"]), ("try", "green", first["remedy"])
    ):  # fmt: skip
        start, *rest = textwrap.wrap(text, max(20, width - 10))
        lines.append(Line.of((f"    {word:<4}  ", style), start))
        lines += [Line.of(" " * 10 + more) for more in rest]
    return lines


def _median(rows: Sequence[Json], name: str) -> float:
    known = [row[name] for row in rows if row[name] == row[name]]
    return statistics.median(known) if known else float("nan")


def weight_cells(pictures: Sequence[Json]) -> Cells:
    """How weights lie on their grids, a row for each kind of layer."""
    header = ["weights", "format", "rms", "normal", "offset", "used", "stable", "r99", "field"]
    rows = []
    for name, group in rows_by(pictures, lambda row: layer_kind(row["name"])).items():
        formats = sorted({row["format"] for row in group})
        rows.append(
            [
                _times(name, group),
                formats[0] if len(formats) == 1 else f"{len(formats)} formats",
                number(_median(group, "rms")), percent(_median(group, "share_normal")),
                f"{_median(group, 'mean_offset'):.2f}", percent(_median(group, "utilisation")),
                number(_median(group, "stable_rank")), number(_median(group, "r99")), _field(group),
            ]
        )  # fmt: skip
    return header, rows


def broken_weights(pictures: Sequence[Json]) -> str:
    """Which weights are not finite; empty where all are."""
    broken = [row["name"] for row in pictures if not math.isfinite(row["rms"])]
    more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
    return f"NaN or Inf in {', '.join(map(clean, broken[:4]))}{more}" if broken else ""


def _weights(pictures: Sequence[Json], width: int) -> list[Line]:
    said = [Line.of(("  ● ", "red"), broken)] if (broken := broken_weights(pictures)) else []
    lines = [heading("Weights", WEIGHTS_NOTE), *aligned(*weight_cells(pictures), width)]
    return [*lines, *said, *_notes(WEIGHTS)]


def _field(group: Sequence[Json]) -> str:
    counts: dict[int, int] = {}
    for row in group:
        for exponent, count in row["stiffness"].items():
            counts[int(exponent)] = counts.get(int(exponent), 0) + count
    if not counts:
        return ""
    top, high = max(counts.values()), max(counts)
    low = max(min(counts), high - 11)
    bars = "".join(" " if not counts.get(k) else _BARS[round(7 * counts[k] / top)] for k in range(low, high + 1))
    return f"2^{low} {bars} 2^{high}"


def advice_cells(facts: Json) -> Cells:
    """SQNR by format, a row for each operand of each kind of layer; `*` marks the choice."""
    advice = facts["advice"]
    formats = list(advice[0]["formats"]) if advice else []
    rows = []
    for (layer, operand), group in rows_by(advice, lambda row: (layer_kind(row["layer"]), row["operand"])).items():
        cells = [_times(layer, group), operand]
        for name in formats:
            each = [row["formats"][name] for row in group]
            chosen = sum(row["format"] == name for row in group)
            mark = "*" if chosen == len(group) else f"*{chosen}" if chosen else ""
            estimate = "" if all(row["exact_at_powers_of_two"] for row in each) else "~"
            sqnr = statistics.median(row["amax_power_of_two"]["sqnr_db"] for row in each)
            cells.append(f"{estimate}{sqnr:.1f}{mark}")
        rows.append(cells)
    return ["layer", "operand", *formats], rows


def advice_source(facts: Json) -> str:
    """What the advice is from."""
    return "from weights, and one step's activations and gradients" if facts["data"] else "from weights alone"


def _advice(facts: Json, width: int) -> list[Line]:
    lines = aligned(*advice_cells(facts), width)
    return [heading("Format advice", advice_source(facts)), *lines, *_notes(ADVICE)]


def _policy(text: str) -> list[Line]:
    lines = text.rstrip().split("\n")
    shown = lines if len(lines) <= 24 else lines[:22]
    left = [] if len(lines) <= 24 else [Line.of((f"  ... {len(lines) - 22} more lines; --policy-out FILE", "dim"))]
    return [heading("Policy", "--policy-out FILE writes it"), *(Line.of("  " + line) for line in shown), *left]


def variant_cells(facts: Json) -> Cells:
    """The same step under other casts."""
    header = ["casts", "loss", "difference", "cosine", "SQNR dB", "bias", "worst matrix"]
    rows = []
    for each in facts["variants"]:
        if each["error"]:
            rows.append([each["name"], "-", "-", "-", "-", "-", "not possible"])
            continue
        worst = f"{each['worst_cosine']:.3f} {shorten(each['worst'], 24)}"
        rows.append(
            [
                each["name"], number(each["loss"], 5), f"{each['loss_difference']:+.1e}", f"{each['cosine']:.4f}",
                f"{each['sqnr_db']:.1f}", f"{each['bias_coefficient']:.3f}", worst,
            ]
        )  # fmt: skip
    return header, rows


def variant_notes(facts: Json) -> list[str]:
    """Why some casts could not be made, and what of recipes is not in the table."""
    notes = [f"{each['name']}: {each['error']}" for each in facts["variants"] if each["error"]]
    also: dict[str, list[str]] = {}
    for name, keys in facts.get("recipes", {}).items():
        for key in keys:
            also.setdefault(key, []).append(name)
    if "recipes" in facts:
        told = "".join(f"; {listed(names, 'and')} would also set {key}" for key, names in also.items())
        notes.append(f"Of a recipe its casts alone, in {facts['compute']} as the run{told}.")
    return [*notes, *([facts["unattributed"]] if "unattributed" in facts else [])]


def _variants(facts: Json, width: int) -> list[Line]:
    notes = [Line.of("  ", (each, "dim")) for note in variant_notes(facts) for each in textwrap.wrap(note, width - 2)]
    return [heading(*VARIANTS), *aligned(*variant_cells(facts), width), *notes]


def attribution_cells(facts: Json, most: int) -> Cells:
    """The share of the gradient's error that each cast makes, the largest first."""
    ordered = sorted(facts["attribution"], key=lambda row: badness(abs(row["share"]), "higher"), reverse=True)
    top = max((abs(row["share"]) for row in ordered if math.isfinite(row["share"])), default=0.0)
    rows = [
        [row["site"], row["format"], percent(row["share"]), _bar(row["share"], top), f"{row['loss']:+.1e}"]
        for row in ordered[:most]
    ]
    return ["site", "format", "gradient's error", "", "loss"], rows


def attribution_note(facts: Json) -> str:
    """What the shares are, and what they add up to."""
    total = sum(row["share"] for row in facts["attribution"])
    return f"first order, mean of {facts['attribution_batches']} batches; shares add up to {total:.0%}"


def _attribution(facts: Json, width: int) -> list[Line]:
    count = len(facts["attribution"])
    left = [Line.of((f"  and {count - 16} sites with less", "dim"))] if count > 16 else []
    lines = aligned(*attribution_cells(facts, 16), width)
    return [heading("Error attribution by cast", attribution_note(facts)), *lines, *left]


def _bar(value: float, top: float) -> str:
    return ("█" * round(12 * abs(value) / top) if top and math.isfinite(value) else "") or "·"


def band_note(facts: Json) -> str:
    """What counts as parting."""
    parting = facts["departure"]
    return f"band {number(parting['band'])} from {parting['source']}, {parting['observed']} common steps"


def bisection_answer(facts: Json) -> str:
    """How much the casts that were found make of the difference; empty where none was found."""
    found = facts["bisection"]
    if not found["sites"]:
        return ""
    explained = percent(min(found["explained"], 1.0))
    text = f"{len(found['sites'])} of {found['of']} operands that differ; alone they make "
    return text + f"{explained} of the deviation {number(found['deviation'])} of the gradient"


def replays_note(facts: Json) -> str:
    """What the search took."""
    return f"{facts['bisection']['replays']} replays of the step after {facts['bisection']['replayed_step']}"


def _against(facts: Json, width: int) -> list[Line]:
    parting, found = facts["departure"], facts["bisection"]
    lines = [heading("Departure", band_note(facts))]
    if parting["step"] is None:
        gap = f"largest gap {abs(parting['difference']):.3g}, band {parting['band']:.3g}"
        lines.append(Line.of("  ", ("no divergence detected", "bold"), f" ({gap})"))
        lines.append(Line.of(("  what follows is where the next step of the two differs", "dim")))
    else:
        where = f"at step {parting['step']}"
        lines.append(Line.of(("  losses diverge  ", "dim"), (where, "bold"), f"  by {parting['difference']:+.3g}"))
    lines += [_NOTHING, heading("Casts", replays_note(facts))]
    lines += [Line.of(("  ● ", "red"), (clean(site), "bold")) for site in found["sites"]]
    lines += [Line.of("  " + part) for part in textwrap.wrap(bisection_answer(facts), max(20, width - 2))]
    if found["note"]:
        lines += [Line.of(("  " + part, "yellow")) for part in textwrap.wrap(found["note"], max(20, width - 2))]
    return lines


def _notes(notes: Sequence[str]) -> list[Line]:
    return [Line.of(("  " + note, "dim")) for note in notes]


def own_rate_cells(facts: Json) -> Cells:
    """The share of updates that change a stored weight, by kind of layer; no rows where no weight has a grid."""
    own = facts["own"]
    if own is None:
        return [], []
    rows = []
    for name, group in rows_by(own["rates"], layer_kind).items():
        rates = [rate for each in group if not math.isnan(rate := own["rates"][each])] or [math.nan]
        rows.append([_times(name, group), _small_share(min(rates)), _small_share(max(rates))])
    rows.append(["all", _small_share(own["overall"]), ""])
    return [f"as it is, {own['optimizer']} lr {own['lr']:g}", "lowest", "highest"], rows


def oracle_note(facts: Json) -> str:
    """What the rates are estimated from."""
    real = facts["calibrated"]
    seen = "gradients as in its first 20 steps" if real else "gradients of white noise; --calibrate: real"
    return f"estimates: {facts['rehearsed_steps']} of {facts['steps']} steps rehearsed, {seen}"


def oracle_answer(facts: Json) -> str:
    """From which learning rate on weights move."""
    if facts["own"] is None:
        return "as it is: no weight has a grid, so none can stall"
    return f"smallest lr for {percent(facts['target'])}: {_lr(facts['own']['smallest_lr'])}"


def _own_rates(facts: Json, width: int) -> list[Line]:
    header, rows = own_rate_cells(facts)
    lines = aligned(header, rows, width) if rows else []
    answer = Line.of(("  " + oracle_answer(facts), "bold" if rows else "dim"))
    return [heading("Stall oracle", oracle_note(facts)), *lines, answer]


def other_rate_cells(facts: Json) -> Cells:
    """The same under other formats, storages and optimizers."""
    header = ["format", "storage", "optimizer", "lr", "move rate", f"smallest lr for {percent(facts['target'])}"]
    rows = [
        [
            each["format"], each["storage"], each["optimizer"], f"{each['lr']:g}", _small_share(each["overall"]),
            _lr(each["smallest_lr"]),
        ]
        for each in facts["variants"]
    ]  # fmt: skip
    return header, rows


def _rates_otherwise(facts: Json, width: int) -> list[Line]:
    return [heading(OTHERWISE), *aligned(*other_rate_cells(facts), width)]


def _small_share(value: float) -> str:
    return "-" if value != value else percent(value) if value >= 1e-3 or value == 0 else f"{value:.0e}"


def _lr(value: float | None) -> str:
    return "none" if value is None else number(value)


def heading(text: str, note: str = "") -> Line:
    """A section's first line."""
    return Line.of((text, "bold cyan"), (f"  {note}" if note else "", "dim"))


def rows_by(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """The rows by key, in the order met."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Line]:
    """Aligned columns two blanks apart, the first shortened to what is left of the width."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in [header, *cells]) for n in range(len(header))]
    widths[0] = max(8, min(widths[0], width - 2 - sum(size + 2 for size in widths[1:])))
    lines = [_row(header, widths, "bold", "bold")]
    for row in cells:
        name, times, count = row[0].partition(" x")
        short = shorten(name, widths[0] - len(times + count)) + times + count
        lines.append(_row([short, *row[1:]], widths, "cyan", ""))
    return lines


def _row(cells: Sequence[str], widths: Sequence[int], first: str, others: str) -> Line:
    parts: list[str | tuple[str, str]] = ["  ", (cells[0].ljust(widths[0]), first)]
    for cell, size in zip(cells[1:], widths[1:], strict=True):
        style = "bold green" if "*" in cell else others
        parts += ["  ", (cell.ljust(size), style)]
    return Line.of(*parts)


def _times(name: str, group: Sequence[Any]) -> str:
    return f"{name} x{len(group)}" if len(group) > 1 else name
