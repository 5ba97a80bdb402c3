"""Claims about names: a module answers to each of its own, and no matrix that a rule matches is left in silence."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from altgrad.nn import PrecisionPolicy, QuantizedLayer, quantize_model, quantizers, weight_names, weight_quantizers
from altgrad.nn.names import aliases
from altgrad.optim import OptimizerSpec
from altgrad.optim.groups import parameter_groups
from altgrad.spec import LocatedError


class Shared(nn.Module):
    """A layer under two names, and a list under two."""

    def __init__(self) -> None:
        super().__init__()
        self.first_use = nn.Linear(4, 4)
        self.second_use = self.first_use
        self.blocks = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 4)}) for _ in range(2)])
        self.layers = self.blocks


FIRST, SECOND = {"match": "first_use", "weight": "e4m3fn"}, {"match": "second_use", "weight": "e5m2"}
NAMES = {
    "first_use": "first_use", "second_use": "first_use", "blocks.1.up": "blocks.1.up", "layers.1.up": "blocks.1.up",
    "layers.last.up": "blocks.1.up", "blocks.last.up": "blocks.1.up", "layers.first.*": "blocks.0.up",
}  # fmt: skip


def decided(*rules: dict[str, Any]) -> dict[str, int]:
    found = PrecisionPolicy.made_from({"rules": rules}).decide(Shared())
    return {d.name: d.rule for d in found if d.rule is not None}


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_finds_a_module_by_each_of_its_names_and_its_site_is_the_first(name: str) -> None:
    assert decided({"match": name, "weight": "e4m3fn"}) == {NAMES[name]: 0}
    model = quantize_model(Shared(), PrecisionPolicy.uniform(match=name, weight="e4m3fn"))
    assert [quantizer.site for quantizer in quantizers(model)] == [f"{NAMES[name]}/weight"]
    assert list(weight_quantizers(model)) == [f"{NAMES[name]}.weight"]


@pytest.mark.parametrize("rules", [(FIRST, SECOND), (SECOND, FIRST)])
def test_rules_that_contradict_each_other_by_two_names_are_an_error_that_names_both(rules: Any) -> None:
    with pytest.raises(LocatedError, match="first_use.*second_use|second_use.*first_use") as caught:
        decided(*rules)
    assert "cast differently" in str(caught.value) and caught.value.location == ("rules", 1, "match")
    assert "\n" not in str(caught.value)


def test_rules_that_agree_or_that_the_order_decides_are_no_conflict() -> None:
    assert decided(FIRST, SECOND | {"weight": "e4m3fn"}) == {"first_use": 0}
    everything = {"match": "*", "weight": "e5m2"}
    for one in (FIRST, SECOND, {"match": "second_use"}):
        assert decided(one, everything) == {"first_use": 0, "blocks.0.up": 1, "blocks.1.up": 1}
    with pytest.raises(LocatedError, match="'second_use' decides nothing: earlier rules match all its layers"):
        decided(everything, SECOND)


def test_parameters_of_a_shared_module_answer_to_all_its_names() -> None:
    model = Shared()
    assert aliases(model)["first_use"] == aliases(model)["second_use"] == {"first_use", "second_use"}
    spec = OptimizerSpec.made_from({"kind": "adamw", "groups": [{"match": "second_use.weight", "lr": 0.5}]})
    groups = parameter_groups(model, spec, ())
    assert [name for group in groups if group["lr"] == 0.5 for name, _ in group["params"]] == ["first_use.weight"]


class Bare(nn.Module):
    """Matrices that no layer holds, beside one that a layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.memory = nn.Linear(4, 4), nn.LSTM(4, 4)
        self.router = nn.Parameter(torch.randn(3, 4))
        self.pos_embed, self.scale = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.ones(1, 4))
        self.table, self.convolution = nn.Embedding(3, 4), nn.Conv1d(4, 4, 1)
        self.again = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.up(x), self.router)


def test_matrices_outside_of_layers_that_a_rule_matches_are_listed() -> None:
    with pytest.warns(UserWarning, match="Not cast, although a rule matches: ") as caught:
        quantize_model(Bare(), PrecisionPolicy.uniform(weight="e4m3fn"))
    (said,) = (str(warning.message) for warning in caught)
    assert "router [3, 4], again [4, 4], memory.weight_ih_l0 [16, 4], memory.weight_hh_l0 [16, 4];" in said
    assert not any(name in said for name in ("pos_embed", "scale", "table", "convolution", "up.weight", "\n"))


@pytest.mark.parametrize("rules", [
    [{"match": "up", "weight": "e4m3fn"}],
    [{"match": "memory*"}, {"match": "router"}, {"match": "again"}, {"match": "*", "weight": "e4m3fn"}],
])  # fmt: skip
def test_nothing_is_said_of_matrices_that_rules_leave_out(rules: Any) -> None:
    model = quantize_model(Bare(), {"rules": rules})
    assert isinstance(model.up, QuantizedLayer)


@pytest.mark.parametrize("match", ["router", "memory", "*weight_ih_l0", "pos_embed"])
def test_a_rule_that_finds_such_matrices_alone_is_an_error_that_says_what_they_are(match: str) -> None:
    with pytest.raises(LocatedError, match=r"matches no Linear layer, but \S+ \[\d+, 4\]; only weights of Linears"):
        quantize_model(Bare(), PrecisionPolicy.uniform(match=match, weight="e4m3fn"))


def test_the_weight_of_a_tied_head_goes_by_the_name_of_its_parameter() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "up": nn.Linear(4, 4), "head": nn.Linear(4, 8, bias=False)})
    model["head"].weight = model["embed"].weight
    quantize_model(model, PrecisionPolicy.uniform(weight="e4m3fn"))
    assert weight_names(model) == {"up": "up.weight", "head": "embed.weight"}
    assert {name: q.site for name, q in weight_quantizers(model).items()} == {
        "up.weight": "up/weight", "embed.weight": "head/weight",
    }  # fmt: skip
