"""altgrad policy FILE|RECIPE --to TARGET: casts as a production stack takes them, layer by layer.

Everything is done by `altgrad.conversion.policies`, which is imported when the command runs.

Exit code 0: every layer is expressed. 2: a mistake, or a layer that the target cannot run, which is named with the
reason. 3: the machine. Nothing half-written stays.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from altgrad.cli import completion, console
from altgrad.progress import progress


def policy(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|RECIPE",
            help="A run's spec or a policy, as YAML, or a recipe's name.",
            autocompletion=completion.recipes,
        ),
    ],
    to: Annotated[
        Literal["torchao", "te", "megatron"],
        typer.Option(help="torchao or te (Transformer Engine): a Python file. megatron: YAML.", show_default=False),
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="A Hugging Face folder. [default: the spec's model, or the rules]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new file; without it the text is printed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a policy as a production stack takes it.

    Every layer by its name; or the first that the stack cannot run, with the reason, and nothing is written.
    """
    progress("loading torch")
    from altgrad.conversion.policies.expression import express_policy

    with console.one_line_errors():
        report = express_policy(source, to=to, model=model, out=out)
    if as_json:
        console.print_json(report.facts)
    elif out is None:
        console.say(report.text.removesuffix("\n"))
    else:
        console.picture(report.page(console.width() if console.interactive() else None))
