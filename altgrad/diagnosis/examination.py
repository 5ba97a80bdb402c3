"""`altgrad.diagnose`: what is wrong with a run, how a model's weights lie, and which formats would suit it.

A target is a run or a checkpoint of one, a model (a file, a folder, or in memory), or a run's spec. Of a run three
other questions can be asked: its next step under other casts (`replay`), where it diverges from another (`against`),
and how often its weights will move (`oracle`), which is the only question of a spec. What is found is plain data, the
keys of which docs/DIAGNOSE.md describes.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import yaml
from torch import nn

from altgrad.conversion.saving import threads
from altgrad.conversion.source import Formats, Source, conversion_of_quantised, conversions_by_format, formats_named
from altgrad.data.dataset import Dataset
from altgrad.diagnosis.advice import CANDIDATES, Advice, advise, policy_yaml, rules
from altgrad.diagnosis.attribution import BATCHES, mean_attribution, unattributed
from altgrad.diagnosis.bisection import bisect, require_alike, siblings_of
from altgrad.diagnosis.departure import departure
from altgrad.diagnosis.findings import ailments
from altgrad.diagnosis.forecasts import STEPS, forecast_variants
from altgrad.diagnosis.html_page import html_page
from altgrad.diagnosis.page import page
from altgrad.diagnosis.samples import linear_layers, stored_samples, trained_samples
from altgrad.diagnosis.variants import variants
from altgrad.diagnosis.weights import WeightPicture, stored_pictures, trained_pictures
from altgrad.display import Line, html_lines
from altgrad.formats import NumberFormat
from altgrad.interventions import InterventionSpec
from altgrad.nn import ALONE, PrecisionPolicy
from altgrad.nn.layers import is_layer
from altgrad.nn.names import matches
from altgrad.nn.weight_casts import QuantizedWeight
from altgrad.progress import progress
from altgrad.quantize.accumulator import AccumulatorSpec
from altgrad.recipes.book import find
from altgrad.spec import LocatedError
from altgrad.store import Run, RunStore
from altgrad.symptoms import fitting_remedies
from altgrad.training import RunSpec
from altgrad.training.fitting import fit
from altgrad.training.restore import Restored, located, read_data, restore

Json = dict[str, Any]
POOLERS = "*pooler.dense"
"""What a run of kind hf leaves out of a model: advice on it would be a rule that decides nothing there."""
FORECAST_FORMATS = ("e4m3fn", "e5m2", "e3m4")
_LOSS = ("train/loss",)


class Located(Protocol):
    """Whatever lies in a folder, such as a run."""

    @property
    def path(self) -> Path:
        """The folder."""


Target = str | os.PathLike[str] | nn.Module | RunSpec | Located


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What was found. facts: all of it, as `altgrad diagnose --json` prints it; `print` and notebooks draw it."""

    facts: Json

    @property
    def symptoms(self) -> list[Json]:
        """What is wrong with a run, each with `evidence` and `remedy`, the earliest first."""
        return cast(list[Json], self.facts.get("symptoms", []))

    @property
    def alarms(self) -> list[Json]:
        """What the run's monitors said while it went."""
        return cast(list[Json], self.facts.get("alarms", []))

    @property
    def advice(self) -> list[Json]:
        """For each layer and operand, how every format fits it, and the format to take."""
        return cast(list[Json], self.facts.get("advice", []))

    @property
    def policy(self) -> PrecisionPolicy | None:
        """The advice as a policy, for `quantize_model` or `save_quantized`; None where no formats were weighed."""
        text = self.facts.get("policy")
        return None if text is None else PrecisionPolicy.made_from(yaml.safe_load(text)["precision"])

    @property
    def advised_spec(self) -> RunSpec | None:
        """The run's spec under that policy; None for what is no run."""
        return RunSpec.parse(self.facts["advised_spec"]) if self.facts["kind"] == "run" else None

    def page(self, width: int = 120) -> list[Line]:
        """The page that the command line draws, no line wider than `width` columns (at least 60)."""
        return page(self.facts, width)

    def html(self) -> str:
        """The same as a page of HTML: tables, a heat map of formats by layer, the policy to copy."""
        return html_page(self.facts)

    def __repr__(self) -> str:
        return "\n".join(line.text.rstrip() for line in self.page())

    def _repr_html_(self) -> str:
        return html_lines(self.page())


