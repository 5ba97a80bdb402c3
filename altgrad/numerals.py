"""How numbers are written, for the terminal, reports and errors alike.

    number, count_text, percent, duration    narrow, for columns: `12.3k`, `3.00e-4`, `0.034%`, `2h 05m`
    with_interval                          `1.23 [1.20, 1.26]`
    size_text, alike                       bytes; the numbers of one column, written alike
    signed, significant, rate_text           for prose and tables of a report: `−0.0123`, `0.00123`, `3e-3`, `–` for NaN
    tick_text, tick_texts                    one tick of an axis; all of them, written alike

Three significant figures unless a caller needs more (losses do). The first group is ASCII, since pipes are read by
programs; the second has a real minus sign and says in typography what is missing.
"""

import math
from collections.abc import Sequence


def number(value: float, figures: int = 3) -> str:
    """`value` to so many significant figures, trailing zeros kept so that columns do not dance.

    0.001 to 1000 is written out, 1000 to 1e15 with an SI step (`12.3k`), the rest as `3.00e-4`; `nan`, `inf`,
    `-inf`, `0`.
    """
    if not math.isfinite(value):
        return str(float(value))
    if value == 0:
        return "0"
    scientific = f"{value:.{figures - 1}e}"
    rounded = float(scientific)  # so that 999.96 becomes 1.00k and not 1000
    if 1e-3 <= abs(rounded) < 1e3:
        return f"{rounded:#.{figures}g}".rstrip(".")
    for step, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if step <= abs(rounded) < step * 1e3:
            return f"{rounded / step:#.{figures}g}".rstrip(".") + letter
    digits, exponent = scientific.split("e")
    return f"{digits}e{int(exponent)}"


def count_text(value: float) -> str:
    """A whole number of things (steps, tokens): exact below 1000, then with SI steps (`12.3k`, `1.00G`)."""
    return str(int(value)) if math.isfinite(value) and abs(value) < 1e3 else number(value)


def size_text(count: int) -> str:
    """A number of bytes with three figures and a decimal prefix: `28.2 GB`, `312 B`."""
    shown = count_text(count)
    return f"{shown} B" if shown[-1].isdigit() else f"{shown[:-1]} {shown[-1]}B"


def percent(rate: float) -> str:
    """A share between 0 and 1 in at most 7 columns: `12.3%`, `0.034%`; `<0.001%` is small but not zero, `0` is zero."""
    if not math.isfinite(rate) or rate == 0:
        return number(rate)
    if abs(rate) >= 1e-3:
        return number(100 * rate) + "%"
    return "<0.001%" if 0 < rate < 1e-5 else f"{100 * rate:.3f}%"


def with_interval(figure: Sequence[float], style: str, *, share: bool = False) -> str:
    """`1.23 [1.20, 1.26]` of a value and its ends; without ends where those are infinite, as one document's are.

    style: of `format`. share: of a number between 0 and 1, in percent, its ends no further than 0 and 1.
    """
    middle, *ends = figure
    if share:
        middle, ends = 100 * middle, [min(max(100 * end, 0.0), 100.0) if math.isfinite(end) else end for end in ends]
    told = format(middle, style) + " %" * share
    if not all(map(math.isfinite, ends)):
        return f"{told} (no interval)"
    return f"{told} [{', '.join(format(end, style) for end in ends)}]"


def alike(values: Sequence[float | None], figures: int = 5) -> list[str]:
    """The numbers of a column, written alike and equally wide: as many decimals each as let the largest have so many
    figures, or all in powers of ten where the smallest would lose them. `-` for None.
    """
    finite = [abs(value) for value in values if value is not None and math.isfinite(value)]
    largest, smallest = max(finite, default=0.0), min((value for value in finite if value), default=0.0)
    plain = largest < 1e6 and smallest >= 1e-3
    decimals = max(0, figures - max(1, len(str(int(largest))))) if plain else figures - 1

    def shown(value: float | None) -> str:
        if value is None:
            return "-"
        if not math.isfinite(value):
            return str(float(value))
        return f"{value:.{decimals}f}" if plain or value == 0 else f"{value:.{min(2, decimals)}e}"

    texts = [shown(value) for value in values]
    width = max(map(len, texts), default=0)
    return [text.rjust(width) for text in texts]


def duration(seconds: float | None) -> str:
    """Two units at most: `0.4s`, `12s`, `4m 05s`, `2h 05m`, `3d 04h`; `?` for None, NaN, infinite or negative."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "?"
    if 0 < seconds < 1:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, small, size_of_unit, size_of_small in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size_of_unit:
            return f"{whole // size_of_unit}{unit} {whole % size_of_unit // size_of_small:02d}{small}"
    return f"{whole}s"


def signed(value: float, digits: int = 4) -> str:
    """`+0.0123`, a real minus sign; `–` for what is no number, `∞` for the infinite."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:+.{digits}f}".replace("-", "−")


def significant(value: float, digits: int = 3) -> str:
    """So many significant figures, zeros at the end kept; `–` for NaN."""
    return "–" if math.isnan(value) else f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def rate_text(value: float) -> str:
    """A learning rate as `3e-3`; `–` for NaN."""
    if math.isnan(value):
        return "–"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}" if value else "0"


def tick_text(value: float) -> str:
    """A tick of an axis: `3e-3`, `0.5`, `20`."""
    if value and not 0.01 <= abs(value) < 1e4:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:g}"


def tick_texts(values: Sequence[float]) -> list[str]:
    """The ticks of an axis, all as `3e-3` where one of them has to be."""
    plain = [tick_text(value) for value in values]
    return [rate_text(value) for value in values] if any("e" in text for text in plain) else plain


def counted(n: int, thing: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
