"""altgrad mismatch MODEL --train A --serve B,...: how far the model that serves is from the one that trains, and why.

Everything is done by `altgrad.conversion`, which is imported when the command runs. What was done is kept, so that a
stopped command goes on where it was.

Exit code 0: compared. 2: a mistake, no readable model or text. 3: the machine.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import completion, console
from altgrad.cli.evaluate import Folder, Model
from altgrad.numerals import with_interval
from altgrad.progress import progress

MOST_CAUSES = 20
"""Groups that are shown; --json has all."""


def mismatch(
    model: Model,
    serve: Annotated[
        str,
        typer.Option(
            metavar="B,...", help="Policies to compare: recipes, files of rules, none or bf16.",
            autocompletion=completion.recipes, show_default=False,
        ),
    ],
    train: Annotated[
        str,
        typer.Option(
            metavar="A,...", help="The policy that trains; several make a matrix.", autocompletion=completion.recipes
        ),
    ] = "none",
    by: Annotated[
        Literal["cast", "layer", "block", "operand"] | None,
        typer.Option(help="Also rank the causes, leaving out one of these at a time.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Text: eulaw (packaged) or a file. [default: the run's own]")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Instead of --data: all of a file, in a .txt one a line.")
    ] = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="The split of --data.")] = "test",
    size: Annotated[int, typer.Option("--bytes", min=1, metavar="N", help="So much text at most.")] = 1 << 16,
    context: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a window, of a folder's model.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Windows at a time.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    runs: Folder = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:  # fmt: skip
    """Compare the model that serves with the one that trains, on one set of weights.

    Token by token: KL, flips of the likeliest, the tail of importance ratios, effective sample size, with intervals
    over documents. With --by, the casts that cause it, ranked by leaving each out. A stopped command goes on where it
    was.
    """
    with console.one_line_errors():
        trains, serves = _names("--train", train), _names("--serve", serve)
        if prompts is not None and data is not None:
            raise ValueError("--data and --prompts both say what to compare on; leave out one of them.")
        progress("loading torch")
        from altgrad.conversion.language_model import PROMPTS, LanguageModel
        from altgrad.conversion.mismatch import serving_mismatch
        from altgrad.conversion.windows import Settings

        found, context = LanguageModel.named(model, runs, data, context)
        if prompts is not None:
            found = found.with_prompts(prompts)
        settings = Settings(split if prompts is None else PROMPTS, size, context, batch_size)
        made = serving_mismatch(found, trains, serves, settings, by=by, device=device)
    if as_json:
        console.print_json(made.facts)
        return
    _show(made, len(trains) > 1)


def _names(option: str, said: str) -> list[str]:
    """The policies that an option names. ValueError for none."""
    found = [name.strip() for name in said.split(",") if name.strip()]
    if not found:
        raise ValueError(f"{option} names no policy; give a recipe, a file of rules, none or bf16.")
    return found


def _show(made: Any, is_matrix: bool) -> None:
    """What was compared, the figures, and the causes if there are any."""
    asked = made.settings
    what = f"{made.documents} documents, {made.bytes:,} bytes, {made.tokens:,} tokens of {asked.split}"
    windows = "1 window" if asked.batch_size == 1 else f"{asked.batch_size} windows"
    console.say(f"{made.model}: {what}; {windows} of {asked.context} tokens at a time")
    if is_matrix:
        _show_matrices(made)
    else:
        _show_pairs(made)
    for each in made.causes:
        _show_causes(each)


def _show_pairs(made: Any) -> None:
    """A row for each policy that serves, with 95 % intervals over documents."""
    console.say(f"trained as {made.pairs[0].train}; 95 % intervals over documents")
    header = ["serve", "KL (nats)", "flips", "ratio 1 %", "99 %", "outside [0.5, 2]", "effective"]
    rows = [
        [
            pair.serve, _nats(pair.kl), _share(pair.flips), f"{pair.drawn.quantiles['0.01']:.3f}",
            f"{pair.drawn.quantiles['0.99']:.3f}", _share(pair.drawn.outside), _share(pair.effective),
        ]
        for pair in made.pairs
    ]  # fmt: skip
    console.table(header, rows)


def _show_matrices(made: Any) -> None:
    """A table for each figure: rows train, columns serve."""
    serves = list(dict.fromkeys(pair.serve for pair in made.pairs))
    for title, name, style in (
        ("KL (nats)", "kl", ".2e"),
        ("flips", "flips", ".2%"),
        ("effective", "effective", ".1%"),
    ):
        rows: dict[str, list[str]] = {}
        for pair in made.pairs:
            rows.setdefault(pair.train, [pair.train]).append(format(getattr(pair, name)[0], style))
        console.table(["train \\ serve", *serves], list(rows.values()), title=title)


def _show_causes(found: Any) -> None:
    """The groups with the most to gain, and what is left."""
    console.say("")
    console.say(f"{found.serve}: KL {_nats(found.kl)}, by {found.by}, over {found.batches} batches")
    rows = [
        [str(rank), each.group, str(each.sites), _nats(each.without), _nats(each.alone)]
        for rank, each in enumerate(found.groups[:MOST_CAUSES], 1)
    ]
    console.table(["", found.by, "casts", "gained without it", "KL of it alone"], rows)
    if len(found.groups) > MOST_CAUSES:
        console.say(f"and {len(found.groups) - MOST_CAUSES} more (--json)")
    console.say(
        f"rest: KL less the sum alone {_nats(found.rest_alone)}, less the sum gained {_nats(found.rest_without)}"
    )


def _nats(figure: Any) -> str:
    return with_interval(figure, ".2e")


def _share(figure: Any) -> str:
    return with_interval(figure, ".2f", share=True)