def diagnose(
    target: Target,
    *,
    formats: Formats | None = None,
    data: bool = True,
    replay: bool = False,
    recipes: Sequence[str] = (),
    accumulators: Sequence[str] = (),
    against: str | Located | None = None,
    oracle: bool = False,
    move_rate: float = 0.01,
    calibrate: bool = False,
    runs: str | os.PathLike[str] = "runs",
) -> Diagnosis:
    """What is wrong with a run or how formats suit a model: symptoms, weights, format advice. See docs/DIAGNOSE.md.

    target: a run (an id, its beginning, a path, or the run itself), a checkpoint's folder, a Hugging Face folder, a
    .safetensors file, a model, or a run's spec (or its file). formats: those to weigh. data: take a step of the run, to
    weigh formats for activations and gradients as well. replay, against (another run), oracle: one question instead.
    recipes: whose casts the run's next step is replayed with, in place of formats.
    accumulators: of replay, what its products are added up in besides, such as hopper_fast.
    move_rate, calibrate: of the oracle, whose learning rate for that rate is sought, after 20 real steps of each
    variant. runs: the folder of all runs. ValueError, in one line, for a target that is none, for what cannot be asked
    of it, and for formats that no tensor can enter.
    """
    replay = replay or bool(recipes)
    if sum((replay, against is not None, oracle)) > 1:
        raise ValueError("replay, against and oracle are questions of their own; ask one at a time.")
    if accumulators and not replay:
        raise ValueError("accumulators are tried in a replayed step; ask for replay, too.")
    adding = [AccumulatorSpec.made_from(each, "accumulator") for each in accumulators]
    name = _name(target)
    taken_again = replay or against is not None
    refusal = f"{name} is not a run, and only a run's steps can be taken again."
    if isinstance(target, RunSpec) or is_spec(name):
        if taken_again:
            raise ValueError(refusal)
        spec = target if isinstance(target, RunSpec) else RunSpec.load(Path(name))
        return Diagnosis(_forecast(spec, name, formats, move_rate, calibrate))
    weighed = formats_named(CANDIDATES if formats is None else formats)
    found = None if isinstance(target, nn.Module) else find_run(name, Path(runs))
    if found is None:
        if taken_again:
            raise ValueError(refusal)
        if oracle:
            raise ValueError(f"{name} has no optimizer or schedule; --oracle takes a run or the YAML of one.")
        return Diagnosis(_model(Source.of(target if isinstance(target, nn.Module) else name), weighed))
    run, step = found
    if oracle:
        spec = RunSpec.parse(run.spec_text(), str(run.path / "spec.yaml"))
        return Diagnosis(_forecast(spec, f"{run.project}/{run.id}", formats, move_rate, calibrate))
    if against is not None:
        return Diagnosis(_against(run, RunStore(Path(runs)).find(_name(against))))
    restored = restore(run, step)
    with threads(restored.spec.threads):
        if replay:
            weighed = [] if recipes and formats is None else weighed
            return Diagnosis(_replayed(restored, weighed, recipes, adding))
        return Diagnosis(_run(restored, weighed, data))


def is_spec(target: str) -> bool:
    """Whether a target is the file of a run spec."""
    return Path(target).suffix in (".yaml", ".yml", ".json") and Path(target).is_file()


