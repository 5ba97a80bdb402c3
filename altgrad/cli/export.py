"""altgrad export: a run as a Hugging Face folder, or a run or model as a checkpoint that serving libraries load.

Everything is done by `altgrad.training` and `altgrad.conversion`, which are imported when the command runs.

Exit code 0: written, and with --to read again without a difference. 2: a mistake, no readable model, or a cast that the
layout cannot keep. 3: the machine. Nothing half-written stays.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import completion, console
from altgrad.progress import progress
from altgrad.store import Run, RunStore


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="An id, its unique beginning, project/id, or a path; with --to also a Hugging Face folder.",
            autocompletion=completion.run_ids,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.", show_default=False)],
    to: Annotated[
        Literal["compressed-tensors", "hf-fp8"] | None,
        typer.Option(help="Quantised, in this library's layout; without it in full precision."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="FP8, FP8_DYNAMIC, FP8_BLOCK, NVFP4, MXFP4, MXFP8 or INT8. [default: the run's own casts]",
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="P.yaml", help="Rules by module name, instead of a preset.")
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option("--match", metavar="PATTERN", help="With --preset: only these modules."),
    ] = None,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="The config quantises no activations.")] = False,
    max_shard_size: Annotated[float, typer.Option(metavar="GB", min=0.001, help="The largest size of a file.")] = 5.0,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a run of kind hf or llama as a Hugging Face folder, or a run or model as a quantised checkpoint to serve.

    With --to every weight is read again and compared with the value of its cast before the folder appears.
    """
    with console.one_line_errors():
        if to is None:
            _require_plain({"--preset": preset, "--policy": policy, "--match": match, "--weights-only": weights_only})
            facts = _export_plain(run, out, runs)
        else:
            model = Path(run)
            found = model if model.exists() and not Run(model).exists else RunStore(runs).find(run).path
            progress("loading torch")
            from altgrad.conversion.export import export_checkpoint

            report = export_checkpoint(
                found, out, to=to, preset=preset, policy=policy, match=match or (), activations=not weights_only,
                shard_bytes=int(max_shard_size * 10**9),
            )  # fmt: skip
            facts = report.facts
    if as_json:
        console.print_json(facts)
    elif to is None:
        console.say(f"{Path(facts['run']).name} at step {facts['step']} exported to {out}")
    else:
        console.picture(report.page(console.width() if console.interactive() else None))


def _require_plain(given: dict[str, Any]) -> None:
    """ValueError for an option that says how to quantise, where nothing is quantised."""
    for name, value in given.items():
        if value:
            raise ValueError(f"{name} is about quantised weights; add --to compressed-tensors or --to hf-fp8.")


def _export_plain(run: str, out: Path, runs: Path) -> dict[str, Any]:
    """A run's weights in full precision."""
    found = RunStore(runs).find(run)
    progress("loading torch")
    from altgrad.training.trained_run import TrainedRun

    progress("exporting")
    step = TrainedRun(found).export(out)
    return {"run": str(found.path), "step": step, "out": str(out)}
