"""Casts of recipes are their references', bit by bit: codes, values and scales of every recorded input.

What is compared is a slot of a recipe, as the book says it, with a cast that its authors' own code recorded
(`bench.reference_words` knows where). Where a slot rounds stochastically, its scales and units are: the recorded cast
rounds otherwise, and the slot does so here; `test_laws.py` has the draws. What differs all the same is in `UNEQUAL`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from altgrad.quantize import QuantizerSpec
from altgrad.recipes.book import find
from altgrad.recipes.catalogue import names
from bench.reference_casts import UNEQUAL, compare, recorded
from bench.reference_words import FILES, Case
from tests.recipes.vendor import slots

SELF = "tests/recipes/test_casts.py::test_casts_are_the_references"
ELEMENTS = {
    "e4m3fn": "fp8_e4m3", "e5m2": "fp8_e5m2", "e3m2": "fp6_e3m2", "e2m3": "fp6_e2m3", "e2m1": "fp4_e2m1",
    "e1m6b1": "int8", "e1m2b1": "int4",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """That a slot of a recipe is a recorded cast."""

    slot: str
    file: str
    entry: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    but: str = ""
    """An input on which they are known to differ: torchao gives up blocks below 2^-127, which the format can hold."""


def _float8(*slots: tuple[str, str], **parameters: Any) -> list[Claim]:
    return [Claim(slot, "torchao_float8_casts", entry, parameters) for slot, entry in slots]


CLAIMS: dict[str, list[Claim]] = {
    "te_current": [
        Claim(slot, "te_float8_tensor", f"{fmt}.{kind}", {"scale": scale})
        for slot, fmt in (("forward.input", "e4m3fn"), ("forward.weight", "e4m3fn"), ("grad_input.grad_output", "e5m2"))
        for kind, scale in (("real", "real"), ("pow2", "power_of_two"))
    ],
    "te_block": [
        Claim(slot, "te_float8_block", entry.format(kind), {"scale": scale})
        for slot, entry in (
            ("forward.input", "run128.e4m3fn.{}"), ("grad_weight.input", "run128.e4m3fn.{}.transposed"),
            ("grad_input.grad_output", "run128.e4m3fn.{}"), ("forward.weight", "square128.e4m3fn.{}"),
        )
        for kind, scale in (("pow2", "power_of_two"), ("real", "real"))
    ],
    "te_mxfp8": [
        Claim("forward.weight", "te_mxfp8_square", "square32", {"weight_shape": "square"}),
        Claim("forward.input", "torchao_mx_fp8", "e4m3fn.rceil", but="extreme"),
        Claim("forward.weight", "torchao_mx_fp8", "e4m3fn.rceil", but="extreme"),
    ],
    "te_nvfp4": [
        Claim("forward.input", "te_nvfp4_casts", "vec16.row"), Claim("forward.input", "te_nvfp4_casts", "vec16"),
        Claim("grad_input.grad_output", "te_nvfp4_casts", "vec16.row"),
        Claim("grad_weight.input", "te_nvfp4_casts", "rht.col"),
        Claim("grad_weight.grad_output", "te_nvfp4_casts", "rht.col"),
        Claim("forward.weight", "te_nvfp4_casts", "square16.row"),
        Claim("grad_input.weight", "te_nvfp4_casts", "square16"),
        Claim("forward.input", "te_nvfp4_options", "row_scaled", {"input_outer": "row"}),
    ],
    "te_nvfp4_4over6": [
        *(
            Claim(slot, "te_nvfp4_options", f"four_over_six.{by}_{bound}", {"by": by, "scale_max": float(bound)})
            for slot in ("forward.input", "grad_weight.input") for by in ("mae", "mse") for bound in (256, 448)
        ),
        Claim("forward.weight", "te_nvfp4_options", "four_over_six_square.mse_256", {"by": "mse"}),
        Claim("grad_input.grad_output", "te_nvfp4_casts", "vec16.row"),
    ],
    "torchao_tensorwise": _float8(
        ("forward.input", "e4m3fn.real.tensor"), ("forward.weight", "e4m3fn.real.tensor"),
        ("grad_input.grad_output", "e5m2.real.tensor"),
    ),
    "torchao_rowwise": _float8(
        ("forward.input", "e4m3fn.pow2.row"), ("forward.weight", "e4m3fn.pow2.row"),
        ("grad_input.weight", "e4m3fn.pow2.column"), ("grad_weight.grad_output", "e4m3fn.pow2.column"),
    ),
    "torchao_rowwise_gw_hp": _float8(
        ("forward.input", "e4m3fn.pow2.row"), ("forward.weight", "e4m3fn.pow2.row"),
        ("grad_input.grad_output", "e4m3fn.pow2.row"), ("grad_input.weight", "e4m3fn.pow2.tensor"),
    ),
    "torchao_mxfp8": [
        Claim(slot, "torchao_mx_fp8", f"e4m3fn.{mode}", {"mode": mode})
        for slot in ("forward.input", "grad_weight.grad_output") for mode in ("rceil", "floor", "even", "ceil")
    ],
    "torchao_blockwise": [
        Claim("forward.input", "torchao_block128", "run128"),
        Claim("grad_weight.input", "torchao_block128", "column128"),
        Claim("grad_input.grad_output", "torchao_block128", "run128"),
        Claim("forward.weight", "torchao_block128", "square128"),
    ],
    "torchao_nvfp4": [
        Claim(slot, "torchao_nvfp4", f"{levels}_level", {"outer": outer, "arithmetic": "torchao"})
        for slot in ("forward.input", "grad_input.grad_output")
        for levels, outer in (("two", "tensor"), ("one", "none"))
    ],
    "torchao_int8": [
        Claim(slot, "torchao_int8", entry, {"scale": scale})
        for slot in ("forward.input", "forward.weight", "grad_input.grad_output")
        for entry, scale in (("int8_row", "real"), ("int8_row_bf16", "bf16"))
    ],
    "bitnet_b158": [
        Claim("forward.input", "torchao_int8", "int8_row"), Claim("forward.weight", "torchao_int8", "bitnet"),
    ],
    "deepseek_v3": [
        Claim(slot, "deepgemm_casts", f"{shape}128.{kind}", {"scale": scale})
        for slot, shape in (
            ("forward.input", "run"), ("grad_weight.input", "column"), ("grad_input.grad_output", "run"),
            ("grad_weight.grad_output", "column"), ("forward.weight", "square"), ("grad_input.weight", "square"),
        )
        for kind, scale in (("real", "real"), ("ue8m0", "power_of_two"))
    ],
    "nanochat": [
        Claim("forward.input", "nanochat_fp8", "cast"), Claim("grad_input.grad_output", "nanochat_fp8", "cast"),
    ],
    "four_over_six": [
        *(
            Claim(slot, "fouroversix", f"nvfp4.{rule}", {"by": by})
            for slot in ("forward.input", "grad_input.grad_output")
            for rule, by in (("mse", "mse"), ("mae", "mae"), ("abs_max", "amax"))
        ),
        Claim("forward.weight", "fouroversix", "nvfp4_square.mse"),
    ],
    "mxfp4_rht": [
        Claim(slot, "mxfp4_llm", f"noise_{noise}")
        for slot in ("grad_input.weight", "grad_input.grad_output") for noise in ("low", "half")
    ],
    "quartet": [
        Claim("forward.input", "quartet", "quest"), Claim("forward.weight", "quartet", "quest"),
        Claim("grad_input.grad_output", "quartet", "range_3_4"), Claim("grad_weight.input", "quartet", "range_3_4"),
    ],
    "quartet2": [
        Claim("forward.input", "quartet2", "forward.four_over_six"),
        Claim("forward.weight", "quartet2", "forward.four_over_six"),
    ],
    "wang_fp4": [
        Claim("forward.weight", "msamp_fp4", "channel"), Claim("forward.input", "msamp_fp4", "token"),
    ],
    "tetrajet": [
        Claim("forward.input", "tetrajet", "e2m1.ceil"), Claim("forward.weight", "tetrajet", "e2m1.ceil"),
        Claim("grad_weight.input", "tetrajet", "double"), Claim("grad_input.weight", "tetrajet", "double"),
        Claim("grad_input.grad_output", "tetrajet", "e2m1.ceil"),
        Claim("forward.weight", "tetrajet", "ema", {"weight_rounding": "toward_average"}),
    ],
    "tetrajet_v2": [
        Claim(slot, "tetrajet_v2", "outer128") for slot in ("forward.input", "forward.weight", "grad_input.grad_output")
    ],
    "mx": [
        Claim("forward.input", "microxcaling", f"{name}.{way}", {"element": element, "rounding": rounding})
        for element, name in ELEMENTS.items()
        for way, rounding in (("nearest", "nearest_away"), ("even", "nearest_even"))
    ],
    "mx_norms": [
        Claim("forward.weight", "microxcaling", f"{ELEMENTS[element]}.nearest", {"element": element})
        for element in ("e4m3fn", "e2m1")
    ],
}  # fmt: skip
NO_RECIPE = {
    "torchao_mx_fp6_fp4": "torchao trains with MXFP8 alone; other elements are recipe mx, as microxcaling has them",
    "compressed_tensors": "presets of weights in checkpoints, with which nobody trains",
}
"""Recorded files that no recipe is compared with, and why."""


def cast_of(spec: QuantizerSpec) -> dict[str, Any]:
    """What a slot does to a tensor that it is given, without what it draws."""
    scaling = {name: value for name, value in spec.scaling.tree().items() if name != "trial_rounding"}
    said = {"format": str(spec.format), "scaling": scaling, "rounding": str(spec.rounding)}
    return {key: value for key, value in said.items() if (key, value) != ("rounding", "stochastic")}


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str], list[Case]]:
    """The recorded casts, by file and entry."""
    found: dict[tuple[str, str], list[Case]] = {}
    tensors = recorded()
    for file, its_cases in FILES.items():
        for case in its_cases(tensors[file]):
            found.setdefault((file, case.entry), []).append(case)
    return found


@pytest.mark.parametrize("name", CLAIMS)
def test_casts_are_the_references(name: str, cases: dict[tuple[str, str], list[Case]]) -> None:
    seen: dict[str, int] = {}
    for claim in CLAIMS[name]:
        words = cast_of(slots(name, **claim.parameters)[claim.slot])
        key = f"{claim.file} {claim.entry} {words}"
        for case in cases[claim.file, claim.entry] if key not in seen else ():
            if case.input == claim.but or case.words["format"] != words["format"]:
                continue
            compared = compare(case._replace(words={"rounding": case.words.get("rounding", "nearest_even"), **words}))
            known = UNEQUAL.get((claim.file, claim.entry, case.input), (0, ""))[0]
            assert compared.unequal <= known, (claim, case.input, compared[1:])
            seen[key] = seen.get(key, 0) + compared.compared
    assert sum(seen.values()) > 5_000


def test_every_cast_of_these_recipes_is_compared() -> None:
    """Each slot does what some claim says, at the parameters of the claim; what is compared elsewhere is named here."""
    elsewhere = {
        "torchao_nvfp4": set(slots("torchao_nvfp4")),
        "te_nvfp4_4over6": {"forward.weight", "grad_input.weight"},
        "quartet2": {"grad_input.grad_output", "grad_input.weight", "grad_weight.grad_output", "grad_weight.input"},
    }
    for name, claims in CLAIMS.items():
        claimed = [cast_of(slots(name, **claim.parameters)[claim.slot]) for claim in claims]
        left = {slot for slot, spec in slots(name).items() if cast_of(spec) not in claimed}
        assert left == elsewhere.get(name, set()), name


def test_every_recorded_file_is_used_by_a_recipe() -> None:
    assert FILES.keys() == {claim.file for claims in CLAIMS.values() for claim in claims} | NO_RECIPE.keys()


def test_recipes_that_name_this_proof_are_compared() -> None:
    assert CLAIMS.keys() == {name for name in names() if SELF in find(name).proof}