def find_run(target: str, runs: Path) -> tuple[Run, int | None] | None:
    """The run (and step) meant; None for a model in a file or folder. ValueError for what is neither."""
    path = Path(target)
    if (found := located(path)) is not None:
        return found
    if path.exists() or path.suffix:
        return None
    try:
        return RunStore(runs).find(target), None
    except ValueError as error:
        raise ValueError(
            f"{str(error).rstrip('.')}; nor is it a checkpoint, a Hugging Face folder or a .safetensors file."
        ) from None


def _name(target: Target) -> str:
    if isinstance(target, nn.Module):
        return type(target).__name__
    if isinstance(target, RunSpec):
        return target.name
    return os.fspath(target if isinstance(target, str | os.PathLike) else target.path)


def _run(restored: Restored, formats: Sequence[NumberFormat], data: bool) -> Json:
    run, model = restored.run, restored.model
    progress("reading the run's numbers")
    sick = ailments(run)
    stored = {name.removesuffix(".weight") for name, _, _ in restored.state.optimizer.grids()}
    advice = advise(trained_samples(restored, data=data), formats, stored)
    others = [name for name, m in model.named_modules() if is_layer(m) and name not in linear_layers(model)]
    precision = rules(advice, others)
    kept = [rule for each in restored.spec.precision.rules if (rule := each.elsewhere()) is not None]
    policy = PrecisionPolicy.made_from({"rules": (*kept, *precision)})
    name = f"{restored.spec.name[:50]}-advised"
    spec = restored.spec.with_rules(policy).model_copy(update={"name": name})
    spec = spec.model_copy(update={"interventions": _possible(spec, restored.dataset)})
    decided = {each.name: each.rule for each in restored.spec.precision.decide(model) if each.rule is not None}
    remedies = fitting_remedies(sick.found, restored.spec.tree(), decided)
    return {
        "name": f"{run.project}/{run.id}", "kind": "run", "path": str(run.path), "step": restored.step,
        "status": sick.status, "reason": sick.reason, "logged_steps": sick.steps, "monitors": sick.monitors,
        "symptoms": [_finding(*each) for each in zip(sick.found, remedies, strict=True)],
        "alarms": [{key: event.get(key) for key in ("step", "monitor", "message")} for event in sick.alarms],
        "weights": _pictures(trained_pictures(restored, formats[0])),
        "data": data, "advice": [_advice(each) for each in advice],
        "policy": policy_yaml(precision), "advised_spec": spec.to_yaml(),
    }  # fmt: skip


def _model(source: Source, formats: Sequence[NumberFormat]) -> Json:
    casts = (conversion_of_quantised(source) or conversions_by_format(source, formats[:1], ())[0]).casts
    tensors = source.weights.tensors
    elsewhere = {
        name
        for name, m in (() if source.model is None else source.model.named_modules())
        if isinstance(m, QuantizedWeight)
    }
    layers = [
        (cast.module, part)
        for tensor in tensors if tensor.name in casts
        for cast, part in casts[tensor.name].tensors(tensor)
        if cast.module not in elsewhere and not matches(POOLERS, [cast.module])
    ]  # fmt: skip
    advice = advise(stored_samples(layers), formats)
    # Rules by name alone must not reach what was left alone: embeddings, heads.
    known = {t.name for _, t in layers} | {name for name, cast in casts.items() if cast.experts}
    others = [t.name.removesuffix(".weight") for t in tensors if t.name not in known]
    precision = rules(advice, [name for name in others if name not in dict(layers)])
    text = policy_yaml(precision)
    return {
        "name": source.name, "kind": "model", "path": None if source.model is not None else source.name, "step": None,
        "weights": _pictures(stored_pictures(((t.name, t.load()) for _, t in layers), formats[0])),
        "data": False, "advice": [_advice(each) for each in advice], "policy": text, "advised_spec": text,
    }  # fmt: skip


