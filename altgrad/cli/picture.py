"""The picture of a run: a pure function from what is known (`Watched`) and a size to lines of exactly that width.

From 150 columns the parts stand side by side, below they stack; rows go to the parts that matter most first, so a
window of 8 rows still shows progress, numbers and a curve. Boxes cost two rows a part, so small windows get rules
instead.

Colours say how bad something is, and the list of symptoms alone decides it, which `altgrad diagnose` reads as well:
yellow for a value that would be a symptom if it lasted, for symptoms and warnings, red for alarms and for what is not
finite, magenta for what an intervention did, green for what is well. All of it reads without colour, too.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

from altgrad.cli.chart import line_chart
from altgrad.cli.layout import EMPTY, Rows, Want, apart, beside, block, share
from altgrad.cli.run_view import PROMINENT, Happening, Watched, Worst, in_short, in_words
from altgrad.display import Line, Part, shorten
from altgrad.numerals import count_text, duration, number, percent
from altgrad.symptoms import SLOTS, is_suspicious

SIDE_BY_SIDE = 150
ROWS_FOR_BOXES = 32
NAME, ENTRY = 36, 32
ROWS_FOR_KEYS = 12
SILENT_SECONDS = 30.0
SEVERITY = {
    "alarm": "bold red", "warning": "yellow", "symptom": "yellow", "intervention": "bold magenta", "completed": "green",
}  # fmt: skip
Keys = Sequence[tuple[str, str]]
"""Keys that can be pressed, each with what it does in one word."""
STATUS_STYLE = {
    "running": "green",
    "completed": "green",
    "diverged": "bold red",
    "failed": "bold red",
    "dead": "bold red",
}

# What every run has, before and after the scores of its task; anything else under validation/ follows by its own name.
LOSSES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("train loss", "train/loss", lambda x: number(x, 4)),
    ("validation", "validation/loss", lambda x: number(x, 4)),
)
PACE: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("lr", "train/lr", number),
    ("grad norm", "train/gradient_norm", number),
    ("tokens/s", "time/tokens_per_second", count_text),
    ("tokens", "train/tokens", count_text),
)


def run_picture(watched: Watched, width: int, height: int, keys: Keys = (), *, helping: bool = False) -> list[Line]:
    """The picture in at most `height` rows, every one exactly `width` columns wide; any size from 1 x 1 is drawn.

    keys: those that work here. helping: explain them and the picture instead of its lower part.
    """
    boxed = height >= ROWS_FOR_BOXES
    head = _head(watched, width - 4 if boxed else width)
    hints = _hints(keys)
    if boxed:
        head = block(Line.of((watched.title, "bold")), _status(watched), head[1:], width, 3, hints)
    below = [hints] if keys and not boxed and height >= ROWS_FOR_KEYS else []
    rest = max(0, height - len(head) - len(below))
    if helping:
        body = block(Line.of("help"), EMPTY, _help(keys, width - 4), width, rest, EMPTY if boxed else None)
    else:
        body = _wide(watched, width, rest, boxed) if width >= SIDE_BY_SIDE else _narrow(watched, width, rest, boxed)
    return [line.fit(width) for line in (head + body + below)[:height]]


def _hints(keys: Keys) -> Line:
    return Line.of(*(part for key, what in keys for part in ((key, "bold"), (f" {what}  ", "dim"))))


HELP = {
    "detach": "close this panel; training goes on and prints lines",
    "leave": "close this panel; the run goes on in its own process",
    "stop": "save a checkpoint and stop, as Ctrl-C does; the same command continues",
    "help": "this page; any key closes it",
}


def _help(keys: Keys, width: int) -> list[Line]:
    rows = [(key, "bold", HELP[what]) for key, what in keys]
    rows += [
        ("curve", "cyan", "highest and lowest of what falls into a column; dimmed behind it: the twin"),
        ("×", "bold red", "NaN or Inf in this column"),
        ("12%", "yellow", "a symptom if it lasts; `altgrad diagnose RUN` says what to try"),
        ("alarm", "bold red", "a monitor's limit was passed; with the step it first was"),
        ("✓", "green", "a reference model is beaten"),
    ]
    lines = []
    for name, style, text in rows:
        first, *others = textwrap.wrap(text, max(20, width - 8)) or [""]
        lines.append(Line.of((f"{name:<8}", style), first))
        lines += [Line.of(" " * 8, other) for other in others]
    return lines


def _narrow(watched: Watched, width: int, height: int, boxed: bool) -> list[Line]:
    edges = 2 if boxed else 1
    parts = {
        "now": _now(watched, edges, min(4, max(1, width // 19))),
        "train": _curve("train", watched, "cyan", Want(edges + (5 if height >= 18 else 2), edges + 12, 3)),
        "sites": _sites(watched, edges, 1),
        "events": _events(watched, Want(edges + 2, edges + 6, 1)),
        "validation": _curve("validation", watched, "magenta", Want(edges + 4, edges + 8, 2)),
        "layers": _layers(watched, edges, width),
    }
    if not any(watched.worst(quantity) for quantity in ("underflow_rate", "saturation_rate", "nonfinite_count")):
        parts["sites"] = None  # no rows of dashes where nothing is said of casts
    wanted = {name: part for name, part in parts.items() if part is not None}
    rows = dict(zip(wanted, share(height, [part.want for part in wanted.values()]), strict=True))
    order = ("now", "train", "validation", "sites", "layers", "events")
    drawn = [wanted[name].draw(width, rows[name], boxed) for name in order if rows.get(name)]
    return [line for part in drawn for line in part]


def _wide(watched: Watched, width: int, height: int, boxed: bool) -> list[Line]:
    edges = 2 if boxed else 1
    fits = max(1, (height - 3 * edges) // 2 // len(SLOTS))
    table = max(100, width // 2 + 8)
    layers = _layers(watched, edges, table)
    now, sites = _now(watched, edges, 1), _sites(watched, edges, min(4, fits) if layers is None else 1)
    train = _curve("train", watched, "cyan", Want(edges + 1, edges + 20, 3))
    validation = _curve("validation", watched, "magenta", train.want)
    more = 0 if layers is None else layers.want.most
    want = Want(sites.want.least, sites.want.most + more, sites.want.weight)
    upper, lower = share(height, [train.want, want])
    right = 50
    left = (width - right - 2) // 2
    middle = width - right - 2 - left
    drawn: list[Line] = []
    if upper:
        curves = beside(train.draw(left, upper, boxed), validation.draw(middle, upper, boxed))
        drawn += beside(curves, now.draw(right, upper, boxed))
    if lower:
        events = _events(watched, Want(lower, lower))
        below = max(0, lower - sites.want.most) if layers is not None and lower > sites.want.most + edges else 0
        left_side = sites.draw(table, lower - below, boxed)
        left_side += layers.draw(table, below, boxed) if layers is not None and below else []
        drawn += beside(left_side, events.draw(width - table - 1, lower, boxed))
    return drawn


def _status(watched: Watched) -> Line:
    parts: list[Part] = []
    if watched.checkpoint is not None:
        parts += [("checkpoint ", "dim"), f"{watched.checkpoint}", ("  ", "")]
    if watched.status == "running" and watched.silence() > SILENT_SECONDS:
        parts += [(f"silent for {duration(watched.silence())}  ", "yellow")]
    if watched.stopping and watched.status == "running":
        parts += [("stopping  ", "bold yellow")]
    style, status = STATUS_STYLE.get(watched.status, "yellow"), watched.status
    if watched.doing is not None and status == "running":
        status, done, total = watched.doing
        style = "cyan"
        status += f" {done}/{total}" if total else f" {done}" if done else ""
    elif watched.is_validating():
        status, style = "validating", "cyan"
    return Line.of(*parts, ("● ", style), (status, style))


def _head(watched: Watched, width: int) -> list[Line]:
    """Title and status; then progress: bar, step, elapsed, ETA."""
    times: list[Part] = [("elapsed " if watched.status == "running" else "took ", "dim"), duration(watched.elapsed())]
    if watched.status == "running":
        times += [("  ETA ", "dim"), duration(watched.remaining())]
    done = f" {100 * watched.share():5.1f}%  "
    facts = Line.of((done, "bold"), f"{watched.at}", (f"/{watched.steps}  ", "dim"), *times)
    room = width - facts.width
    bar = _bar(watched.share(), room) if room >= 4 else EMPTY
    return [apart(Line.of((watched.title, "bold")), _status(watched), width), bar.then(facts).fit(width)]


def _bar(share_done: float, width: int) -> Line:
    """Done is a heavy line and the rest a light one, so that it reads without colour too."""
    done = int(share_done * width + 1e-9)
    return Line.of(("━" * done, "bold green"), ("─" * (width - done), "dim"))


def _now(watched: Watched, edges: int, columns: int) -> Rows:
    """Current numbers in a grid of `columns`, by rows; references for the main score below."""
    shown: list[tuple[str, str]] = []
    scores = [(in_short(score), f"validation/{score}", lambda x: number(x, 4)) for score in watched.scores]
    numbers = (*LOSSES, *scores, *PACE)
    for label, key, form in numbers:
        value = watched.latest.get(key)
        shown.append((label, "–" if value is None else form(value)))
    known = {key for _, key, _ in numbers}
    others = sorted(key for key in watched.latest if key.startswith("validation/") and key not in known)
    shown += [(in_words(key.removeprefix("validation/")), number(watched.latest[key], 4)) for key in others[:8]]
    main = watched.scores[0] if watched.scores else "loss"
    reached = watched.latest.get(f"validation/{main}")
    beside_twin = (("above twin", "twin/train_loss_difference"), ("val. above", "twin/validation_loss_difference"))
    shown += [(label, f"{watched.latest[key]:+.4f}") for label, key in beside_twin if key in watched.latest]
    references = [_reference(name, value, reached) for name, value in watched.references.items()]
    rows_of_numbers = math.ceil(len(shown) / columns)
    in_one_row = columns > 1

    def rows(width: int, height: int) -> list[Line]:
        cell = width // columns
        lines = []
        for start in range(0, len(shown), columns):
            line = EMPTY
            for label, value in shown[start : start + columns]:
                pair = Line.of((label + " ", "dim"), (value, "bold red" if value in ("nan", "inf", "-inf") else "bold"))
                if not in_one_row:
                    pair = Line.of((f"{label:<20}", "dim"), *pair.spans[1:])
                line = line.then(pair.fit(cell - 1)).then(Line.of(" "))
            lines.append(line)
        if references and in_one_row:
            line = Line.of(("reference  ", "dim"))
            for reference in references:
                line = line.then(reference).then(Line.of("   "))
            lines.append(line)
        elif references:
            lines += [EMPTY, Line.of((f"reference {in_words(main)}", "dim")), *references]
        return lines[:height] if in_one_row else lines

    least = edges + rows_of_numbers + bool(references)
    return Rows(Line.of("now"), EMPTY, Want(least, least, 1), rows)


def _reference(name: str, value: float, reached: float | None) -> Line:
    beaten = reached is not None and reached <= value
    parts: list[Part] = [(f"{name} ", "dim"), number(value)]
    return Line.of(*parts, (" ✓", "green")) if beaten else Line.of(*parts)


def _curve(part: str, watched: Watched, style: str, want: Want) -> Rows:
    """A loss over steps, and behind it the twin's where the run has one."""
    curve, twin = (watched.train if part == "train" else watched.validation), watched.twin[part]
    known: list[Part] = [("waiting for the first value", "dim") if curve.last is None else _value(curve.last)]
    if twin.last is not None:
        known += [("  twin ", "dim"), number(twin.last, 4)]

    def rows(width: int, height: int) -> list[Line]:
        if len(curve.points) == 1:
            return [Line.of((f"{number(curve.last or 0, 4):>7} ", "dim"), ("1 point", "dim"))][:height]
        return line_chart(curve, twin if twin.points else None, style, width, height)

    return Rows(Line.of(f"{part} loss", (", nats", "dim")), Line.of(*known), want, rows)


