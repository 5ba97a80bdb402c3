"""python -m study.second: FINDINGS.md and its pictures, from FINDINGS.md.j2 and results/second, whatever is in.

Tables, intervals and words are the rows': what is missing is called missing, and a cell without all its runs has no
verdict. `--check` only says whether the page is what the rows give.
"""

import argparse
import sys
from pathlib import Path

import jinja2
import numpy as np

from altgrad.reports.content import FORMAT_TONES, Axes, Axis, Dots, Figure, Guide, Heat, Mark, Tone, Trace
from altgrad.reports.figures import svg
from altgrad.reports.rows import Difference, forest
from altgrad.store.files import write_atomic
from study import parts, rows
from study.answer import THREATS, answer
from study.causes import causes, checks
from study.cell import format_of, reference
from study.confound import confound
from study.controls import controls, even_pairs, twins
from study.second_tables import MASTERS, Second, place

HERE = Path(__file__).resolve().parent
PAGE, TEMPLATE, PICTURES = HERE / "FINDINGS.md", HERE / "FINDINGS.md.j2", HERE / "figures"
TONES: tuple[Tone, ...] = ("blue", "orange", "green")
WORD_TONES: dict[str, Tone] = {
    "harm": "blue",
    "benefit": "green",
    "no practical effect": "sky",
    "direction only": "pink",
}


def dial_picture(study: Second) -> Figure:
    """B over (p, kappa), a panel a format; a cell that is not in is empty."""
    panels = tuple(
        Axes(
            Axis("p", categories=("1/4", "1/2", "1")), Axis("kappa", categories=("1", "2^-3", "2^-6")),
            (Heat(("1/4", "1/2", "1"), ("1", "2^-3", "2^-6"), study.dial(name), "nats", diverging=True, write=True,
                  limits=(-0.15, 0.15)),),
            name,
        )
        for name in parts.STORED
    )  # fmt: skip
    return Figure(
        "dial", "B over the dial", "Positive: geometry helps. The screen, three seeds; nothing is judged.", panels, 2
    )


def rates_picture(study: Second) -> Figure | None:
    """Loss against rate, a panel a format; None before there are any."""
    panels = []
    for name in parts.STORED:
        marks: list[Mark] = []
        cells = [cell for cell in parts.cells_in("cliff") if format_of(cell) == name]
        for cell, tone in zip(cells, TONES, strict=True):
            rates = rows.rates_of(study.frame, cell)
            means = rows.mean_losses(study.frame, cell, rates, parts.SCREEN)
            known = [(rate, mean) for rate, mean in zip(rates, means, strict=True) if mean == mean]
            if known:
                x, y = map(np.array, zip(*known, strict=True))
                marks.append(Trace(x, y, place(cell), tone, markers=True))
        if marks:
            panels.append(Axes(Axis("learning rate", log=True), Axis("validation loss (nats)"), tuple(marks), name))
    caption = "Mean of three seeds."
    return Figure("rates", "Loss against rate", caption, tuple(panels), 2) if panels else None


def uneven_picture(study: Second) -> Figure:
    """B against the spread of the field, a dot a cell."""
    marks: list[Mark] = [Guide(0.0, "y")]
    for name, tone in zip((*parts.STORED, MASTERS), FORMAT_TONES, strict=False):
        if cells := study.unevenness[name]:
            x, y = map(np.array, zip(*cells.values(), strict=True))
            marks.append(Dots(x, y, name, tone))
    panel = Axes(Axis("cv(T^p), the spread of a step's factor (ratio)"), Axis("B (nats)"), tuple(marks))
    return Figure("uneven", "B against the field's spread", "The screen and masters, three seeds.", (panel,))


def confirmed_picture(study: Second) -> Figure | None:
    """B of the confirmed cells, with their intervals; None while a pair is missing."""
    cells = study.judged
    if not cells or any(one.missing for one in cells):
        return None
    lines = [
        Difference(f"{one.format}, {place(one.cell)}", one.interval, one.word, WORD_TONES.get(one.word, "orange"))
        for one in cells
    ]
    reach = 1.05 * max(abs(end) for one in cells for end in one.interval.finite_ends)
    return forest(
        "confirmed", "B of the confirmed cells", "Simultaneous 95 % intervals; grey: 0.01 nats.",
        "B: loss saved by geometry (nats)", (-reach, max(0.05, reach / 4)), lines,
    )  # fmt: skip


def page(study: Second) -> str:
    """The page."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True
    )
    environment.filters["lines"] = "\n".join
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    functions = (answer, confound, controls, even_pairs, twins, causes, checks, reference)
    names = {function.__name__: function for function in functions}
    drawn = confirmed_picture(study) is not None
    return template.render(study=study, formats=parts.STORED, threats=THREATS, drawn=drawn, low=2.0**-6, **names)


def main() -> None:
    """Write the page and its pictures, or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=rows.FOLDER)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is another text")
    options = parser.parse_args()
    study = Second(rows.read(options.results))
    text = page(study)
    if options.check:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1)
    PICTURES.mkdir(exist_ok=True)
    for figure in (dial_picture(study), uneven_picture(study), confirmed_picture(study), rates_picture(study)):
        if figure is not None:
            write_atomic(PICTURES / f"{figure.key}.svg", svg(figure).encode())
    write_atomic(PAGE, text.encode())


if __name__ == "__main__":
    main()
