"""What a shell completes: run ids, projects, formats, recipes and families, besides commands, options and files.

`altgrad --install-completion` adds it to the shell; Typer does the rest. A function here answers at every press of the
tab key, in a new process: so it reads names alone, of folders and of the catalogue, and loads no torch.
"""

from collections.abc import Iterator
from pathlib import Path

import typer

from altgrad.formats import CATALOG
from altgrad.numerals import counted
from altgrad.store import RunStore

Suggestion = tuple[str, str]


def run_ids(context: typer.Context, incomplete: str) -> Iterator[Suggestion]:
    """Ids, with the project as help; `project/id` once a project is typed. Without a match the shell offers files."""
    for run in _store(context).runs():
        name = f"{run.project}/{run.id}" if "/" in incomplete else run.id
        if name.startswith(incomplete):
            yield name, run.project


def projects(context: typer.Context, incomplete: str) -> Iterator[Suggestion]:
    """Projects, with their number of runs as help."""
    names = [run.project for run in _store(context).runs()]
    for name in dict.fromkeys(names):
        if name.startswith(incomplete):
            yield name, counted(names.count(name), "run")


def formats(incomplete: str) -> Iterator[Suggestion]:
    """Formats with a name of their own and their other spellings; of a list with commas, the last."""
    before, comma, last = incomplete.rpartition(",")
    for entry in CATALOG:
        for name in (entry.name, *entry.aliases):
            if name.startswith(last):
                yield f"{before}{comma}{name}", entry.source


def recipes(incomplete: str) -> Iterator[Suggestion]:
    """Recipes of the book, with their titles as help; of a list with commas, the last."""
    from altgrad.recipes import catalogue  # with YAML

    before, comma, last = incomplete.rpartition(",")
    for name in catalogue.names():
        if name.startswith(last):
            yield f"{before}{comma}{name}", catalogue.facts(name)["title"]


def families(incomplete: str) -> list[str]:
    """Families of kinds."""
    from altgrad.spec.families import FAMILIES  # with pydantic, which the others do without

    return [name for name in FAMILIES if name.startswith(incomplete)]


def _store(context: typer.Context) -> RunStore:
    return RunStore(Path(context.params.get("runs") or "runs"))
