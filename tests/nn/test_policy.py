"""Claims about precision rules: the first match decides, names have aliases, a rule without effect is an error."""

from typing import Any

import pytest
import torch
from torch import nn

from altgrad.nn import PrecisionPolicy, QuantizedLinear, quantize_model
from altgrad.nn.slots import SLOTS
from altgrad.spec import LocatedError, SpecError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = [nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)}) for _ in range(12)]
        self.blocks = nn.ModuleList(block)
        self.head = nn.Linear(8, 4)


def policy(*rules: dict[str, Any]) -> PrecisionPolicy:
    return PrecisionPolicy.model_validate({"rules": rules})


def formats(found: PrecisionPolicy) -> dict[str, str]:
    return {
        d.name: str(d.precision.slots["forward", "weight"].format)  # type: ignore[union-attr]
        for d in found.decide(Model())
        if d.precision is not None
    }


def test_the_first_matching_rule_decides() -> None:
    found = formats(policy({"match": "blocks.1.*", "weight": "e5m2"}, {"match": "blocks.*", "weight": "e4m3fn"}))
    assert found["blocks.1.up"] == "e5m2" and found["blocks.11.up"] == "e4m3fn" and found["blocks.0.down"] == "e4m3fn"
    assert "head" not in found


def test_first_and_last_name_the_ends_of_a_list() -> None:
    found = formats(
        policy({"match": "blocks.first.*", "weight": "e3m4"}, {"match": "blocks.last.up", "weight": "e5m2"})
    )
    assert found == {"blocks.0.up": "e3m4", "blocks.0.down": "e3m4", "blocks.11.up": "e5m2"}


def test_by_default_a_rule_is_for_the_blocks() -> None:
    assert len(formats(policy({"weight": "e4m3fn"}))) == 24


@pytest.mark.parametrize(
    ("rules", "number", "message"),
    [
        ([{"match": "bloks.0.up", "weight": "e4m3fn"}], 0, "Did you mean 'blocks.0.up'"),
        ([{"match": "*", "weight": "e4m3fn"}, {"match": "head", "weight": "e5m2"}], 1, "The first match wins"),
    ],
)
def test_a_rule_that_decides_nothing_is_an_error(rules: list[dict[str, Any]], number: int, message: str) -> None:
    model = Model()
    with pytest.raises(LocatedError, match=message) as error:
        quantize_model(model, policy(*rules))
    assert error.value.location == ("rules", number, "match")
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_short_names_fill_both_slots_and_products_override() -> None:
    rule = policy({"weight": "e4m3fn", "input": "e5m2", "forward": {"input": "none"}, "grad_input": {"weight": "e3m4"}})
    slots = rule.rules[0].layer().slots
    shown = {slot: None if slots[slot] is None else str(slots[slot].format) for slot in SLOTS}  # type: ignore[union-attr]
    assert shown == {
        ("forward", "input"): None,
        ("forward", "weight"): "e4m3fn",
        ("grad_input", "grad_output"): None,
        ("grad_input", "weight"): "e3m4",
        ("grad_weight", "grad_output"): None,
        ("grad_weight", "input"): "e5m2",
    }


def test_a_policy_survives_yaml() -> None:
    found = policy(
        {"match": "head", "weight": {"format": "e4m3b11fnuz", "rounding": "stochastic", "scaling": "delayed"}},
        {"input": "e5m2", "grad_weight": {"input": "none"}},
    )
    assert PrecisionPolicy.parse(found.to_yaml()) == found
    assert PrecisionPolicy.model_validate("none").rules == ()


def test_errors_point_at_the_line() -> None:
    text = "rules:\n- match: blocks.*\n  weight: {format: e4m3fn, roundng: stochastic}\n"
    with pytest.raises(SpecError, match=r"^spec.yaml:3:28: 'roundng' is not a key of a cast. Did you mean 'rounding'"):
        PrecisionPolicy.parse(text, "spec.yaml")


def test_only_plain_linears_are_touched() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4))
    with pytest.raises(ValueError, match="1 is a Own; only a plain nn.Linear or Conv1D"):
        quantize_model(model, PrecisionPolicy.uniform(weight="e4m3fn"))
    assert type(model[0]) is nn.Linear
    quantize_model(model, PrecisionPolicy.uniform(match="0", weight="e4m3fn"))
    with pytest.raises(ValueError, match="0 is quantised already"):
        quantize_model(model, PrecisionPolicy.uniform(match="0", weight="e4m3fn"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"weight": "e4m3"}, "e4m3 means different formats to different people; say e4m3fn (max 448"),
        ({"weight": "e8m8"}, "e8m8 has 17 bits; AltGrad emulates 2 to 16."),
        ({"weigth": "e4m3fn"}, "'weigth' is not a key of a precision rule. Did you mean 'weight'?"),
        ({"weight": 3}, "rules.0.weight is 3; it takes"),
        ({"weight": {"format": "e4m3fn", "scaling": {"kind": "block", "size": 0}}}, "size is 0; it takes"),
        ({"match": "", "weight": "e4m3fn"}, "rules.0.match is ''; it takes text that is not empty."),
    ],
)
def test_from_python_a_bad_policy_is_a_value_error_of_one_line(bad: dict[str, Any], message: str) -> None:
    model = Model()
    for attempt in (lambda: PrecisionPolicy.uniform(**bad), lambda: quantize_model(model, {"rules": [bad]})):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    for nothing in (3, [{"weight": "e4m3fn"}]):
        with pytest.raises(ValueError, match="^the spec is .*; it takes text, or a mapping of rules, recipe, set.$"):
            quantize_model(model, nothing)
    with pytest.raises(ValueError, match="^'e4m3fn' is not a recipe"):
        quantize_model(model, "e4m3fn")


def test_a_policy_may_come_as_data() -> None:
    model = quantize_model(Model(), {"rules": [{"match": "head", "weight": "e4m3fn"}]})
    assert isinstance(model.head, QuantizedLinear)


def test_surgery_works_on_meta_tensors() -> None:
    with torch.device("meta"):
        model = quantize_model(Model(), policy({"weight": {"format": "e4m3fn", "scaling": "delayed"}}))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
