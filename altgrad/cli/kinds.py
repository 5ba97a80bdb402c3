"""`altgrad kinds`: what each family offers, what its kinds take, and what they take by default.

Everything comes from the classes themselves: the sentence from the docstring, the fields from the annotations.
"""

import json
from typing import Annotated, Any

import typer

from altgrad.cli import completion, console
from altgrad.cli.metrics_table import markdown
from altgrad.display import Line
from altgrad.progress import aside, progress


def kinds(
    family: Annotated[
        str | None,
        typer.Argument(
            help="Such as monitor, optimizer or storage; all if left out.", autocompletion=completion.families
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="With monitor: every metric key, as in docs/METRICS.md.")
    ] = False,
) -> None:
    """List models, data sets, optimizers and other kinds.

    Each with its fields.
    """
    progress("loading torch")
    from altgrad.spec.families import FAMILIES
    from altgrad.spec.families import family as members
    from altgrad.spec.messages import kind_meant

    if family is not None and family not in FAMILIES:
        hint = kind_meant(family, FAMILIES) or f" There are {', '.join(FAMILIES)}."
        console.fail(f"'{family}' is not a family.{hint}", 2)
    if as_markdown:
        _print_metrics(family)
        return
    found = {name: members(name) for name in FAMILIES if family in (None, name)}
    if as_json:
        console.say(json.dumps(found, indent=1, ensure_ascii=False))
        return
    lines = [line for name, each in found.items() for line in _table(name, each)]
    if console.interactive():
        with aside():
            console.terminal().print(console.styled(lines), soft_wrap=True)
    else:
        for line in lines:
            console.say(line.text)


def _print_metrics(family: str | None) -> None:
    from altgrad.interventions.intervention import InterventionSpec
    from altgrad.monitors.monitor import MonitorSpec
    from altgrad.training.loop import LOG_KEYS

    if family != "monitor":
        console.fail("--markdown prints the metrics of monitors; say `altgrad kinds monitor --markdown`.", 2)
    for line in markdown(MonitorSpec.kinds(), InterventionSpec.kinds(), LOG_KEYS):
        console.say(line)


def _table(family: str, kinds: list[dict[str, Any]]) -> list[Line]:
    """One kind after another: its name and sentence, then a row for each field."""
    rows = [_row(fact) for member in kinds for fact in member["fields"]]
    first, second, third = (max((len(row[column]) for row in rows), default=0) for column in range(3))
    lines = []
    for member in kinds:
        lines.append(Line.of((f"{family} {member['kind']}", "bold"), f"  {member['summary']}"))
        for name, default, takes, meaning in map(_row, member["fields"]):
            rest = f"  {default.ljust(second)}  {takes.ljust(third)}  {meaning}".rstrip()
            lines.append(Line.of("  ", (name.ljust(first), "cyan"), rest))
        lines.append(Line.of(""))
    return lines


def _row(fact: dict[str, Any]) -> tuple[str, str, str, str]:
    default = json.dumps(fact["default"], ensure_ascii=False) if "default" in fact else "required"
    return fact["name"], default, fact["takes"], fact.get("description", "")
