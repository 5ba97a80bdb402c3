"""altgrad evaluate RUN: what a trained run is worth on a split it never saw.

A threshold is chosen on the validation split and taken over to the one that is asked for. The weights are those of the
newest checkpoint. Torch is imported when a command runs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import completion, console
from altgrad.progress import progress
from altgrad.store import RunStore

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="An id, its unique beginning, project/id, or a path.", autocompletion=completion.run_ids
    ),
]
Folder = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")]


def evaluate(
    run: RunName,
    split: Annotated[Literal["validation", "test"], typer.Option(help="The split to evaluate on.")] = "test",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    runs: Folder = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Evaluate a run's latest checkpoint on a split.

    All its numbers and, for a classifier, each label's.
    """
    with console.one_line_errors():
        found = RunStore(runs).find(run)
        progress("loading torch")
        from altgrad.training.evaluate import evaluate_run

        judged = evaluate_run(found, split, device)
    if as_json:
        facts = {"run": str(found.path), "split": split, "step": judged.step, "validation": judged.validation}
        console.print_json({**facts, "found": judged.found, "table": judged.table})
        return
    console.say(f"{found.id} at step {judged.step}, {split}")
    header = ["", "validation", split] if split != "validation" else ["", split]
    rows = [
        [name.replace("_", " "), _shown(judged.validation[name]), _shown(value)] for name, value in judged.found.items()
    ]
    console.table(header, [row if split != "validation" else row[:2] for row in rows])
    if judged.table:
        console.say("")
        names = list(judged.table[0])
        console.table(
            [name.replace("_", " ") for name in names], [[_shown(row[name]) for name in names] for row in judged.table]
        )


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
