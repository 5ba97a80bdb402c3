"""What a spec would do under other formats, storages and optimizers: a rehearsal for each, before anything is trained.

The weights that a variant is about are those that have a grid in the spec (a storage rule or a cast of the weight);
where it has none, those of its linear layers, heads left out. Each variant keeps exactly these in its format and
storage and changes nothing else; under `master` it is the cast of the weight that moves. A learning rate means another
thing to another optimizer: of those, `smallest_lr` is the column to compare. Pairs of optimizer and storage that have
no meaning are left out. Signals, where asked for, come from 20 steps of each variant: those of another run are no
better than white noise (docs/ORACLE.md, `shared`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import nn

from altgrad.data.dataset import Dataset
from altgrad.diagnosis.oracle import Drawn, rehearse, require_target, smallest_lr
from altgrad.diagnosis.samples import linear_layers
from altgrad.diagnosis.signals import calibrate
from altgrad.formats import NumberFormat
from altgrad.nn import PrecisionPolicy, weight_names
from altgrad.nn.names import literal
from altgrad.optim.optimizer import OptimizerSpec
from altgrad.optim.storage import Storage
from altgrad.progress import progress
from altgrad.training import RunSpec
from altgrad.training.state import TrainState

STORAGES = ("nearest", "stochastic", "master")
STEPS = 30


@dataclass(frozen=True)
class VariantForecast:
    """One variant. rates: expected move rate by parameter; overall: by their size; smallest_lr: for the target."""

    format: str
    storage: str
    optimizer: str
    lr: float
    overall: float
    smallest_lr: float | None
    rates: Mapping[str, float]


def forecast_variants(
    spec: RunSpec, dataset: Dataset, formats: Sequence[NumberFormat], target: float, *, calibrated: bool = False
) -> tuple[VariantForecast | None, list[VariantForecast]]:
    """The spec as it is (None where none of its weights has a grid), and its variants.

    ValueError for a target outside (0, 1), and LocatedError for a spec that does not fit its model.
    """
    require_target(target)
    data = dataset if calibrated else None
    own = TrainState.build(spec, dataset, torch.device("cpu"))
    names = [name for name, _, _ in own.optimizer.grids()]
    drawn = Drawn()
    progress("rehearsing the spec")
    found = _forecast(spec, own.model, target, data, ("as the spec", "as the spec"), drawn) if names else None
    # Interventions act on what a run has become, and a rehearsal has no losses; some want casts that no variant has.
    plain = spec.with_rules(PrecisionPolicy()).model_copy(update={"storage": (), "monitors": (), "interventions": ()})
    any_rule = OptimizerSpec.made_from(cast(Any, {"kind": "adamw"}))  # for the weights; the spec's may want its storage
    model = TrainState.build(plain.model_copy(update={"optimizer": any_rule}), dataset, torch.device("cpu")).model
    weights = weight_names(model)
    names = names or list(dict.fromkeys(weights[name] for name in linear_layers(model) if name in weights))
    optimizers = [each for each in _optimizers(spec.optimizer) if not _lands_on_rungs(each)]
    each: list[VariantForecast] = []
    for optimizer, fmt, kind in product(optimizers, formats, STORAGES):
        progress("rehearsing variants", len(each), len(optimizers) * len(formats) * len(STORAGES))
        rules = tuple(_kept(name, kind, fmt) for name in names)
        variant = plain.model_copy(update={"storage": rules, "optimizer": optimizer})
        each.append(_forecast(variant, model, target, data, (str(fmt), kind), drawn))
    return found, each


def _forecast(
    spec: RunSpec, model: nn.Module, target: float, data: Dataset | None, names: tuple[str, str], drawn: Drawn
) -> VariantForecast:
    signals = None if data is None else calibrate(spec, data)
    forecast = rehearse(spec, model, steps=STEPS, signals=signals, drawn=drawn)
    needed = smallest_lr(spec, model, target, steps=STEPS, signals=signals, drawn=drawn, known=forecast)
    lr = spec.optimizer.lr
    return VariantForecast(*names, spec.optimizer.kind, lr, forecast.overall, needed, dict(forecast.rates))


def _optimizers(own: OptimizerSpec) -> Iterator[OptimizerSpec]:
    """The spec's own, and Adam with and without geometry at its rate, decay and groups."""
    yield own
    shared = {key: value for key, value in own.tree().items() if key in ("lr", "weight_decay", "groups")}
    for kind in ("adamw", "manifold_adamw"):
        if kind != own.kind:
            yield OptimizerSpec.made_from(cast(Any, {**shared, "kind": kind}))


def _lands_on_rungs(optimizer: OptimizerSpec) -> bool:
    """Whether it asks for whole rungs (GridOptim's landing), which only `index` storage takes, none of STORAGES."""
    return optimizer.tree().get("landing") == "index"


def _kept(name: str, kind: str, fmt: NumberFormat) -> Storage:
    return Storage.made_from(cast(Any, {"match": literal(name), "kind": kind, "format": str(fmt)}))
