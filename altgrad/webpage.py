"""A page of HTML that needs nothing else, now or in ten years: one file, no network, light and dark, wide and narrow.

Whatever a run says is text here, never markup: every function escapes what it is given, and returns markup to be put
together. A strict content security policy admits exactly what a page brings along: styles and scripts by their sha256,
pictures from `data:` and `blob:`. So even a hole in the escaping could not run anything, and nothing is ever fetched.
The empty style is admitted too: plotly adds an empty element and fills it through the CSSOM.
"""

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from html import escape
from importlib.resources import files

COPY = """"use strict";
for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", function () {
  const text = button.parentElement.querySelector("pre");
  function said() { button.textContent = "copied"; setTimeout(function () { button.textContent = "copy"; }, 1500); }
  function byHand() {
    const range = document.createRange(); range.selectNodeContents(text);
    const chosen = getSelection(); chosen.removeAllRanges(); chosen.addRange(range);
    if (document.execCommand("copy")) said();
  }
  if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(said, byHand); else byHand();
});
"""
"""The script of `copyable`; without it the text can still be selected."""
_BREAK, _MAY_BREAK = re.compile(r"(?<=[\w*])([./])(?=[a-z*])"), r"\1<wbr>"
"""Where the name of a module may go on in the next line."""
SHADES = 10
"""Depths of colour that a table's cell may have, besides none."""


def document(
    title: str,
    lead: str,
    body: str,
    *,
    kicker: str = "",
    links: Iterable[tuple[str, str]] = (),
    style: str = "",
    scripts: Sequence[str] = (),
    head: str = "",
) -> str:
    """The whole page. body, head: markup, of the main part and of the end of the head. lead: the sentence on top.

    links: (id, text) of the sections, for the table of contents. style: beyond the one that all pages have.
    """  # fmt: skip
    styles = files("altgrad").joinpath("webpage.css").read_text(encoding="utf-8") + style
    contents = "".join(f'<li><a href="#{escape(id)}">{escape(text)}</a></li>' for id, text in links)
    nav = f'<nav aria-label="Sections"><ol>{contents}</ol></nav>' if contents else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy(styles, scripts))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{styles}</style></head>\n<body>\n"
        f'<header class="top"><div class="wide"><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>\n'
        f'<p class="lead">{escape(lead)}</p>{head}</div></header>\n'
        f'<div class="wide{" columns" if nav else ""}">{nav}<main>\n{body}</main></div>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body></html>\n"
    )


def policy(style: str, scripts: Sequence[str] = ()) -> str:
    """The content security policy that admits these and nothing else."""
    styles = " ".join(_sha(text) for text in (style, ""))
    run = " ".join(_sha(script) for script in scripts) or "'none'"
    rest = "img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {run}; style-src {styles}; {rest}"


def section(id: str, title: str, note: str, inner: str) -> str:
    """A part of the page, which links can lead to."""
    told = f'<p class="question">{escape(note)}</p>' if note else ""
    return f'<section id="{escape(id)}">\n<h2>{escape(title)}</h2>{told}\n{inner}</section>\n'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, of a class of the style sheet."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>\n"


def folded(title: str, items: Iterable[str]) -> str:
    """One line that opens to a list."""
    inner = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<details id="open-questions"><summary>{escape(title)}</summary><ul>{inner}</ul></details>\n'


def table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Collection[int] = (),
    note: str = "",
    shades: Sequence[Sequence[int]] = (),
    marked: Collection[int] = (),
) -> str:
    """A table that scrolls where it is wider than the window; its first column and its title stay.

    numeric: columns that are set flush right. shades: for a heat map, the depth of each cell's colour, 0 (none) to
    SHADES. marked: rows to set bold.
    """  # fmt: skip
    head = "".join(f"<th{_class('n' if column in numeric else '')}>{escape(c)}</th>" for column, c in enumerate(header))
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for column, cell in enumerate(row):
            depth = shades[number][column] if number < len(shades) else 0
            words = ["n" if column in numeric else _width(cell), f"h{depth}" if depth else ""]
            cells.append(f"<td{_class(' '.join(filter(None, words)))}>{_text(cell)}</td>")
        lines.append(f"<tr{_class('marked' if number in marked else '')}>{''.join(cells)}</tr>")
    box = "table long" if len(lines) > 30 else "table"
    return (
        (f"<h3>{escape(title)}</h3>" if title else "")
        + f'<div class="{box}" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
        + f"<thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table></div>\n"
        + (paragraph(note, "note") if note else "")
    )  # fmt: skip


def _text(cell: str) -> str:
    text = escape(cell)
    return text if len(cell) < 27 else _BREAK.sub(_MAY_BREAK, text)


def _width(cell: str) -> str:
    """The class of a cell of words: in one line everywhere, in a wide window, or in lines of some words each."""
    return "s" if len(cell) < 27 else "m" if len(cell) < 36 else "l"


def copyable(text: str) -> str:
    """A text as it stands, with a button that copies it; the page needs the script COPY."""
    return f'<div class="code"><button class="copy" type="button">copy</button><pre>{escape(text)}</pre></div>\n'


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _sha(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
