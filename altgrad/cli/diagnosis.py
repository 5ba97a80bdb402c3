"""What `altgrad diagnose` finds, as the plain data that --json prints and the page is drawn from.

A target is a run or a checkpoint of one (a folder, an id), or a model in safetensors. `--json` is one object; its keys
are described in docs/DIAGNOSE.md.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from altgrad.cli.diagnosis_oracle import FEW, foretold, is_spec
from altgrad.cli.diagnosis_replay import against, replayed
from altgrad.cli.quantization import jobs_by_format
from altgrad.data.dataset import Dataset
from altgrad.diagnosis.advice import CANDIDATES, Advice, advise, policy_yaml, rules
from altgrad.diagnosis.findings import ailments
from altgrad.diagnosis.samples import linear_layers, stored_samples, trained_samples
from altgrad.diagnosis.weights import WeightPicture, stored_pictures, trained_pictures
from altgrad.formats import FloatFormat
from altgrad.interventions import InterventionSpec
from altgrad.nn import ALONE, PrecisionPolicy
from altgrad.nn.layers import is_layer
from altgrad.nn.names import matches
from altgrad.spec import LocatedError
from altgrad.store import Run, RunStore
from altgrad.symptoms import fitting_remedies
from altgrad.training import RunSpec
from altgrad.training.prepare import fit
from altgrad.training.restore import Restored, located, restore
from altgrad.training.weights import find_weights

Json = dict[str, Any]
POOLERS = "*pooler.dense"
"""What a run of kind hf leaves out of a model: advice on it would be a rule that decides nothing there."""


@dataclass(frozen=True)
class Asked:
    """The command's arguments.

    data: whether a step of the run may be taken to see activations and gradients. replay, against: the other questions.
    """

    target: str
    formats: str | None
    data: bool
    runs: Path
    replay: bool = False
    against: str | None = None
    oracle: bool = False
    move_rate: float = 0.01
    calibrate: bool = False

    @property
    def advises_nothing(self) -> bool:
        """Whether another question than formats is asked."""
        return self.replay or self.against is not None or self.oracle or is_spec(self.target)


def examine(asked: Asked) -> Json:
    """All facts. ValueError, in one line, for a target that is none and for formats that no tensor can enter."""
    if is_spec(asked.target):
        if asked.replay or asked.against:
            raise ValueError(f"{asked.target} is no run, and only a run's steps can be taken again.")
        return _foretold(asked, RunSpec.load(Path(asked.target)), asked.target)
    formats = formats_of(asked.formats)
    found = find_run(asked.target, asked.runs)
    if found is None and (asked.replay or asked.against):
        raise ValueError(f"{asked.target} is no run, and only a run's steps can be taken again.")
    if found is None and asked.oracle:
        raise ValueError(f"{asked.target} has no optimizer or schedule; --oracle takes a run or the YAML of one.")
    if found is None:
        return _model(Path(asked.target), formats)
    run, step = found
    if asked.oracle:
        spec = RunSpec.parse(run.spec_text(), str(run.path / "spec.yaml"))
        return _foretold(asked, spec, f"{run.project}/{run.id}")
    if asked.against is not None:
        return against(run, RunStore(asked.runs).find(asked.against))
    restored = restore(run, step)
    torch.set_num_threads(restored.spec.threads or torch.get_num_threads())
    if asked.replay:
        return replayed(restored, formats)
    return _run(restored, formats, asked.data)


def _foretold(asked: Asked, spec: RunSpec, name: str) -> Json:
    formats = formats_of(",".join(FEW) if asked.formats is None else asked.formats)
    return foretold(spec, name, formats, asked.move_rate, asked.calibrate)


def formats_of(names: str | None) -> list[FloatFormat]:
    """The formats of --formats, each once, by commas; ValueError for one outside the tensor domain."""
    spelled = CANDIDATES if names is None else [name for part in names.split(",") if (name := part.strip())]
    if not spelled:
        raise ValueError(f"--formats {names!r} names no format; write some, such as e4m3fn,e5m2.")
    formats = list(dict.fromkeys(FloatFormat.parse(name) for name in spelled))
    for fmt in formats:
        fmt.require_tensor_domain()
    return formats


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


def _run(restored: Restored, formats: Sequence[FloatFormat], data: bool) -> Json:
    run, model = restored.run, restored.model
    sick = ailments(run)
    stored = {name.removesuffix(".weight") for name, _, _ in restored.state.optimizer.grids()}
    advice = advise(trained_samples(restored, data=data), formats, stored)
    others = [name for name, m in model.named_modules() if is_layer(m) and name not in linear_layers(model)]
    precision = rules(advice, others)
    policy = PrecisionPolicy.made_from({"rules": tuple(precision)})
    name = f"{restored.spec.name[:50]}-advised"
    spec = restored.spec.model_copy(update={"precision": policy, "name": name})
    spec = spec.model_copy(update={"interventions": _possible(spec, restored.dataset)})
    remedies = fitting_remedies(sick.found, restored.spec.tree())
    return {
        "name": f"{run.project}/{run.id}", "kind": "run", "path": str(run.path), "step": restored.step,
        "status": sick.status, "reason": sick.reason, "logged_steps": sick.steps, "monitors": sick.monitors,
        "symptoms": [_finding(*each) for each in zip(sick.found, remedies, strict=True)],
        "alarms": [{key: event.get(key) for key in ("step", "monitor", "message")} for event in sick.alarms],
        "weights": _pictures(trained_pictures(restored, formats[0])),
        "data": data, "advice": [_advice(each) for each in advice],
        "policy": policy_yaml(precision), "advised_spec": spec.to_yaml(),
    }  # fmt: skip


def _model(path: Path, formats: Sequence[FloatFormat]) -> Json:
    weights = find_weights(path)
    job = jobs_by_format(weights, formats[:1], [])[0]
    layers = [
        (job.choices[t.name].module, t)
        for t in weights.tensors
        if t.name in job.choices and not matches(POOLERS, [job.choices[t.name].module])
    ]
    advice = advise(stored_samples(layers), formats)
    # Rules by name alone must not reach what was left alone: embeddings, heads.
    known = {t.name for _, t in layers}
    others = [t.name.removesuffix(".weight") for t in weights.tensors if t.name not in known]
    precision = rules(advice, [name for name in others if name not in dict(layers)])
    text = policy_yaml(precision)
    return {
        "name": str(path), "kind": "model", "path": str(path), "step": None,
        "weights": _pictures(stored_pictures(((t.name, t.load()) for _, t in layers), formats[0])),
        "data": False, "advice": [_advice(each) for each in advice], "policy": text, "advised_spec": text,
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
    return [asdict(picture) for picture in pictures]


def _advice(advice: Advice) -> Json:
    return {
        "layer": advice.layer, "operand": advice.operand, "elements": advice.elements, "nonfinite": advice.nonfinite,
        "format": advice.format, "rule": advice.rule,
        "formats": {
            name: {
                "exact_at_powers_of_two": advice.exact[name],
                **{scale: cast._asdict() for scale, cast in fit._asdict().items()},
            }
            for name, fit in advice.fits.items()
        },
    }  # fmt: skip
