"""altgrad train SPEC: check everything, then train, with the numbers live.

Nothing is written before the spec, the data, the rules against the model, and the device have all been found good. The
same command continues a run that was stopped, because a run's folder is named after the hash of its resolved spec.
"""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import completion, console, panel
from altgrad.cli.dry_run import show_casts
from altgrad.cli.progress import preparing
from altgrad.cli.run_view import in_words
from altgrad.cli.watch import recall
from altgrad.crowding import crowd
from altgrad.progress import heard_by, listener, progress
from altgrad.store.heartbeat import beating
from altgrad.store.runs import SPEC, TEXT_SCORES, RunStore


def train(
    spec: Annotated[
        Path | None, typer.Argument(help="The run, as YAML or JSON.", metavar="SPEC", show_default=False)
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change one value of the spec, as optimizer.lr=1e-3; repeatable."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Train by a published recipe, whatever the spec casts; see `altgrad recipes list`.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN@STEP",
            help="Continue from a checkpoint of another run, by SPEC or else its own spec.",
        ),
    ] = None,
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option(help="auto: continue where the run stopped. never: archive the existing run and start over."),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every cast the run would make, and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.")] = "auto",
    shard: Annotated[
        bool, typer.Option("--shard", help="Have each process that torchrun started keep a part of the model (FSDP2).")
    ] = False,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, and nothing else.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Fail (exit 3) rather than fall back, for example where no compiler is found."),
    ] = False,
    heartbeat: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Update this file every 5 s while running.")
    ] = None,
) -> None:
    """Train from a spec. Rerun the same command to resume."""
    if heartbeat is not None and not heartbeat.name:
        console.fail(f"--heartbeat is {str(heartbeat)!r}, which is not a file; name one that may be written.", 2)
    with beating(heartbeat):
        more = sets or []
        if branch is not None:
            spec, more = _branched(spec, branch, more, runs)
        if spec is None:
            console.fail("Missing argument 'SPEC'; see altgrad train -h.", 2)
        _check_and_train(spec, recipe, more, resume, dry_run, device, shard, runs, as_json, exact)


def _branched(spec: Path | None, branch: str, sets: list[str], runs: Path) -> tuple[Path, list[str]]:
    """The spec to go on by, and what it takes to say that it goes on from there."""
    name, at, step = branch.rpartition("@")
    if not at or not step.isdecimal():
        console.fail(f"--from is {branch!r}; write RUN@STEP, such as project/id@800.", 2)
    with console.one_line_errors():
        run = RunStore(runs).find(name)
    there = json.dumps({"run": f"{run.project}/{run.id}", "step": int(step)})
    return spec or run.path / SPEC, [f"branch={there}", *sets]


def _check_and_train(
    spec: Path, recipe: str | None, more: list[str], resume: str, dry_run: bool, device: str, shard: bool, runs: Path,
    as_json: bool, exact: bool,
) -> None:  # fmt: skip
    sets = [*([] if recipe is None else [_assigned(recipe)]), *more]
    _refuse_what_is_out_of_reach(spec, sets)
    progress("loading torch")
    from altgrad.training.prepare import prepare

    with console.one_line_errors(), _placed_as_typed(recipe):
        with preparing():
            prepared = prepare(spec, sets, device=device, exact=exact, shard=shard, notify=_notify)
        if dry_run:
            _describe(prepared, runs, as_json)
        else:
            _train(prepared, runs, resume, as_json, again(spec, more, device, runs, recipe))


def _assigned(recipe: str) -> str:
    return f"recipe={recipe if recipe.startswith('{') else json.dumps(recipe)}"


@contextmanager
def _placed_as_typed(recipe: str | None) -> Iterator[None]:
    """Errors about --recipe name it, and not the assignment that stands for it."""
    from altgrad.document import ASSIGNED, SpecError

    try:
        yield
    except SpecError as error:
        if recipe is None:
            raise
        assigned = f"{ASSIGNED}{_assigned(recipe)}"
        typed = []
        for each in (error, *error.others):
            ours = each.where.startswith(ASSIGNED) and assigned.startswith(each.where.removesuffix("..."))
            typed.append(SpecError(f"--recipe {recipe}" if ours else each.where, each.message))
        raise SpecError.of(typed) from None


