"""Worst layers: for each monitor the quantity that tells most, and the sites where it is worst now.

Which quantity that is, and whether high or low is bad, is what the monitors' classes say; it comes with the run
(meta.json), so that an onlooker needs neither torch nor the version that trains.
"""

from __future__ import annotations

from altgrad.cli.layout import EMPTY, Rows, Want
from altgrad.cli.run_view import Watched
from altgrad.display import Line, number, shorten

LABEL = 36
ENTRY = 32


def worst_layers(watched: Watched, edges: int, width: int) -> Rows | None:
    """A row for each group, with as many of its worst layers as `width` has room for; None where nothing is known."""
    each = max(1, (width - LABEL) // ENTRY)
    found = watched.worst_layers(each)
    if not found:
        return None

    def rows(inside: int, height: int) -> list[Line]:
        label = min(LABEL, inside // 2)
        room = (inside - label) // each
        lines = []
        for group, worst in found.items():
            kind, _, quantity = group.partition("/")
            way = "highest" if watched.worse[group] == "higher" else "lowest"
            line = Line.of(f"{kind} ", (f"{way} {quantity.replace('_', ' ')}", "dim")).fit(label)
            for one in worst:
                site = shorten(one.site.removesuffix(".weight"), max(0, room - 11))
                line = line.then(Line.of((f"{number(one.rate):>9} ", "bold"), site).fit(room))
            lines.append(line)
        return lines[:height]

    return Rows(Line.of("worst layers"), EMPTY, Want(edges + 1, edges + len(found), 1), rows)
