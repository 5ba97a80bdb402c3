"""Claims about format advice: what it chooses, that its rules are a policy, and how it reads a run."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from altgrad.diagnosis.advice import CANDIDATES, Advice, advise, best_format, layer_kind, policy_yaml, rules
from altgrad.diagnosis.samples import LayerSample, matches_head
from altgrad.document import Document
from altgrad.formats import FloatFormat
from altgrad.measures.format_fit import CastFit, FormatFit, fit_formats
from altgrad.measures.reference_sample import reference_sample
from altgrad.nn import PrecisionPolicy, quantize_model

FORMATS = [FloatFormat.parse(name) for name in CANDIDATES]


def fit(sqnr: float, underflow: float = 0.0) -> FormatFit:
    cast = CastFit(1.0, sqnr, underflow, 0.0, 0.5)
    return FormatFit(cast, cast, cast, cast)


def sampled(**layers: torch.Tensor) -> list[LayerSample]:
    found = []
    for name, x in layers.items():
        sample = LayerSample(name.replace("_", "."))
        sample.add("weight", x)
        found.append(sample)
    return found


@pytest.mark.parametrize(
    ("fits", "choice"),
    [
        ({"e3m4": fit(30), "e2m5": fit(35)}, "e2m5"),
        ({"e3m4": fit(30.3), "e4m3fn": fit(30)}, "e4m3fn"),  # deployed, and as good within half a decibel
        ({"e3m4": fit(30.6), "e4m3fn": fit(30)}, "e3m4"),
        ({"e2m5": fit(30), "e2m3": fit(29.9)}, "e2m3"),  # as good with fewer bits
        ({"e0m7": fit(40, underflow=0.06), "e4m3fn": fit(31)}, "e4m3fn"),
        ({"e0m7": fit(40, underflow=0.06), "e4m3fn": fit(31, underflow=0.5)}, "e0m7"),  # where all lose, SQNR decides
        ({"e3m4": fit(math.inf), "e4m3fn": fit(90)}, "e3m4"),
    ],
)
def test_the_choice_is_by_underflow_then_sqnr_then_deployment_then_bits(
    fits: Mapping[str, FormatFit], choice: str
) -> None:
    assert best_format(fits) == choice


@pytest.mark.parametrize("name", ["normal", "laplace", "t5"])
def test_the_advised_format_is_within_half_a_decibel_of_brute_force_s_best(name: str) -> None:
    x = reference_sample(name, 1 << 14)
    (found,) = advise(sampled(a=x), FORMATS)
    brute = {key: fit.amax_power_of_two for key, fit in fit_formats(x, FORMATS).items()}
    allowed = [cast.sqnr_db for cast in brute.values() if cast.underflow_rate <= 0.05]
    assert brute[found.format].sqnr_db >= max(allowed) - 0.6
    assert all(found.exact.values())


def test_a_weight_with_an_outlier_is_told_to_search_its_scale() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    x[0] = 20.0
    (found,) = advise(sampled(a=x), [FloatFormat.parse("e2m1")])
    assert found.rule == {"format": "e2m1", "scaling": "mse"}


def test_operands_of_zeros_get_no_advice() -> None:
    assert advise(sampled(a=torch.zeros(8)), FORMATS) == []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(4, 9)


def advised(choices: Mapping[str, Any]) -> list[Advice]:
    return [Advice(name, "weight", 1, 0, {}, {}, str(rule), rule) for name, rule in choices.items()]


@pytest.mark.parametrize("odd", [None, "blocks.1.up", "blocks.2.down"])
def test_rules_give_every_layer_exactly_what_was_advised_and_the_head_nothing(odd: str | None) -> None:
    names = [f"blocks.{number}.{leaf}" for number in range(3) for leaf in ("up", "down")]
    wanted = {name: "e5m2" if name == odd else "e4m3fn" if name.endswith("up") else "e3m4" for name in names}
    text = policy_yaml(rules(advised(wanted), others=["head"]))
    policy = PrecisionPolicy.check(Document({"rules": Document.parse(text, "a.yaml").data["precision"]["rules"]}, ""))
    found = {
        d.name: d.precision and str(d.precision.slots["forward", "weight"].format)  # type: ignore[union-attr]
        for d in policy.decide(Model())
    }
    assert found == {**wanted, "head": None}
    quantize_model(Model(), policy)


def test_layers_that_all_agree_share_one_rule() -> None:
    names = {f"blocks.{number}.{leaf}": "e4m3fn" for number in range(3) for leaf in ("up", "down")}
    assert rules(advised(names)) == [{"match": "*", "weight": "e4m3fn"}]
    assert [rule["match"] for rule in rules(advised(names), ["head"])] == ["blocks.*.up", "blocks.*.down"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("blocks.10.mlp.up", "blocks.*.mlp.up"), ("h.0", "h.*"), ("fc1", "fc1"), ("a[0].1", "a[[]0].*")],
)
def test_a_kind_is_the_name_without_its_numbers(name: str, kind: str) -> None:
    assert layer_kind(name) == kind


def test_heads_are_known_by_name() -> None:
    assert matches_head("head") and matches_head("model.lm_head") and not matches_head("blocks.0.mlp.up")