def again(spec: Path, sets: list[str], device: str, runs: Path, recipe: str | None = None) -> str:
    """The command that resumes this run."""
    words = ["altgrad", "train", str(spec), *([] if recipe is None else ["--recipe", recipe])]
    words += [word for each in sets for word in ("--set", each)]
    words += ([] if device == "auto" else ["--device", device]) + _elsewhere(runs)
    return shlex.join(words)


def _elsewhere(runs: Path) -> list[str]:
    return [] if runs == Path("runs") else ["--runs", str(runs)]


def _notify(line: str) -> None:
    if console.first_process():
        console.say(line, sys.stderr)


def _describe(prepared: Any, runs: Path, as_json: bool) -> None:
    twin = prepared.check_start(runs)
    if not console.first_process():
        return
    phases = [prepared.casts(number) for number in prepared.spec.phases]
    stored = prepared.fitted.stored
    told = [[{key: row[key] for key in ("layer", "slots", "storage", "rule")} for row in casts] for casts in phases]
    ends = prepared.spec.precision.ends(prepared.spec.steps)
    begins = [1, *(end + 1 for end in ends)]
    facts = {
        "layers": told[0],
        **({} if len(phases) == 1 else {"phases": [
            {"steps": [begin, end], "layers": layers} for begin, end, layers in zip(begins, ends, told, strict=False)
        ]}),
        "parameters": prepared.parameters, "quantised_parameters": prepared.quantised, "stored": stored,
        "estimate": prepared.estimate(twin).facts(),
    }  # fmt: skip
    if as_json:
        console.print_json(facts)
    else:
        show_casts(phases, ends, facts, f"{prepared.spec.steps:,} on {prepared.device}")


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


def _train(prepared: Any, runs: Path, resume: str, as_json: bool, command: str) -> None:
    from altgrad.training.memory import keep_freed_memory
    from altgrad.training.trained_run import stop_politely

    if prepared.device.type == "cpu":
        keep_freed_memory(prepared.parameters)
    shown: list[Any] = []

    def sinks(run: Any) -> list[Any]:
        shown.append(_sink(prepared, run, as_json))
        return shown

    hear = panel.first_of(shown, listener())
    with stop_politely(signal.SIGTERM, signal.SIGINT) as request, heard_by(hear):
        outcome = prepared.train(runs, resume, sinks=sinks, interrupted=lambda: request.signal is not None)
    _finish(prepared, outcome, as_json)
    if console.first_process() and not as_json:
        console.say_next(_next_steps(outcome, shlex.join(_elsewhere(runs)), command))
    if outcome.status == "diverged":
        raise typer.Exit(4)
    if outcome.status == "interrupted":
        raise typer.Exit(130 if request.signal == signal.SIGINT else 75)


def _sink(prepared: Any, run: Any, as_json: bool) -> Any:
    """What shows the numbers, told what came before."""
    known = prepared.dataset.references, prepared.worse, prepared.dataset.scores
    sink = panel.Warnings() if as_json else panel.choose(run.id, prepared.spec.steps, *known)
    recall(run, sink)
    if not isinstance(sink, panel.Warnings):
        sink.beside(partial(crowd, prepared.spec.threads))
    return sink


def _finish(prepared: Any, outcome: Any, as_json: bool) -> None:
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
    verb = "was completed before" if outcome.already else outcome.status
    console.say(f"{verb} at step {outcome.step}{': ' + outcome.reason if outcome.reason else ''}")
    references = ", ".join(f"{name} {value:.2f}" for name, value in prepared.dataset.references.items())
    beside = f"   (for comparison: {references})" if references else ""
    for score in _shown(prepared.dataset.scores):
        if (found := outcome.validation.get(f"validation/{score}")) is not None:
            console.say(f"validation {in_words(score)}  {found:.3f}{beside}")
        beside = ""
    console.say(f"run  {outcome.run.path}")


def _next_steps(outcome: Any, elsewhere: str, command: str) -> dict[str, str]:
    """Commands that are useful now, with what each does."""
    name = f"{outcome.run.id} {elsewhere}".rstrip()
    steps = {"altgrad diagnose " + name: "what its numbers say, and what to try"}
    if outcome.status == "completed":
        steps["altgrad evaluate " + name] = "its score on the test split"
    return {command: "continue"} if outcome.status == "interrupted" else steps


def _shown(scores: tuple[str, ...]) -> tuple[str, ...]:
    """All of a classifier's; of text bits per byte alone, of which perplexity is only another form."""
    return scores[:1] if scores[:1] == TEXT_SCORES[:1] else scores