def _replayed(
    restored: Restored,
    formats: Sequence[NumberFormat],
    recipes: Sequence[str],
    accumulators: Sequence[AccumulatorSpec],
) -> Json:
    """The run's next step under other casts, and the share of the error that each of its own makes."""
    run, roundings = restored.run, ("stochastic",) if formats else ()
    why = unattributed(restored.model) if formats else ""
    beyond = {name: [key for key in find(name).run_keys if key != "precision"] for name in recipes}
    return {
        "name": f"{run.project}/{run.id}", "kind": "replay", "path": str(run.path), "step": restored.step,
        "variants": [asdict(each) for each in variants(restored, formats, roundings, recipes, accumulators)],
        "attribution": [asdict(each) for each in (mean_attribution(restored) if formats and not why else ())],
        "attribution_batches": BATCHES,
        **({"unattributed": why} if why else {}),
        **({"recipes": beyond, "compute": restored.spec.compute} if recipes else {}),
    }  # fmt: skip


def _against(suspect: Run, reference: Run) -> Json:
    """Where the suspect diverges from the reference, and the casts that make the difference."""
    specs = [RunSpec.parse(run.spec_text(), str(run.path / "spec.yaml")) for run in (reference, suspect)]
    require_alike(*specs)
    progress("comparing losses")
    family = [run.metrics(_LOSS) for run in siblings_of(reference)]
    parting = departure(reference.metrics(_LOSS), suspect.metrics(_LOSS), family)
    with threads(specs[1].threads):
        bisection = bisect(reference, suspect, parting.step)
    return {
        "name": f"{suspect.project}/{suspect.id} against {reference.project}/{reference.id}", "kind": "against",
        "path": str(suspect.path), "step": bisection.replayed_step,
        "departure": asdict(parting), "bisection": asdict(bisection),
    }  # fmt: skip


def _forecast(spec: RunSpec, name: str, formats: Formats | None, target: float, calibrated: bool) -> Json:
    """Expected move rates of the spec as it is and under other formats, storages and optimizers."""
    weighed = formats_named(FORECAST_FORMATS if formats is None else formats)
    spec = spec.model_copy(update={"engine": "eager"})
    with threads(spec.threads):
        dataset = read_data(spec)
        own, others = forecast_variants(spec, dataset, weighed, target, calibrated=calibrated)
    return {
        "name": name, "kind": "oracle", "path": name, "step": None, "target": target, "calibrated": calibrated,
        "rehearsed_steps": min(STEPS, spec.steps), "steps": spec.steps,
        "own": None if own is None else asdict(own), "variants": [asdict(each) for each in others],
    }  # fmt: skip


def _possible(spec: RunSpec, dataset: Dataset) -> tuple[InterventionSpec, ...]:
    """The interventions that could do something under the spec's casts: without data no gradient has one."""
    kept = []
    for each in spec.interventions:
        with suppress(LocatedError):
            fit(spec.model_copy(update={"interventions": (each,), "monitors": ()}), dataset, ALONE)
            kept.append(each)
    return tuple(kept)


def _finding(finding: Any, remedy: str) -> Json:
    symptom = finding.symptom
    return {
        "name": symptom.name, "title": symptom.title, "where": symptom.where, "place": finding.place,
        "first": finding.first, "last": finding.last, "observations": finding.steps, "observed": finding.observed,
        "worst": finding.value, "lasts": finding.lasts, "evidence": finding.evidence,
        "why": symptom.why, "remedy": remedy,
    }  # fmt: skip


def _pictures(pictures: Sequence[WeightPicture]) -> list[Json]:
    return [asdict(each) for each in pictures]


def _advice(advice: Advice) -> Json:
    return {
        "layer": advice.layer, "operand": advice.operand, "elements": advice.elements, "nonfinite": advice.nonfinite,
        "format": advice.format, "rule": advice.rule,
        "formats": {
            name: {
                "exact_at_powers_of_two": advice.exact[name],
                **{scale: fit._asdict() for scale, fit in fits._asdict().items()},
            }
            for name, fits in advice.fits.items()
        },
    }  # fmt: skip
