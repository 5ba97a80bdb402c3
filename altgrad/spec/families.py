"""Every family of choices that a spec has, as plain data: what `altgrad kinds`, the docs and a form would show.

Most are families of kinds, found by their packages. Three are closed lists: roundings, schedules (which share their
fields) and tokenizers. Modules are named here, and imported when they are asked for, so that a listing of monitors need
not load models. Names and sentences come from the classes themselves.
"""

import enum
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from altgrad.spec.annotations import Shape, of_field, plain, words

_PLACES = {
    "model": "altgrad.models.model:ModelSpec",
    "dataset": "altgrad.data.dataset:DatasetSpec",
    "tokenizer": "altgrad.data.tokenizer:TOKENIZERS",
    "optimizer": "altgrad.optim.optimizer:OptimizerSpec",
    "storage": "altgrad.optim.storage:Storage",
    "schedule": "altgrad.optim.schedule:SCHEDULES",
    "scaling": "altgrad.quantize.scaling:ScalingSpec",
    "outliers": "altgrad.quantize.parts:OutliersSpec",
    "transform": "altgrad.quantize.transform:TransformSpec",
    "rounding": "altgrad.formats.rounding:Rounding",
    "gradient": "altgrad.quantize.gradient:Estimator",
    "monitor": "altgrad.monitors.monitor:MonitorSpec",
    "intervention": "altgrad.interventions.intervention:InterventionSpec",
    "sink": "altgrad.store.mirror:MirrorSpec",
    "launcher": "altgrad.sweeps.launchers.launcher:LauncherSpec",
    "section": "altgrad.reports.section:Section",
}
FAMILIES = tuple(_PLACES)
Facts = dict[str, Any]


def family(name: str) -> list[Facts]:
    """The members of a family: each `kind`, its `summary` in a sentence, and its `fields`.

    A field has `name`, `takes` (type and limits, in words), `default` unless it must be given, and `description`.
    """
    module, _, attribute = _PLACES[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, Mapping):
        return [_facts(kind, summary, shape) for kind, (summary, shape) in found.items()]
    if issubclass(found, enum.Enum):
        return [_facts(str(member), member.__doc__ or "") for member in found]
    return [_facts(kind, inspect.getdoc(shape) or "", shape) for kind, shape in found.members().items()]


def _facts(kind: str, summary: str, shape: type[Shape] | None = None) -> Facts:
    fields = []
    for name, info in shape.model_fields.items() if shape else ():
        if name == "kind":
            continue
        facts: Facts = {"name": name, "takes": words(of_field(info))}
        if not info.is_required():
            facts["default"] = plain(info.get_default(call_default_factory=True))
        if info.description:
            facts["description"] = " ".join(info.description.split())
        fields.append(facts)
    return {"kind": kind, "summary": summary.partition("\n")[0], "fields": fields}
