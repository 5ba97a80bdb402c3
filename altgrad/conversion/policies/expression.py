"""A policy, decided layer by layer, in the words of a production stack.

    altgrad.express_policy("te_nvfp4", to="te", model="folder")

Read is a recipe's name, a run's spec, or a policy; layers are those of a folder of transformers, of a model in memory,
or of the spec's own model, all without weights. Without a model the decisions are the policy's rules.

Each layer is expressed or the first that cannot be is refused by its name, so a file never says less than the policy.
It appears whole or not at all, and in the place of no other.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from altgrad import __version__
from altgrad.conversion.policies.megatron import MegatronTarget
from altgrad.conversion.policies.policy_report import PolicyReport
from altgrad.conversion.policies.policy_target import (
    EXPERTS,
    LINEAR,
    Choice,
    Decided,
    Expressible,
    NotExpressible,
    PolicyTarget,
)
from altgrad.conversion.policies.te import TransformerEngineTarget
from altgrad.conversion.policies.torchao import TorchaoTarget
from altgrad.conversion.source import decisions_by_either_name
from altgrad.document import Document, Location
from altgrad.models.huggingface import architecture
from altgrad.nn import PrecisionPolicy
from altgrad.nn.experts import ExpertLinear
from altgrad.nn.layers import core_of, is_turned
from altgrad.nn.names import nameable
from altgrad.nn.places import Places
from altgrad.nn.policy import Decision
from altgrad.progress import progress
from altgrad.recipes.catalogue import is_path
from altgrad.recipes.expansion import expand_policy
from altgrad.recipes.recipe import Recipe
from altgrad.spec import LocatedError, SpecError
from altgrad.spec.annotations import plain
from altgrad.store.files import write_atomic
from altgrad.training.estimate import shapes_only
from altgrad.training.fitting import open_data
from altgrad.training.run import RunSpec

__all__ = ["express_policy"]

TARGETS: Mapping[str, PolicyTarget] = {
    target.name: target for target in (TorchaoTarget(), TransformerEngineTarget(), MegatronTarget())
}


@dataclass(frozen=True)
class _Said:
    """A policy as it was read: its name, where it was written, and the run that it is of, if any."""

    name: str
    policy: PrecisionPolicy
    document: Document
    at: Location = ()
    run: RunSpec | None = None


def express_policy(
    policy: str | os.PathLike[str] | PrecisionPolicy | Recipe | Mapping[str, Any],
    *,
    to: Literal["torchao", "te", "megatron"],
    model: str | os.PathLike[str] | nn.Module | None = None,
    out: str | os.PathLike[str] | None = None,
) -> PolicyReport:
    """Write a policy as a production stack takes it, and say what becomes of each layer.

    policy: a recipe or its name, a policy or the file of one, or of a run's spec. to: torchao or te, a Python file of
    their objects; megatron, YAML. model: a transformers folder, of which config.json is read, or a model; by default
    that of the spec, and without one the rules are expressed as they are. out: a new file to write. ValueError, in one
    line with the layer and the reason, for what the target cannot run, and for a file in use; OSError for the disk.
    """
    target, path = TARGETS[to], None if out is None else Path(out)
    if path is not None:
        _require_new(path)
    said = _said(policy)
    try:
        decided, blocks = _decided(said, model)
        if not any(each.casts is not None for each in decided):
            raise LocatedError(("rules",), f"no layer is cast, so there is nothing to write for {to}.")
        progress(f"writing it for {to}")
        choices = target.choose(decided)
        head = _head(said, target, model, choices)
        expressible = Expressible(choices, blocks, head)
        text = target.text(expressible)
    except NotExpressible as error:
        at = () if error.rule is None else ("rules", error.rule)
        raise SpecError(said.document.where((*said.at, *at)), str(error)) from None
    except LocatedError as error:
        raise SpecError(said.document.where((*said.at, *error.location)), str(error)) from None
    if path is not None:
        _write(path, text)
    return PolicyReport(said.name, target, _called(model), expressible, text, None if path is None else str(path))


def _require_new(path: Path) -> None:
    if os.path.lexists(path):
        raise ValueError(f"{path} already exists; choose another path or delete it.")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_new(path)
        write_atomic(path, text.encode())
    except OSError as error:  # which names the file that was to be renamed
        raise OSError(error.errno, error.strerror, str(path)) from None


def _said(policy: str | os.PathLike[str] | PrecisionPolicy | Recipe | Mapping[str, Any]) -> _Said:
    if isinstance(policy, Recipe):
        policy = {"recipe": {"name": policy.name, **policy.parameters}}
    if isinstance(policy, PrecisionPolicy):
        return _Said("policy", policy, Document.of(plain(policy), "policy"))
    if isinstance(policy, Mapping):
        document = Document.of(dict(policy), "policy")
        return _Said("policy", _checked(document), document)
    name = str(policy)
    if not is_path(name) and not Path(name).exists():
        document = Document.of({"recipe": name}, name)
        return _Said(name, _checked(document), document)
    document = Document.load(Path(policy))
    data = document.data if isinstance(document.data, dict) else {}
    if "model" in data:
        run = RunSpec.check(document)
        if len(run.precision.policies) > 1:
            message = "the run has several phases, and a target has one policy; write the rules of one as a policy."
            raise document.error(("precision", "phases"), message)
        return _Said(name, run.precision.policies[0], document, ("precision",), run)
    if "title" in data:  # a recipe of one's own
        document = Document.of({"recipe": name if is_path(name) else f"./{name}"}, name)
    elif "precision" in data:
        document = document.part("precision")
    return _Said(name, _checked(document), document)


def _checked(document: Document) -> PrecisionPolicy:
    """The policy of a document, which then knows where each rule of a recipe was written."""
    try:
        expand_policy(document, PrecisionPolicy, ())
    except LocatedError as error:
        raise document.error(error.location, str(error)) from None
    return PrecisionPolicy.check(document)


def _decided(said: _Said, model: str | os.PathLike[str] | nn.Module | None) -> tuple[list[Decided], int | None]:
    """What the policy decides, and how many blocks the model repeats; None without a model."""
    policy = said.policy
    if isinstance(model, nn.Module):
        found, decisions = model, policy.decide(model)
    elif model is not None:
        progress("building the model without weights")
        with shapes_only():
            found = architecture(str(model))
        decisions = decisions_by_either_name(policy, found)
    elif said.run is not None:
        progress("building the model without weights")
        dataset = open_data(said.run)
        with shapes_only():
            found = said.run.model.build(dataset.vocabulary, dataset.outputs)
        decisions = policy.decide(found)
    else:
        return list(_rules(policy)), None
    for elsewhere in policy.targets(found):
        what = {"attention": "attention is", "weight": "its weight is", "outputs": "its outputs are"}[elsewhere.sort]
        message = f"{elsewhere.name}: {what} cast, and targets take casts of layers alone; leave that out."
        raise LocatedError(("rules", elsewhere.rule), message)
    return list(_layers(found, decisions)), Places(found).blocks


def _rules(policy: PrecisionPolicy) -> Iterator[Decided]:
    for number, rule in enumerate(policy.rules):
        if rule.casts_elsewhere:
            message = (
                f"rule {number}: it casts more than layers, and targets take casts of layers alone; leave that out."
            )
            raise LocatedError(("rules", number), message)
        name = f"rule {number}, match {rule.match}" if rule.place is None else f"rule {number}, place {rule.place}"
        casts = rule.layer()
        yield Decided(name, number, casts if casts.casts() else None, place=rule.place)


def _layers(model: nn.Module, decisions: list[Decision]) -> Iterator[Decided]:
    places, things = Places(model), {thing.name: thing for thing in nameable(model)}
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for decision in decisions:
        thing, layer = things[decision.name], modules.get(decision.name)
        spot = min(places.spots(thing), key=lambda each: each.block is None)
        casts = decision.precision if decision.precision is not None and decision.precision.casts() else None
        facts: dict[str, Any] = {"names": tuple(thing.spellings), "spot": spot}
        if layer is None:  # a parameter that holds the matrices of several experts
            facts["sort"] = EXPERTS
        else:
            weight: Any = layer.weight
            outputs, inputs = weight.shape[:: -1 if is_turned(layer) else 1]
            facts |= {
                "sort": _sort(layer), "inputs": inputs, "outputs": outputs,
                "bias": getattr(layer, "bias", None) is not None, "shared": owners[id(weight)] > 1,
            }  # fmt: skip
        yield Decided(decision.name, decision.rule, casts, **facts)


def _sort(layer: nn.Module) -> str:
    core = core_of(type(layer))
    return LINEAR if core is nn.Linear else EXPERTS if core is ExpertLinear else f"a {core.__name__}"


def _called(model: str | os.PathLike[str] | nn.Module | None) -> str | None:
    return type(model).__name__ if isinstance(model, nn.Module) else None if model is None else str(model)


def _head(
    said: _Said, target: PolicyTarget, model: str | os.PathLike[str] | nn.Module | None, choices: list[Choice]
) -> list[str]:
    """The lines on top of what is written."""
    named = _called(model)
    of = "" if named is None else f" for the layers of {named}"
    cast = sum(each.offer is not None for each in choices)
    unit = "rules" if named is None and said.run is None else "layers"
    return [
        f"The casts of {said.name} as {target.name} has them{of}: {cast} of {len(choices)} {unit} are cast.",
        f"Written by altgrad {__version__}. {target.standing(choices)}", *target.notes(choices),
    ]  # fmt: skip
