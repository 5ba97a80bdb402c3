"""altgrad train SPEC: check everything, then train, with the numbers live.

Nothing is written before the spec, the data, the rules against the model, and the device have all been found good. The
same command continues a run that was stopped, because a run's folder is named after the hash of its resolved spec.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import console, panel
from altgrad.cli.progress import tokenising
from altgrad.cli.run_view import in_words
from altgrad.cli.watch import recall
from altgrad.numerals import count_text
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
        typer.Option(help="auto: continue where the run stopped. never: archive the existing run and start over."),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every cast the run would make, and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.")] = "auto",
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
        console.fail(f"--heartbeat is {str(heartbeat)!r}, which is no file; name one that may be written.", 2)
    with beating(heartbeat):
        _check_and_train(spec, sets or [], resume, dry_run, device, runs, as_json, exact)


def _check_and_train(
    spec: Path, sets: list[str], resume: str, dry_run: bool, device: str, runs: Path, as_json: bool, exact: bool
) -> None:
    _refuse_what_is_out_of_reach(spec, sets)
    from altgrad.training.prepare import prepare

    with console.one_line_errors():
        with tokenising() as progress:
            prepared = prepare(spec, sets, device=device, exact=exact, notify=_notify, progress=progress)
        if dry_run:
            _describe(prepared, runs, as_json)
        else:
            _train(prepared, runs, resume, as_json)


def _notify(line: str) -> None:
    if console.first_process():
        console.say(line, sys.stderr)


def _describe(prepared: Any, runs: Path, as_json: bool) -> None:
    twin = prepared.check_start(runs)
    if not console.first_process():
        return
    casts, stored = prepared.casts(), prepared.fitted.stored
    facts = {
        "layers": [{key: row[key] for key in ("layer", "slots", "storage", "rule")} for row in casts],
        "parameters": prepared.parameters, "quantised_parameters": prepared.quantised, "stored": stored,
        "estimate": prepared.estimate(twin).facts(),
    }  # fmt: skip
    if as_json:
        console.print_json(facts)
    else:
        _show_casts(casts, stored, facts, f"{prepared.spec.steps} steps on {prepared.device}")


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


def _show_casts(casts: list[dict[str, Any]], stored: dict[str, str], facts: dict[str, Any], place: str) -> None:
    """The table of casts, and what the run takes. stored: parameters on a grid. facts: those of --json."""
    header = ["layer", "forward: input", "weight", "grad_input: grad_output", "weight", "grad_weight: grad_output"]
    header += ["input", "storage", "decided by"]
    console.table(header, [[row["layer"], *row["slots"].values(), row["storage"], row["rule"]] for row in casts])
    for name in sorted(stored.keys() - {row["weight"] for row in casts}):
        console.say(f"{name} is stored {stored[name]}")
    parameters, quantised, found = facts["parameters"], facts["quantised_parameters"], facts["estimate"]
    console.say(
        f"{parameters:,} parameters, {quantised:,} of them ({quantised / parameters:.1%}) are quantised; {place}"
    )
    console.say(
        f"a step: {found['flops_per_step']:.3g} FLOPs over {found['tokens_per_step']:,} tokens, backward assumed to "
        "cost 2 x forward"
    )
    parts = ("weights", "gradients", "storage", "optimizer", "casts", "monitors")
    kept = ", ".join(f"{part} {_in_bytes(found[part])}" for part in parts)
    console.say(f"bytes: {kept}; together {_in_bytes(found['total'])}, and activations")
    if found["codes"]:
        console.say(f"stored weights as codes: {_in_bytes(found['codes'])}")


def _in_bytes(count: int) -> str:
    """A number of bytes with three figures and a decimal prefix: `28.2 GB`, `312 B`."""
    shown = count_text(count)
    return f"{shown} B" if shown[-1].isdigit() else f"{shown[:-1]} {shown[-1]}B"


def _train(prepared: Any, runs: Path, resume: str, as_json: bool) -> None:
    from altgrad.training.trained_run import stop_politely

    with stop_politely(signal.SIGTERM, signal.SIGINT) as request:
        outcome = prepared.train(
            runs,
            resume,
            sinks=lambda run: [_sink(prepared, run, as_json)],
            interrupted=lambda: request.signal is not None,
        )
    _finish(prepared, outcome, as_json)
    if outcome.status == "diverged":
        raise typer.Exit(4)
    if outcome.status == "interrupted":
        raise typer.Exit(130 if request.signal == signal.SIGINT else 75)


def _sink(prepared: Any, run: Any, as_json: bool) -> Any:
    """What shows the numbers, told what came before."""
    known = prepared.dataset.references, prepared.worse, prepared.dataset.scores
    sink = panel.Warnings() if as_json else panel.choose(run.id, prepared.spec.steps, *known)
    recall(run, sink)
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


def _shown(scores: tuple[str, ...]) -> tuple[str, ...]:
    """All of a classifier's; of text bits per byte alone, of which perplexity is only another form."""
    return scores[:1] if scores[:1] == TEXT_SCORES[:1] else scores
