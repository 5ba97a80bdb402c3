"""altgrad diagnose TARGET: what is wrong with a run, how a model's weights lie, which formats would suit it.

Everything is computed and drawn by `altgrad.diagnosis`, which is imported when the command runs. TARGET is a run, one
of its checkpoints, a Hugging Face folder, a .safetensors file, or the YAML of a run.
"""

from pathlib import Path
from typing import Annotated

import typer

from altgrad.cli import completion, console
from altgrad.progress import progress
from altgrad.store.files import write_atomic

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A run, a checkpoint, a model (folder, .safetensors), or a run spec.",
        autocompletion=completion.run_ids,
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        "--formats",
        metavar="F,F",
        help="Formats to compare.  [default: seven of 8 bits]",
        autocompletion=completion.formats,
    ),
]
NoData = Annotated[
    bool, typer.Option("--no-data", help="Leave out activations and gradients, which take one step of the run.")
]
Replay = Annotated[
    bool,
    typer.Option("--replay", help="Instead: the run's next step under other formats, and error attribution by cast."),
]
Accumulator = Annotated[
    list[str] | None,
    typer.Option(
        "--accumulator",
        metavar="NAME",
        help="With --replay: add up all products in this, such as hopper_fast; may be given again.",
    ),
]
Recipes = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME,NAME",
        help="Instead: the run's next step with the casts of these recipes.",
        autocompletion=completion.recipes,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="RUN",
        help="Instead: where TARGET diverges from this run, and by which casts.",
        autocompletion=completion.run_ids,
    ),
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
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page of HTML: tables, a heat map, the policy to copy."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def diagnose(
    target: Target,
    formats: Formats = None,
    no_data: NoData = False,
    replay: Replay = False,
    accumulator: Accumulator = None,
    recipe: Recipes = None,
    against: Against = None,
    oracle: Oracle = False,
    move_rate: MoveRate = 0.01,
    calibrate: Calibrate = False,
    policy_out: PolicyOut = None,
    runs: Runs = Path("runs"),
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a run and which formats suit it.

    Of a run: symptoms, weights and format advice; of a model: format advice.

    --replay, --recipe and --against answer other questions about a run, by taking steps of it again; --oracle predicts
    the fraction of updates that change stored weights. See docs/DIAGNOSE.md.
    """
    with console.one_line_errors():
        recipes = [] if recipe is None else _recipes(recipe)
    progress("loading torch")
    from altgrad.diagnosis.examination import diagnose as examine
    from altgrad.diagnosis.examination import is_spec

    with console.one_line_errors():
        if policy_out is not None and (replay or recipes or against is not None or oracle or is_spec(target)):
            raise ValueError("--policy-out goes with the format advice; leave out --replay, --against and --oracle.")
        diagnosis = examine(
            target, formats=formats, data=not no_data, replay=replay, accumulators=accumulator or (), recipes=recipes,
            against=against, oracle=oracle, move_rate=move_rate, calibrate=calibrate, runs=runs,
        )  # fmt: skip
        if policy_out is not None:
            write_atomic(policy_out, diagnosis.facts["advised_spec"].encode(), durable=False)
        if html is not None:
            write_atomic(html, diagnosis.html().encode(), durable=False)
        if as_json:
            console.print_json(diagnosis.facts)
            return
        console.picture(diagnosis.page(console.width() if console.interactive() else 120))
        for path in (policy_out, html):
            if path is not None:
                console.say(f"written: {path}")


def _recipes(text: str) -> list[str]:
    """The recipes of `A,B`, each once. ValueError for one that does not exist, before torch is loaded."""
    from altgrad.recipes.book import find

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("--recipe names no recipe; write some, such as te_nvfp4,mx.")
    for name in names:
        try:
            find(name)
        except ValueError as error:
            raise ValueError(f"--recipe {name}: {error}") from None
    return names
