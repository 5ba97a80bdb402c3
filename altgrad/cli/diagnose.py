"""altgrad diagnose TARGET: what is wrong with a run, how a model's weights lie, which formats would suit it.

Everything is computed by `altgrad.diagnose` and drawn by `altgrad.cli.diagnosis_page`; torch is loaded when the command
runs. TARGET is a run, one of its checkpoints, a Hugging Face folder, or a .safetensors file.
"""

from pathlib import Path
from typing import Annotated

import typer

from altgrad.cli import console
from altgrad.store.files import write_atomic


def diagnose(
    target: Annotated[
        str,
        typer.Argument(
            help="A run, a checkpoint's folder, a Hugging Face folder or a .safetensors file.", metavar="TARGET"
        ),
    ],
    formats: Annotated[
        str | None,
        typer.Option("--formats", metavar="F,F", help="Formats to weigh.  [default: seven of 8 bits]"),
    ] = None,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Leave out activations and gradients, which take one step of the run.")
    ] = False,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay", help="Instead: take the run's next step under other formats, and say who is to blame."
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="RUN", help="Instead: where TARGET parts from this run, and by which casts."),
    ] = None,
    policy_out: Annotated[
        Path | None,
        typer.Option(
            "--policy-out",
            metavar="FILE",
            help="Write the advice there: for a run a whole spec, which `altgrad train` takes; else its `precision`.",
        ),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")] = Path("runs"),
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the same page there, as one HTML file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what is wrong with a run or how formats suit a model: symptoms, weights, format advice.

    --replay and --against answer other questions about a run, by taking steps of it again; see docs/DIAGNOSE.md.
    """
    from altgrad.cli.diagnosis import Asked, examine
    from altgrad.cli.diagnosis_page import page

    with console.one_line_errors():
        if policy_out is not None and (replay or against):
            raise ValueError("--policy-out goes with the format advice; leave out --replay and --against.")
        if replay and against:
            raise ValueError("--replay and --against are two questions; ask one at a time.")
        facts = examine(Asked(target, formats, not no_data, runs, replay, against))
        if policy_out is not None:
            write_atomic(policy_out, facts["advised_spec"].encode(), durable=False)
        if html is not None:
            from altgrad.cli.html_page import html_page

            text = html_page(f"altgrad diagnose {facts['name']}", page(facts, 110))
            write_atomic(html, text.encode(), durable=False)
        if as_json:
            console.print_json(facts)
            return
        console.picture(page(facts, console.width() if console.interactive() else 120))
        for path in (policy_out, html):
            if path is not None:
                console.say(f"written: {path}")