def _value(value: float) -> Part:
    """A loss as a number, red where it is none."""
    return number(value, 4), "bold" if math.isfinite(value) else "bold red"


def _sites(watched: Watched, edges: int, each: int) -> Rows:
    """The table of worst sites: one row for each slot (or up to `each`), underflow to the left, saturation to the
    right.
    """
    underflow, saturation = watched.worst("underflow_rate", each), watched.worst("saturation_rate", each)
    broken = watched.worst("nonfinite_count", 1)
    lost = [f"{worst.site}/{slot} ({count_text(worst.rate)})" for slot, found in broken.items() for worst in found]

    told = {SLOTS[slot] for slot in {*underflow, *saturation}}

    def rows(width: int, height: int) -> list[Line]:
        lines = []
        if lost:
            lines.append(Line.of(("NaN or Inf at ", "bold red"), ", ".join(lost)))
        half = max(0, (width - 22) // 2)
        titles = Line.of(
            (f"{'':22}", ""), (f"{'underflow, worst site':<{half}}", "dim"), ("saturation, worst site", "dim")
        )
        lines.append(titles)
        previous = ""
        for slot, way in SLOTS.items():
            if way == "optimizer" and told and way not in told:
                continue  # stored weights are float32 masters
            left, right = underflow.get(slot), saturation.get(slot)
            for rank in range(max(1, min(each, max(len(left or ()), len(right or ()))))):
                names = (way if way != previous else "", slot) if rank == 0 else ("", "")
                line = Line.of((f"{names[0]:<10}", "dim"), f"{names[1]:<12}")
                previous = way
                for quantity, worst in (("underflow_rate", left), ("saturation_rate", right)):
                    line = line.then(_rate(worst, rank, half, f"{slot}/{quantity}"))
                lines.append(line)
        return lines

    shown = len(SLOTS) - 2 * bool(told and "optimizer" not in told)
    least = edges + 1 + shown + bool(lost)
    return Rows(Line.of("casts"), EMPTY, Want(least, least + shown * (each - 1), 1), rows)


def _rate(found: Sequence[Worst] | None, rank: int, width: int, kind: str) -> Line:
    """`12.3% ▌    blocks.0.mlp.up`: the rate, a bar of it where there is room, and the site. kind: `slot/quantity`."""
    if found is None:
        return Line.of(("–" if rank == 0 else "", "dim")).fit(width)
    if rank >= len(found):
        return Line.of(("0" if rank == 0 else "", "dim")).fit(width)
    worst = found[rank]
    bar = ""
    if width >= 36:
        eighths = max(1, round(48 * min(1.0, worst.rate)))
        bar = ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(7)
    room = max(0, width - 8 - len(bar) - 1)
    site = shorten(worst.site.removesuffix(".weight"), room)
    suspicious = is_suspicious(f"range/{worst.site}/{kind}", worst.rate)
    styles = ("bold yellow", "yellow") if suspicious else ("bold", "cyan")
    return Line.of((f"{percent(worst.rate):>7} ", styles[0]), (bar, styles[1]), site).fit(width)


def _layers(watched: Watched, edges: int, width: int) -> Rows | None:
    """The worst layers: for each monitor the quantity that tells most, and the layers where it is worst, as many as
    there is room for; None where nothing is known. Which quantity that is comes with the run (meta.json).
    """
    each = max(1, (width - NAME) // ENTRY)
    found = watched.worst_layers(each)
    if not found:
        return None

    def rows(inside: int, height: int) -> list[Line]:
        label = min(NAME, inside // 2)
        room = (inside - label) // each
        lines = []
        for group, worst in found.items():
            kind, _, quantity = group.partition("/")
            way = "highest" if watched.worse[group] == "higher" else "lowest"
            line = Line.of(f"{kind} ", (f"{way} {quantity.replace('_', ' ')}", "dim")).fit(label)
            for one in worst:
                site = shorten(one.site.removesuffix(".weight"), max(0, room - 11))
                suspicious = is_suspicious(f"{kind}/{one.site}/{quantity}", one.rate)
                style = "bold yellow" if suspicious else "bold"
                line = line.then(Line.of((f"{number(one.rate):>9} ", style), site).fit(room))
            lines.append(line)
        return lines[:height]

    return Rows(Line.of("worst layers"), EMPTY, Want(edges + 1, edges + len(found), 1), rows)


def _events(watched: Watched, want: Want) -> Rows:
    """Alarms, interventions and symptoms with the step they began at, then whatever else happened, latest first."""
    happenings = watched.happenings()
    counts = {name: sum(happening.event == name for happening in happenings) for name in PROMINENT}

    def rows(width: int, height: int) -> list[Line]:
        if not happenings:
            return [Line.of(("none so far", "dim"))]
        most = 3 if height >= 6 else 1
        return [line for happening in happenings[:height] for line in _happening(happening, width, most)]

    told = [f"{times} {name}{'s' * (times > 1)}" for name, times in counts.items() if times]
    noted = ", ".join([*told, "latest first"]) if told else ""
    worst = next((SEVERITY[name] for name, times in counts.items() if times), "dim")
    return Rows(Line.of("events"), Line.of((noted, worst)), want, rows)


def _happening(happening: Happening, width: int, most: int) -> list[Line]:
    """Step, kind and message in at most `most` lines; the last is cut where that is not enough."""
    again = f"(×{happening.times}, last at {happening.last}) " if happening.times > 1 else ""
    style = SEVERITY.get(happening.event, "dim")
    start = Line.of((f"{happening.first:>7} ", "dim"), (f"{happening.event:<12} ", style))
    pieces = textwrap.wrap(again + happening.message, max(20, width - start.width)) if most > 1 else []
    if len(pieces) > most or not pieces:
        pieces = [*pieces[: most - 1], " ".join(pieces[most - 1 :]) or again + happening.message]
    lines = [start.then(Line.of(pieces[0]))]
    return lines + [Line.of(" " * start.width, piece) for piece in pieces[1:]]
