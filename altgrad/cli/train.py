"""altgrad train SPEC: check everything, then train, with the numbers live.

Nothing is written before the spec, the data, the rules against the model, and the device have all been found good. The
same command continues a run that was stopped, because a run's folder is named after the hash of its resolved spec.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import console, panel
from altgrad.cli.run_view import in_words
from altgrad.cli.watch import recall
from altgrad.store.heartbeat import beating
from altgrad.store.runs import TEXT_SCORES


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
    exact: Annotated[
        bool, typer.Option("--exact", help="Refuse (exit 3) to run anything but the spec as it stands.")
    ] = False,
    heartbeat: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Say in this file, every 5 s, that the process is alive.")
    ] = None,
) -> None:
    """Train the run a spec describes; repeat the command to continue it."""
    if heartbeat is not None and not heartbeat.name:
        console.fail(f"--heartbeat is {str(heartbeat)!r}, which is no file; name one that may be written.", 2)
    with beating(heartbeat):
        _check_and_train(spec, sets, resume, dry_run, device, runs, as_json, exact)


def _check_and_train(
    spec: Path, sets: list[str] | None, resume: str, dry_run: bool, device: str, runs: Path, as_json: bool, exact: bool
) -> None:
    _refuse_what_is_out_of_reach(spec, sets or [])
    from altgrad.cli.preparation import describe, prepare

    prepared = prepare(spec, sets or [], device, exact)
    if dry_run:
        with console.one_line_errors():
            twin = prepared.check_start(runs)
            if console.first_process():
                describe(prepared, twin, as_json)
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
        console.fail(document.error(("data", "source"), why), 2)


def _train(prepared: Any, runs: Path, resume: str, as_json: bool) -> None:
    from altgrad.cli.process_group import together
    from altgrad.spec import LocatedError
    from altgrad.training import Outcome
    from altgrad.training import train as train_run

    with console.one_line_errors(), together(prepared.device) as processes:
        run = _made(prepared, runs, resume, processes)
        if run.status == "completed":
            keys = [f"validation/{key}" for key in ("loss", *prepared.dataset.scores)]
            last = {key: value for key, value in run.last(*keys).items() if key != "step"}
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


def _made(prepared: Any, runs: Path, resume: str, processes: Any) -> Any:
    """The run, made by the first process if it is new; the others wait for it."""
    if processes.is_first:
        run = prepared.open_run(runs, resume)
        run = run if run.exists and run.status == "completed" else prepared.ensure(run)
    processes.words("the run is there")
    return run if processes.is_first else prepared.open_run(runs, "auto")


def _sinks(prepared: Any, run: Any, as_json: bool) -> list[Any]:
    """Who is shown the numbers: on the first process whoever looks, who is told what came before."""
    if not console.first_process():
        return []
    known = prepared.dataset.references, prepared.worse, prepared.dataset.scores
    sink = panel.Warnings() if as_json else panel.choose(run.id, prepared.spec.steps, *known)
    recall(run, sink)
    return [sink]


def _finish(prepared: Any, outcome: Any, as_json: bool, *, already: bool = False) -> None:
    """Where the run is, and its validation numbers beside what is known of the data; the first process says it."""
    if not console.first_process():
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
    references = ", ".join(f"{name} {value:.2f}" for name, value in prepared.dataset.references.items())
    beside = f"   (for comparison: {references})" if references else ""
    for score in _shown(prepared.dataset.scores):
        if (found := outcome.validation.get(f"validation/{score}")) is not None:
            console.say(f"validation {in_words(score)}  {found:.3f}{beside}")
        beside = ""
    console.say(f"run  {outcome.run.path}")


def _shown(scores: tuple[str, ...]) -> tuple[str, ...]:
    """All of a classifier's; of text bits per byte alone, of which perplexity is only another form."""
    return scores[:1] if scores[:1] == TEXT_SCORES[:1] else scores


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
