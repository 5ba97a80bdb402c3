"""Claims about cures: of one run none is named that its spec has, nor one thing and its opposite."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from altgrad.models.model import ModelSpec
from altgrad.nn import PrecisionPolicy
from altgrad.symptoms import SYMPTOMS, Finding, cures_of, fitting_remedies
from altgrad.training import RunSpec

FREE = {
    "look at saturation and at the first bad site before this step", "no cast on the layer before it",
    "no cast in the first layer", "look for a dead layer above it", "its learning rate in `groups`",
    "its gradient norm",
    "`altgrad diagnose RUN --replay` names the casts that cause it", "leave those out",
    "look at saturation and underflow of grad_output",
    "compare dead_share before the cast: only where the cast kills them is it to blame",
}  # fmt: skip
"""Cures that can be tried whatever the spec says."""


def specs() -> Iterator[dict[str, Any]]:
    """Specs of every storage, scaling, optimizer and a few formats."""
    scalings = ["current", {"kind": "delayed", "margin": 1}, "delayed", "mse", {"kind": "block", "size": 16},
                {"kind": "current", "granularity": "channel"}, "mx", "unscaled"]  # fmt: skip
    storages = [None, "nearest", "stochastic", "kahan"]
    optimizers = ["adamw", "sgd", "manifold_adamw", "madam"]
    for scaling, storage, optimizer, (fmt, clip) in itertools.product(
        scalings, storages, optimizers, [("e4m3fn", 1.0), ("e5m2", None), ("e0m7", 3.0)]
    ):
        cast = {"format": fmt, "scaling": scaling, "rounding": "stochastic" if fmt == "e5m2" else "nearest_even"}
        yield RunSpec.made_from(
            {
                "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 8}, "data": "text",
                "steps": 9,
                "optimizer": {"kind": optimizer, "weight_decay": 0.1 if clip else 0.0}, "clip_norm": clip,
                "precision": {"rules": ({"match": "blocks.*", "weight": cast, "input": cast, "grad_output": cast},)},
                "storage": () if storage is None else ({"match": "*", "kind": storage, "format": fmt},),
            }
        ).tree()  # fmt: skip


SPECS = list(specs())
TOLD = {  # what a spec has, by itself, and the words that no remedy may then use of it
    "storage: stochastic": lambda spec: [s["kind"] for s in spec["storage"]] in ([], ["stochastic"], ["kahan"]),
    "storage: kahan": lambda spec: [s["kind"] for s in spec["storage"]] in ([], ["kahan"]),
    "storage: master": lambda spec: not spec["storage"],
    "clip_norm": lambda spec: spec["clip_norm"] == 1.0,
    "scaling: current": lambda spec: cast(spec)["scaling"]["kind"] == "current",
    "scaling: mse": lambda spec: cast(spec)["scaling"]["kind"] == "mse",
    "block scaling": lambda spec: cast(spec)["scaling"]["kind"] in ("block", "mx"),
    "has no scale": lambda spec: cast(spec)["scaling"]["kind"] != "unscaled",
    "margin: 1": lambda spec: cast(spec)["scaling"].get("margin") == 1,
    "granularity: channel": lambda spec: cast(spec)["scaling"].get("granularity") == "channel",
    "e5m2": lambda spec: cast(spec)["format"] == "e5m2",
    "rounding: stochastic": lambda spec: cast(spec)["rounding"] == "stochastic",
    "whose steps are in gaps": lambda spec: spec["optimizer"]["kind"] in ("manifold_adamw", "madam"),
    "kappa": lambda spec: spec["optimizer"]["kind"] != "manifold_adamw",
    "weight decay": lambda spec: spec["optimizer"]["weight_decay"] > 0,
}


def cast(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["precision"]["rules"][0]["weight"]  # type: ignore[no-any-return]


def place(keys: tuple[str, ...]) -> str:
    """A place in the model that the symptom's keys can have."""
    operand = next((name for name in ("grad_output", "weight", "input") if f"/{name}" in keys[0]), "")
    layer = "blocks.0.mlp.up"
    return "" if keys[0].startswith("train/") else f"{layer}/{operand}" if operand else f"{layer}.weight"


def findings(draw: random.Random) -> list[Finding]:
    """Every symptom once, in some order."""
    chosen = draw.sample(SYMPTOMS, len(SYMPTOMS))
    return [Finding(s, place(s.keys), step, step, 3, 9, 1.0, True) for step, s in enumerate(chosen)]


