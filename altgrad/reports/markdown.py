"""report.md and LaTeX: the same blocks for a repository and for a paper.

Texts are escaped for each language; a table's LaTeX is booktabs, a file of its own, with its caption and label.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from altgrad.reports.content import Figure, Headline, Table
from altgrad.reports.page import Chapter, open_questions

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~])")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "−": r"$-$", "±": r"$\pm$", "≥": r"$\geq$", "≤": r"$\leq$", "∞": r"$\infty$", "–": "--", "…": r"\ldots{}",
}  # fmt: skip


def report_markdown(name: str, chapters: Sequence[Chapter], headline: str, made: str) -> str:
    """The whole report; pictures are `figures/<key>.png`."""
    lines = [f"# {escaped(name)}", "", f"**{escaped(headline)}**", "", f"{escaped(made)}", ""]
    for chapter in chapters:
        if not chapter.shown:
            continue
        lines += [f"## {escaped(chapter.section.title)}", "", f"*{escaped(chapter.section.question)}*", ""]
        for block in chapter.shown:
            if isinstance(block, Figure):
                lines += [f"![{escaped(block.title)}](figures/{block.key}.png)", "", escaped(block.caption), ""]
            elif isinstance(block, Table):
                lines += [*markdown_table(block), ""]
            else:
                mark = "**" if isinstance(block, Headline) else ""
                lines += [f"{mark}{escaped(block.text)}{mark}", ""]
    if questions := open_questions(chapters):
        lines += ["## What these runs cannot answer", "", *(f"- {escaped(question)}" for question in questions), ""]
    return "\n".join(lines)


def latex(table: Table) -> str:
    """A float of its own: `\\input` it; needs the booktabs package."""
    columns = "".join("r" if index in table.numeric else "l" for index in range(len(table.header)))
    body = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in table.rows]
    note = [rf"\par\smallskip\footnotesize {_latex(table.note)}"] if table.note else []
    lines = [
        "% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering\small", rf"\caption{{{_latex(table.title)}}}",
        rf"\label{{tab:{table.key}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
        " & ".join(_latex(cell) for cell in table.header) + r" \\", r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}", *note, r"\end{table}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def write_markdown(folder: Path, name: str, chapters: Sequence[Chapter], headline: str, made: str) -> None:
    """report.md and tables/<key>.tex."""
    (folder / "report.md").write_text(report_markdown(name, chapters, headline, made), encoding="utf-8")
    tables = folder / "tables"
    tables.mkdir(exist_ok=True)
    for chapter in chapters:
        for block in chapter.blocks:
            if isinstance(block, Table):
                (tables / f"{block.key}.tex").write_text(latex(block), encoding="utf-8")


def escaped(text: str) -> str:
    """Plain text for a markdown paragraph or cell."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def markdown_table(table: Table) -> list[str]:
    """Its lines, under its title in bold."""
    rule = ["--:" if index in table.numeric else "---" for index in range(len(table.header))]
    rows = [table.header, tuple(rule), *table.rows]
    lines = [f"**{escaped(table.title)}**", ""]
    lines += ["| " + " | ".join(cell if row is rows[1] else escaped(cell) for cell in row) + " |" for row in rows]
    return lines + (["", escaped(table.note)] if table.note else [])


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
