"""altgrad quantize-model MODEL: what a format does to a trained model's weights, and the quantised model as a file.

Without --out nothing is written: a table for choosing a format. Torch is imported when the command runs.

Exit code 0: measured, also where weights hold NaN or Inf, which the table and --json name. 2: a mistake, no readable
model, or --out of weights that are not finite. 3: the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli import console
from altgrad.numerals import count_text, percent

_HEADER = ["SQNR dB", "underflow", "saturated", "codes used", "never used"]


def quantize_model(
    model: Annotated[
        Path,
        typer.Argument(help="A Hugging Face folder, a .safetensors file, or a run.", metavar="MODEL"),
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="F", help="A format, such as e4m3fn, or all; repeatable. [default: all]"),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="P.yaml", help="Rules by module name, as in a run's precision."),
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
    """Quantise a model's weights: how well each format holds them, and with --out the codes as safetensors."""
    with console.one_line_errors(), _one_thread():
        if policy is not None and (formats or match):
            raise ValueError("--policy says formats and names itself; leave out --format and --match.")
        if out is not None and not (policy or formats):
            raise ValueError("--out needs to know what to write; add --format F, or --policy P.yaml.")
        summaries = _run(model, formats or [], policy, match or [], out)
        if as_json:
            written = None if out is None else str(out)
            console.print_json({"model": str(model), "out": written, "results": summaries})
        else:
            _print(summaries, out)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A slab is work for one core; threads that wait for one another at its every operation take longer together."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(
    model: Path, formats: list[str], policy: Path | None, match: list[str], out: Path | None
) -> list[dict[str, Any]]:
    from altgrad.cli.quantization import formats_named, job_by_policy, jobs_by_format, require_vacant, run_all
    from altgrad.training.weights import find_weights

    named = [] if policy is not None else formats_named(formats)
    if out is not None:
        require_vacant(out)
    weights = find_weights(model)
    jobs = [job_by_policy(weights, policy)] if policy is not None else jobs_by_format(weights, named, match)
    return run_all(jobs, weights, out)


def _print(summaries: list[dict[str, Any]], out: Path | None) -> None:
    from altgrad.cli.nonfinite_weights import Nonfinite

    if len(summaries) == 1:
        rows = [
            [row["tensor"], row["cast"], *_cells(row), _bytes(row["bytes_before"]), _bytes(row["bytes_after"])]
            for row in summaries[0]["tensors"]
        ]
        console.table(["tensor", "cast", *_HEADER, "bytes", "after"], rows)
        console.say("")
    rows = [
        [each["name"], *_cells(each), _bytes(each["bytes_after"]), f"{each['worst_sqnr_db']:.2f} in {each['worst']}"]
        for each in summaries
    ]
    console.table(["", *_HEADER, "bytes after", "lowest SQNR"], rows)
    first = summaries[0]
    console.say(
        f"{first['cast_tensors']} of {first['tensors_in_model']} tensors cast, the others as they were; "
        f"{_bytes(first['bytes_before'])} before"
    )
    for broken in first["nonfinite_tensors"]:
        counts = Nonfinite(broken["nan_count"], broken["inf_count"], broken["elements"])
        console.say(f"not finite: {broken['tensor']}, {counts.words()}{'' if broken['cast'] else '; not cast'}")
    for each in summaries:
        if each["clamped_scale_count"]:
            console.say(f"{each['name']}: scales clamped to the end of their range: {each['clamped_scale_count']}")
    if out is not None:
        console.say(f"written to {out}")


def _cells(row: dict[str, Any]) -> list[str]:
    broken = row.get("nan_count", 0) + row.get("inf_count", 0)
    return [
        f"{row['sqnr_db']:.2f}" + (f" ({broken:,} not finite)" if broken else ""),
        percent(row["underflow_rate"]),
        percent(row["saturation_rate"]),
        percent(row["utilisation"]),
        percent(row["unused_share"]),
    ]


def _bytes(size: int) -> str:
    return f"{count_text(size)}B" if size >= 1000 else f"{size} B"
