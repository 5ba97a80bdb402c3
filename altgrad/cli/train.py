"""altgrad train SPEC: check everything, then train, with the numbers live.

Nothing is written before the spec, the data, the rules against the model, and the device have all been found good. The
same command continues a run that was stopped, because a run's folder is named after the hash of its resolved spec.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import console, panel
from altgrad.cli.watch import recall


def train(
    spec: Annotated[Path, typer.Argument(help="The run, as YAML or JSON.", metavar="SPEC", show_default=False)],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change one value of the spec, as optimizer.lr=1e-3; repeatable."
        ),
    ] = None,
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option(help="auto continues this run where it stopped; never sets the old one aside and starts anew."),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every cast the run would make, and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.")] = "auto",
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, and nothing else.")
    ] = False,
) -> None:
    """Train the run a spec describes; repeat the command to continue it."""
    # cuBLAS decides at its first use whether it may be non-deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _refuse_what_is_out_of_reach(spec, sets or [])
    from altgrad.cli.preparation import describe, prepare

    prepared = prepare(spec, sets or [], device)
    if dry_run:
        with console.one_line_errors():
            prepared.check_start()
        if console.first_rank():
            describe(prepared, as_json)
        return
    _train(prepared, runs, resume, as_json)


def _refuse_what_is_out_of_reach(path: Path, sets: list[str]) -> None:
    """Say that the Hub does not answer before torch is loaded, which takes longer than asking.

    Anything else that is wrong is left to the full check.
    """
    from altgrad.data.hub_id import Hub, refusal
    from altgrad.spec import Document, SpecError

    try:
        document = Document.load(path)
        source = Hub.model_validate(document.data["data"]["source"])
    except (SpecError, ValueError, LookupError, TypeError):
        return
    if not any(change.startswith("data") for change in sets) and (why := refusal(source)) is not None:
        console.fail(str(SpecError(document.where(("data", "source")), why)), 2)


def _train(prepared: Any, runs: Path, resume: str, as_json: bool) -> None:
    from altgrad.cli.together import together
    from altgrad.spec import LocatedError
    from altgrad.training import Outcome
    from altgrad.training import train as train_run

    with console.one_line_errors(), together(prepared.device) as ranks:
        run = _made(prepared, runs, resume, ranks)
        if run.status == "completed":
            last = {key: value for key, value in run.last(*_VALIDATION).items() if key != "step"}
            _finish(prepared, Outcome(run, "completed", prepared.spec.steps, last), as_json, already=True)
            return
        sinks = _sinks(prepared, run, as_json)
        with _polite() as request:
            try:
                outcome = train_run(
                    prepared.spec, run, prepared.dataset,
                    device=prepared.device, sinks=sinks, interrupted=lambda: request.signal is not None,
                )  # fmt: skip
            except LocatedError as error:
                console.fail(prepared.place(error), 2)
    _finish(prepared, outcome, as_json)
    if outcome.status == "diverged":
        raise typer.Exit(4)
    if outcome.status == "interrupted":
        raise typer.Exit(130 if request.signal == signal.SIGINT else 75)


def _made(prepared: Any, runs: Path, resume: str, ranks: Any) -> Any:
    """The run, made by the first rank if it is new; the others wait for it."""
    if ranks.is_first:
        run = prepared.ensure(prepared.open_run(runs, resume))
    ranks.words("the run is there")
    return run if ranks.is_first else prepared.open_run(runs, "auto")


def _sinks(prepared: Any, run: Any, as_json: bool) -> list[Any]:
    """Who is shown the numbers: on the first rank whoever looks, who is told what came before."""
    if not console.first_rank():
        return []
    sink = panel.Warnings() if as_json else panel.choose(run.id, prepared.spec.steps, prepared.dataset.references)
    recall(run, sink)
    return [sink]


_VALIDATION = ("validation/loss", "validation/perplexity", "validation/bits_per_byte")


def _finish(prepared: Any, outcome: Any, as_json: bool, *, already: bool = False) -> None:
    """Where the run is, and its validation numbers beside what is known of the data; said once, by the first rank."""
    if not console.first_rank():
        return
    if as_json:
        facts = {
            "run": str(outcome.run.path), "status": outcome.status, "step": outcome.step, "reason": outcome.reason,
            **outcome.validation,
        }  # fmt: skip
        console.say(json.dumps(facts))
        return
    verb = "was completed before" if already else outcome.status
    console.say(f"{verb} at step {outcome.step}{': ' + outcome.reason if outcome.reason else ''}")
    found = outcome.validation.get("validation/bits_per_byte")
    if found is not None:
        references = prepared.dataset.references.items()
        known = ", ".join(f"{name} {value:.2f}" for name, value in references)
        beside = f"   (for comparison: {known})" if known else ""
        console.say(f"validation bits per byte  {found:.3f}{beside}")
    console.say(f"run  {outcome.run.path}")


@dataclass
class _Request:
    """The signal that asked the run to stop, if one did."""

    signal: int | None = None


@contextmanager
def _polite() -> Iterator[_Request]:
    """SIGTERM and Ctrl-C ask for a stop between two steps; a second Ctrl-C stops at once."""
    request = _Request()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
