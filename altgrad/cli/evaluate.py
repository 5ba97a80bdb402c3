"""altgrad evaluate MODEL: what a trained model is worth on a split it never saw, also under casts that it was not
trained with.

A threshold is chosen on the validation split and taken over to the one that is asked for. The weights are those of the
newest checkpoint. With --recipe or --data a language model, a run's or a folder's, is asked as it is and with each
recipe's casts (`altgrad.conversion.direct_cast`). Torch is imported when a command runs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import completion, console
from altgrad.numerals import with_interval
from altgrad.progress import progress
from altgrad.store import RunStore

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="An id, its unique beginning, project/id, or a path.", autocompletion=completion.run_ids
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a folder of transformers, or package:NAME.", autocompletion=completion.run_ids
    ),
]
Folder = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")]


def evaluate(
    model: Model,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="The split to evaluate on.")] = "test",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Cast the model by these recipes, without training; bf16: none, in bfloat16.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Text: eulaw (packaged) or a file. [default: the run's own]")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--bytes", metavar="N", help="With --recipe or --data: bytes of text to use. [default: all]"),
    ] = None,
    context: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a window, of a folder's model.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="With --recipe: windows at a time.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    runs: Folder = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Evaluate a run's latest checkpoint on a split, or a language model under recipes.

    All its numbers and, for a classifier, each label's. With --recipe: perplexity, bits per byte and what each recipe
    adds to them, with intervals over documents. A stopped evaluation continues where it stopped.
    """
    from altgrad.spec.package_path import names_model

    if recipe is not None or data is not None or names_model(model):
        _under_recipes(model, split, recipe, data, (size, context, batch_size), device, runs, as_json)
        return
    if split == "train":
        raise typer.BadParameter("train is for --recipe and --data; use validation or test.", param_hint="--split")
    with console.one_line_errors():
        found = RunStore(runs).find(model)
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


def _under_recipes(
    model: str,
    split: str,
    recipe: str | None,
    data: str | None,
    sizes: tuple[int | None, int, int],
    device: str,
    runs: Path,
    as_json: bool,
) -> None:
    with console.one_line_errors():
        progress("loading torch")
        from altgrad.conversion.direct_cast import direct_cast
        from altgrad.conversion.language_model import LanguageModel
        from altgrad.conversion.windows import Settings

        size, context, batch_size = sizes
        found, context = LanguageModel.named(model, runs, data, context)
        names = [name.strip() for name in (recipe or "").split(",") if name.strip()]
        table = direct_cast(found, names, Settings(split, size, context, batch_size), device)
    if as_json:
        console.print_json(table.facts)
        return
    size_told = f"{table.documents} documents, {table.bytes:,} bytes, {table.tokens:,} tokens of {split}"
    console.say(f"{table.model}: {size_told}; windows of {context} tokens, 95 % intervals over documents")
    header = ["recipe", "perplexity", "bits/byte", "more than uncast", "KL (nats)", "same top-1", "seconds"]
    console.table(header, [_row(row, row.recipe == "uncast") for row in table.rows])


def _row(row: Any, is_reference: bool) -> list[str]:
    told = [row.recipe, with_interval(row.perplexity, ".2f"), f"{row.bits_per_byte[0]:.4f}"]
    if is_reference:
        return [*told, "", "", "", f"{row.seconds:.0f}"]
    kl, same = row.kl, row.top1
    return [*told, with_interval(row.more_bits, "+.4f"), f"{kl[0]:.5f}", f"{same[0]:.2%}", f"{row.seconds:.0f}"]


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
