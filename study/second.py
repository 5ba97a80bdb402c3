"""python -m study.second: study/SECOND.md and its pictures from study/results/second, whatever is in.

Says what rows say and nothing else: what is missing is called missing, and a cell without all its runs has no verdict.
What it means is for FINDINGS.md, when the rows are in.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from altgrad.reports.content import Axes, Axis, Figure, Heat, Mark, Tone, Trace
from altgrad.reports.figures import svg
from altgrad.store.files import write_atomic
from study import parts, rows
from study.answer import THREATS, answer
from study.causes import causes
from study.cell import format_of, reference
from study.second_tables import Second, place

HERE = Path(__file__).resolve().parent
PAGE, PICTURES = HERE / "SECOND.md", HERE / "second-figures"
TONES: tuple[Tone, ...] = ("blue", "orange", "green")


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


def page(study: Second) -> str:
    """The page."""
    frame = study.frame
    versions = sorted({str(v)[:7] for v in frame["commit"]}) if len(frame) else []
    lines = [
        "# The second edition: what is in", "",
        "*Rendered by `python -m study.second` from `study/results/second`. The plan is in [PLAN.md](PLAN.md).*", "",
        f"{len(frame)} runs, commits {', '.join(versions) or 'none'}, "
        f"{frame['cpu_seconds'].sum() / 3600 if len(frame) else 0:.1f} h of a core.", "",
        "## The answer", "", *answer(study), "", "## What is in", "", *study.status(), "",
        "## Did storage clip?", "", *study.clipping(), "",
        "An arm with more than 1e-4 is called *clipped*, a cell with cv(T) below 0.15 *even*: neither is evidence.", "",
        "## The screen: B over the dial", "", "![B over p and kappa, by format](second-figures/dial.svg)", "",
        "Three seeds, each arm at its own lr*; nothing here is judged. Colours end at 0.15.", "",
    ]  # fmt: skip
    for name in parts.STORED:
        lines += [f"**{name}**", "", *study.screen(name), ""]
    lines += ["Quadratic surfaces through the nine cells, exploratory:", ""]
    lines += [f"* {study.surface(name)}" for name in parts.STORED]
    lines += [
        "",
        "## Confirmed cells",
        "",
        *study.verdicts(),
        "",
        "Simultaneous 95 % intervals over the cells of this table.",
        "",
    ]
    captions = {
        "masters": "Without storage", "sides": "Side arms", "none": "Without a mean per tensor",
        "spread": "Tensors whose scales are spread", "sgd": "SGD with and without S", "llama": "A Llama-shaped block",
    }  # fmt: skip
    for part, title in captions.items():
        lines += [f"## {title}", "", *study.swept(part, reference), ""]
        lines += ["Three seeds; intervals by the sd pooled over this table, simultaneous over it.", ""]
    lines += ["## What causes what", "", *causes(study), ""]
    lines += [
        "Sentences and what refutes them are PLAN.md's; FINDINGS.md has those that hold.",
        "",
    ]
    lines += ["## A fine-tune of MiniLM", "", *study.finetune(), ""]
    lines += ["Two tuning seeds; B by pairs, intervals simultaneous over its three formats.", ""]
    lines += ["## The confound", "", *study.confound(), "", "## Loss against rate", ""]
    lines += ["![Loss against rate](second-figures/rates.svg)", ""] if rates_picture(study) else ["No rows.", ""]
    lines += [*study.robustness(), "", "## Controls", "", *study.controls(), "", *study.twins(), ""]
    lines += [
        "e3m4f at kappa = 1/8 is another field: its smallest normal number is above the floor (PLAN.md, changes).", "",
    ]  # fmt: skip
    lines += ["## Threats", "", *(f"* {threat}." for threat in THREATS), ""]
    return "\n".join(lines)


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
    for figure in (dial_picture(study), rates_picture(study)):
        if figure is not None:
            write_atomic(PICTURES / f"{figure.key}.svg", svg(figure).encode())
    write_atomic(PAGE, text.encode())


if __name__ == "__main__":
    main()
