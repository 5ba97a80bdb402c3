"""`altgrad kinds`: what each family offers, what its kinds take, and what they take by default.

Everything comes from the classes themselves: the sentence from the docstring, the fields from the annotations.
"""

import inspect
import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from altgrad.cli import console
from altgrad.cli.metrics_table import markdown
from altgrad.display import Line


def kinds(
    family: Annotated[
        str | None,
        typer.Argument(help="model, dataset, optimizer, monitor, intervention, scaling or sink; all if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="With monitor: every metric key, as in docs/METRICS.md.")
    ] = False,
) -> None:
    """List the kinds of a family (models, data sets, optimizers, monitors, ...) with their fields."""
    from altgrad.spec.messages import kind_meant

    roots = {root.family: root for root in _roots()}
    if family is not None and family not in roots:
        hint = kind_meant(family, roots) or f" There are {', '.join(roots)}."
        console.fail(f"'{family}' is not a family.{hint}", 2)
    if as_markdown:
        _print_metrics(family)
        return
    found = {
        name: [_describe(kind, member) for kind, member in root.members().items()]
        for name, root in roots.items()
        if family in (None, name)
    }
    if as_json:
        console.say(json.dumps(found, indent=1, ensure_ascii=False))
        return
    lines = [line for name, members in found.items() for line in _table(name, members)]
    if console.interactive():
        console.terminal().print(console.styled(lines), soft_wrap=True)
    else:
        for line in lines:
            console.say(line.text)


def _print_metrics(family: str | None) -> None:
    from altgrad.interventions.intervention import InterventionSpec
    from altgrad.monitors.monitor import MonitorSpec
    from altgrad.training.log_keys import LOG_KEYS

    if family != "monitor":
        console.fail("--markdown prints the metrics of monitors; say `altgrad kinds monitor --markdown`.", 2)
    for line in markdown(MonitorSpec.kinds(), InterventionSpec.kinds(), LOG_KEYS):
        console.say(line)


def _roots() -> tuple[Any, ...]:
    from altgrad.data.dataset import DatasetSpec
    from altgrad.interventions.intervention import InterventionSpec
    from altgrad.models.model import ModelSpec
    from altgrad.monitors.monitor import MonitorSpec
    from altgrad.optim.optimizer import OptimizerSpec
    from altgrad.quantize.scaling import ScalingSpec
    from altgrad.store.mirror import MirrorSpec

    return ModelSpec, DatasetSpec, OptimizerSpec, MonitorSpec, InterventionSpec, ScalingSpec, MirrorSpec


def _describe(kind: str, member: Any) -> dict[str, Any]:
    """A kind as plain data. `default` is absent where the field must be given."""
    from altgrad.spec.annotations import of_field, plain, words

    fields = []
    for name, info in member.model_fields.items():
        facts: dict[str, Any] = {"name": name, "takes": words(of_field(info))}
        if not info.is_required():
            facts["default"] = plain(info.get_default(call_default_factory=True))
        if info.description:
            facts["description"] = " ".join(info.description.split())
        fields.append(facts)
    return {"kind": kind, "summary": (inspect.getdoc(member) or "").partition("\n")[0], "fields": fields}


def _table(family: str, members: Iterable[dict[str, Any]]) -> list[Line]:
    """One kind after another: its name and sentence, then a row for each field."""
    members = list(members)
    rows = [_row(fact) for member in members for fact in member["fields"]]
    first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    lines = []
    for member in members:
        lines.append(Line.of((f"{family} {member['kind']}", "bold"), f"  {member['summary']}"))
        for name, default, takes in map(_row, member["fields"]):
            lines.append(Line.of("  ", (name.ljust(first), "cyan"), f"  {default.ljust(second)}  {takes}"))
        lines.append(Line.of(""))
    return lines


def _row(fact: dict[str, Any]) -> tuple[str, str, str]:
    default = json.dumps(fact["default"], ensure_ascii=False) if "default" in fact else "required"
    return fact["name"], default, fact["takes"]
