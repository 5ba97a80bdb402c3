"""Claims about what recipes turn operands by: matrices, signs and turned values are those of their references."""

from typing import Any

import pytest
import torch

from altgrad.nn import PrecisionPolicy
from altgrad.nn.rule import Rule
from altgrad.nn.slots import slot_text
from altgrad.quantize import Quantizer
from altgrad.quantize.transform import HadamardSpec, Transform, hadamard
from tests.recipes.vendor import data, rule, slots

CPU = torch.device("cpu")


def transform(name: str, product: str, **parameters: Any) -> Transform:
    spec = Rule.made_from({"match": "*", **rule(name, **parameters)}).layer().transforms[product]  # type: ignore[index]
    return spec.build(f"m/{product}", 0)


@pytest.mark.parametrize("name", ["normal", "t2", "normal_bf16"])
def test_the_published_signs_turn_a_tensor_to_the_same_bits(name: str) -> None:
    found, dtype = data("te_nvfp4_casts"), "bfloat16" if name.endswith("bf16") else "float32"
    made = transform("te_nvfp4", "grad_weight", transform_dtype=dtype)
    x = found[f"in.{name}"]
    assert isinstance(made.spec, HadamardSpec) and made.spec.vector == tuple(int(s) for s in found["rht.signs"])
    turned = made.turn(x.T.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32), made.matrix(x, False))
    assert torch.equal(turned, found[f"rht.{name}.transformed"])
    if dtype == "bfloat16":
        assert transform("four_over_six", "grad_weight").spec == made.spec
        assert transform("torchao_nvfp4", "grad_weight", signs="fixed").spec == made.spec


def test_matrices() -> None:
    """Of Tseng et al., of Quartet and of Quartet II, whose signs are drawn: up to signs of the rows or columns."""
    for name, recorded, key in (
        ("mxfp4_rht", "mxfp4_llm", "hadamard64"), ("quartet", "quartet", "hadamard"),
        ("quartet2", "quartet2", "eden.hadamard"),
    ):  # fmt: skip
        expected = data(recorded)[key]
        for product in ("grad_input", "grad_weight"):
            made = transform(name, product)
            drawn = made.matrix(torch.zeros(1), True)
            assert torch.equal(hadamard(made.spec.size, CPU), expected) and torch.equal(drawn.abs(), expected.abs())
            signs = drawn / expected
            by_rows = made.spec.side == "input"
            along = signs if by_rows else signs.T
            assert torch.equal(along, along[:, :1].expand_as(along)) and len(along[:, 0].unique()) == 2
            assert by_rows == (name != "quartet")


def test_turned_values() -> None:
    for name, key, product in (
        ("quartet", "transformed.{}", "forward"),
        ("quartet2", "eden.{}.transformed", "grad_input"),
    ):
        found = data(name)
        made = transform(name, product)
        for each in ("normal", "t2", "edge"):
            assert torch.equal(made.turn(found[f"in.{each}"], hadamard(32, CPU)), found[key.format(each)])


def test_quest_masks_the_gradient_among_turned_values() -> None:
    """Quartet's forward and the backward of its cast: (dy . mask) H^T."""
    found, turn, matrix = data("quartet"), transform("quartet", "forward"), hadamard(32, CPU)
    for name in ("normal", "edge", "t2"):
        turned = turn.turn(found[f"in.{name}"], matrix)
        values, mask = Quantizer(slots("quartet")["forward.input"]).values_and_factor(turned, False, torch.float32)
        assert mask is not None
        assert torch.equal(mask, found[f"quest.{name}.mask"].bool())
        assert torch.equal(values, found[f"quest.{name}.out"])
        if name != "t2":
            dx = turn.turn_back(torch.where(mask, found[f"quest.{name}.dy"], 0), matrix)
            assert torch.equal(dx, found[f"quest.{name}.dx"])


def test_a_table_says_what_turns_a_slot() -> None:
    casts = {"weight": "e2m1", "input": "e2m1", "forward": {"transform": {"kind": "hadamard", "size": 32}}}
    layer = PrecisionPolicy.uniform(**casts).rules[0].layer()  # type: ignore[arg-type]
    assert slot_text(layer.slots["forward", "input"], layer.transforms["forward"]) == "e2m1 current hadamard/32"
    assert transform("torchao_nvfp4", "grad_weight").spec.text == "hadamard/16 signs layer"
