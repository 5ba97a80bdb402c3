"""altgrad diagnose TARGET: what is wrong with a run, how a model's weights lie, which formats would suit it.

Everything is computed by `altgrad.diagnosis` and drawn by `altgrad.cli.diagnosis_page`; torch is loaded when the
command runs. TARGET is a run, one of its checkpoints, a Hugging Face folder, a .safetensors file, or the YAML of a run.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli import console
from altgrad.store.files import write_atomic

Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="A run, a checkpoint, a model (folder, .safetensors), or a run spec."),
]
Formats = Annotated[
    str | None, typer.Option("--formats", metavar="F,F", help="Formats to weigh.  [default: seven of 8 bits]")
]
NoData = Annotated[
    bool, typer.Option("--no-data", help="Leave out activations and gradients, which take one step of the run.")
]
Replay = Annotated[
    bool,
    typer.Option("--replay", help="Instead: the run's next step under other formats, and what is owed to which cast."),
]
Against = Annotated[
    str | None,
    typer.Option("--against", metavar="RUN", help="Instead: where TARGET parts from this run, and by which casts."),
]
Oracle = Annotated[
    bool,
    typer.Option("--oracle", help="Instead, before training: how often weights will move. A spec is asked only this."),
]
MoveRate = Annotated[
    float, typer.Option("--move-rate", metavar="R", help="Oracle: the rate whose smallest learning rate is sought.")
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Oracle: take 20 steps of each to see what gradients are like.")
]
PolicyOut = Annotated[
    Path | None,
    typer.Option(
        "--policy-out",
        metavar="FILE",
        help="Write the advice there: for a run a whole spec, which `altgrad train` takes; else its `precision`.",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the same page there, as HTML.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def diagnose(
    target: Target,
    formats: Formats = None,
    no_data: NoData = False,
    replay: Replay = False,
    against: Against = None,
    oracle: Oracle = False,
    move_rate: MoveRate = 0.01,
    calibrate: Calibrate = False,
    policy_out: PolicyOut = None,
    runs: Runs = Path("runs"),
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a run or how formats suit a model: symptoms, weights, format advice.

    --replay and --against answer other questions about a run, by taking steps of it again; --oracle foretells how many
    updates of a run will change a stored weight. See docs/DIAGNOSE.md.
    """
    from altgrad.cli.diagnosis import Asked, examine

    with console.one_line_errors():
        asked = Asked(target, formats, not no_data, runs, replay, against, oracle, move_rate, calibrate)
        if policy_out is not None and asked.advises_nothing:
            raise ValueError("--policy-out goes with the format advice; leave out --replay, --against and --oracle.")
        if sum((replay, against is not None, oracle)) > 1:
            raise ValueError("--replay, --against and --oracle are questions of their own; ask one at a time.")
        facts = examine(asked)
        if policy_out is not None:
            write_atomic(policy_out, facts["advised_spec"].encode(), durable=False)
        _show(facts, html, as_json)
        for path in (policy_out, html):
            if path is not None and not as_json:
                console.say(f"written: {path}")


def _show(facts: dict[str, Any], html: Path | None, as_json: bool) -> None:
    from altgrad.cli.diagnosis_page import page
    from altgrad.cli.html_page import html_page

    if html is not None:
        text = html_page(f"altgrad diagnose {facts['name']}", page(facts, 110))
        write_atomic(html, text.encode(), durable=False)
    if as_json:
        console.print_json(facts)
    else:
        console.picture(page(facts, console.width() if console.interactive() else 120))
