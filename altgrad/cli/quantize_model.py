"""altgrad quantize-model MODEL: what a format does to a trained model's weights, and the quantised model as a file.

Without --out nothing is written: a table for choosing a format. Everything is done by `altgrad.conversion`, which is
imported when the command runs.

Exit code 0: measured, also where weights hold NaN or Inf, which the table and --json name. 2: a mistake, no readable
model, or --out of weights that are not finite. 3: the machine.
"""

from pathlib import Path
from typing import Annotated

import typer

from altgrad.cli import completion, console
from altgrad.progress import progress


def quantize_model(
    model: Annotated[
        Path,
        typer.Argument(
            help="A Hugging Face folder, a .safetensors file, or a run.",
            metavar="MODEL",
            autocompletion=completion.run_ids,
        ),
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="F",
            help="A format, such as e4m3fn, or all; repeatable. [default: all]",
            autocompletion=completion.formats,
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="P.yaml", help="Rules by module name, as in a run's precision."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The weights' casts of a published recipe.", autocompletion=completion.recipes
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            "--match",
            metavar="PATTERN",
            help="With --format: only these modules, not all but embeddings and heads.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the quantised model there; not a folder in use.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Quantise the weights of a model.

    Reports the error of each format, and with --out writes the codes as safetensors.
    """
    progress("loading torch")
    from altgrad.conversion.saving import save_quantized

    with console.one_line_errors():
        if recipe is not None and policy is not None:
            raise ValueError("--recipe and --policy both say the casts; leave out one of them.")
        said = policy if recipe is None else {"recipe": recipe}
        report = save_quantized(model, out, policy=said, format=formats, match=match or ())
    if as_json:
        console.print_json(report.facts)
    else:
        console.picture(report.page(console.width() if console.interactive() else None))