def test_no_spec_is_told_what_it_has_nor_the_opposite_of_what_it_was_told() -> None:
    draw = random.Random(0)
    for spec in SPECS:
        found = findings(draw)
        remedies = fitting_remedies(found, spec)
        assert all(remedies)
        for words, has in TOLD.items():
            if has(spec):
                assert not any(words in f"{remedy};" for remedy in remedies), (words, spec["storage"], cast(spec))
        rates = {word for remedy in remedies for word in ("a larger lr", "a smaller lr", "lower lr") if word in remedy}
        assert not ("a larger lr" in rates and len(rates) > 1), rates
        for where in {finding.place for finding in found}:
            here = " ".join(remedy for remedy, finding in zip(remedies, found, strict=True) if finding.place == where)
            assert not ("fewer exponent bits" in here and ("more exponent bits" in here or "wider format" in here))


def test_every_cure_is_one_that_a_spec_can_have_or_one_that_none_can() -> None:
    for symptom in SYMPTOMS:
        for cure in cures_of(symptom):
            known = cure.turns is not None or any(cure.has(spec, place(symptom.keys)) for spec in SPECS)
            uncast = {"precision": {"rules": []}, "storage": [], "optimizer": {"kind": "adamw"}}
            assert known or cure.text in FREE or cure.has(uncast, place(symptom.keys)), cure.text


def test_a_spec_that_has_everything_is_pointed_to_the_replay() -> None:
    symptom = next(s for s in SYMPTOMS if s.name == "ineffective_update")
    plain = {"precision": {"rules": []}, "storage": [], "optimizer": {"kind": "adamw"}}
    (remedy,) = fitting_remedies([Finding(symptom, "blocks.0.mlp.up.weight", 1, 1, 1, 1, 0.0, True)], plain)
    assert "--replay" in remedy


def test_what_underflows_without_a_scale_wants_a_scale_first() -> None:
    unscaled = next(s for s in SPECS if cast(s)["scaling"]["kind"] == "unscaled")
    scaled = next(s for s in SPECS if cast(s)["scaling"]["kind"] == "current")
    for symptom in (s for s in SYMPTOMS if s.name.endswith("_underflow")):
        found = [Finding(symptom, place(symptom.keys), 1, 1, 3, 9, 1.0, True)]
        assert fitting_remedies(found, unscaled)[0].startswith("scaling: current")
        assert "scale" not in fitting_remedies(found, scaled)[0]


def test_where_rules_name_places_the_model_says_which_one_decides() -> None:
    """By names alone a block of a GPT could be of either rule, and a layer of another library of none."""
    symptom = next(s for s in SYMPTOMS if s.name == "activation_underflow")
    last, others = {"format": "e4m3fn", "scaling": "current"}, {"format": "e4m3fn", "scaling": "unscaled"}
    policy = PrecisionPolicy.made_from({
        "rules": [{"place": "body.last(1)", "input": last}, {"place": "body", "input": others}]
    })  # fmt: skip
    model = ModelSpec.of({"kind": "gpt", "layers": 2, "width": 8, "heads": 2, "context": 4}).build(16, 16)
    rules = {each.name: each.rule for each in policy.decide(model) if each.rule is not None}
    found = [Finding(symptom, f"blocks.{n}.mlp.up/input", 1, 1, 3, 9, 1.0, True) for n in (0, 1)]
    of_others, of_last = fitting_remedies(found, {"precision": policy.tree()}, rules)
    assert "scaling: current" in of_others and "scaling: current" not in of_last


@pytest.mark.parametrize("first", ["oscillation", "stalled_storage"])
def test_of_opposite_cures_the_earlier_finding_s_stands(first: str) -> None:
    spec = next(s for s in SPECS if s["storage"] and s["storage"][0]["kind"] == "nearest")
    pair = sorted((s for s in SYMPTOMS if s.name in ("oscillation", "stalled_storage")), key=lambda s: s.name != first)
    found = [Finding(s, "blocks.0.mlp.up.weight", n, n, 1, 1, 1.0, True) for n, s in enumerate(pair)]
    remedies = fitting_remedies(found, spec)
    wanted = "a smaller lr" if first == "oscillation" else "a larger lr"
    assert wanted in remedies[0] and "lr" not in remedies[1]
