"""Recipes in a report: what each spends is known from its rules alone, and its loss is judged once, as everywhere."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altgrad.reports.bits import bits_of_cast, least_first, stored_bits
from altgrad.reports.content import Dots, Figure, Limit, Table
from altgrad.reports.product_cost import product_cost
from altgrad.reports.sections.recipes import Recipes, recipe_of
from altgrad.reports.sources import load_project
from altgrad.store import RunFiles, RunStore
from tests.reports.conftest import spec, write_run

HADAMARD = {"kind": "hadamard", "size": 16, "signs": "fixed"}


def rule(cast: Any, gradient: Any = None, **more: Any) -> dict[str, Any]:
    return {"place": "body", "weight": cast, "input": cast, "grad_output": gradient or cast, **more}


def nvfp4(**more: Any) -> dict[str, Any]:
    return {"format": "e2m1", "scaling": {"kind": "nvfp4", **more}}


MX = {"format": "e4m3fn", "scaling": {"kind": "mx", "mode": "rceil"}}
PARTED = {"kind": "columns", "follow": "input", "cast": MX, "grad_output": MX}
RULES: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "fp8 per tensor": (rule("e4m3fn", "e5m2"), (8, 8)),
    "mxfp8": (rule(MX, operands="per_product"), (8.25, 8.25)),
    "nvfp4": (rule(nvfp4(), operands="per_product"), (4.5, 4.5)),
    "nvfp4, weights in squares": (rule(nvfp4(), operands="per_product") | {"weight": nvfp4(shape="square")},
                                  (4 + 8 / 256, 4.5)),
    "blocks of 128 with float32 scales": (
        rule({"format": "e4m3fn", "scaling": {"kind": "block", "size": 128, "scale": "real"}}), (8.25, 8.25)
    ),
    "row-wise, weight gradient uncast": (
        rule("e4m3fn", grad_weight={"input": "none", "grad_output": "none"}), (8, (8 + 8 + 32 + 32) / 4)
    ),
    "ternary weights, 8-bit inputs": ({"weight": "e0m1", "input": "e0m7"}, (2, (8 + 32 + 32 + 8) / 4)),
    "a table of values": (rule({"format": {"values": [-1, 0, 1]}}), (2, 2)),
    "a tenth of the columns in 8 bits": (
        rule(nvfp4() | {"outliers": {"kind": "columns", "largest": 0.1, "cast": MX}}), (4.5 + 0.1 * (8.25 - 4.5),) * 2
    ),
    "these in a product of their own": (
        rule(nvfp4(), grad_weight={"input": nvfp4() | {"outliers": PARTED}}),
        (4.5, 4.5 + (0.1 * (8.25 - 4.5) + 8.25) / 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_bits_of_known_recipes(name: str) -> None:
    one, (weight, token) = RULES[name]
    found = product_cost({"precision": {"rules": [{"place": "body.last(1)"}, one]}})
    assert (found.weight, found.token) == (pytest.approx(weight), pytest.approx(token))
    assert found.operand == pytest.approx((2 * weight + 4 * token) / 6)


def test_what_is_not_cast_has_the_bits_of_its_dtype_and_a_table_is_no_baseline() -> None:
    assert product_cost({"compute": "bfloat16"}).operand == 16 == product_cost({"compute": "bfloat16"}).weight
    assert product_cost({}).extra == 0 and bits_of_cast("no format", 16.0) == 16.0
    assert stored_bits({"storage": [{"kind": "stochastic", "format": "e4m3fn"}]}) == [8]
    assert least_first({}) < least_first({"precision": {"rules": [RULES["a table of values"][0]]}})


def test_extra_operations_are_those_beyond_one_cast_an_operand() -> None:
    """By hand, of a layer of 64 features on 256 tokens: 3 * 256 * 64 * 64 multiply-adds."""
    products, token, weight = 3 * 256 * 64 * 64, 256 * 64, 64 * 64

    def of(one: Mapping[str, Any]) -> Any:
        return product_cost({"precision": {"rules": [one]}}, 64.0, 256.0)

    assert of(rule("e4m3fn", "e5m2")).extra == 0
    twice = of(rule(MX, operands="per_product"))
    assert twice.casts == 3 and twice.extra == pytest.approx((2 * token + weight) / products)
    turned = of(rule(nvfp4(), operands="per_product", grad_weight={"transform": HADAMARD}))
    assert turned.transforms == {"grad_weight": 16} and turned.turned == pytest.approx(16 * 2 * token / products)
    squares = rule(nvfp4(), operands="per_product") | {"weight": nvfp4(shape="square")}
    assert of(squares).casts == 2 and of(rule("e4m3fn", operands="per_product")).casts == 0
    # A transform of one product separates its casts from the other's, shared or not.
    assert of(rule(nvfp4(), grad_weight={"transform": HADAMARD})).casts == 2
    assert of(RULES["these in a product of their own"][0]).casts == 2  # of the input, and of grad_output for them
    chosen = of(rule(nvfp4(choose=[6.0, 4.0])))
    assert chosen.casts == 3 and chosen.extra == pytest.approx(twice.extra)
    rotated = rule(nvfp4(), forward={"transform": HADAMARD})
    rotated |= {"grad_input": {"weight": nvfp4() | {"source": "forward_rotated"}}}
    assert of(rotated).turned == pytest.approx(16 * (token + weight + token) / products)  # x, W and dx turned back
    assert math.isnan(product_cost({"precision": {"rules": [rotated]}}).extra)


ARMS: dict[str, tuple[str, Any, float]] = {
    "fp32": ("", None, 0.0), "te_current": ("te_current", RULES["fp8 per tensor"][0], 0.002),
    "te_mxfp8": ("te_mxfp8", RULES["mxfp8"][0], 0.001), "te_nvfp4": ("te_nvfp4", RULES["nvfp4"][0], 0.06),
}  # fmt: skip


def write_recipes(root: Path, seeds: int = 3) -> None:
    """A project of arms that were made from recipes, with what the monitors would log."""
    for name, (recipe, one, effect) in ARMS.items():
        for seed in range(seeds):
            noise = np.random.default_rng([seed, len(name)]).normal(0, 0.001)
            tree = spec("fp32", seed=seed) | {"name": name}
            tree["model"] = tree["model"] | {"context": 32}
            if recipe:
                tree |= {"precision": {"rules": [one]}, "recipe": {"expanded": recipe}}
            run = write_run(root, tree, name=name, final=2.5 + 0.1 * seed + effect + noise, sited=False, points=10,
                            parameters=100, quantised_parameters=75)  # fmt: skip
            if recipe:
                sqnr = 20.0 if recipe == "te_nvfp4" else 32.0
                RunFiles(run).metrics(100, {
                    "products/a/forward_sqnr_db": sqnr, "products/b/forward_sqnr_db": sqnr + 1,
                    "products/a/grad_weight_sqnr_db": math.inf, "shadow/w/cosine": 0.99,
                })  # fmt: skip


def test_recipes_are_a_table_and_a_plot_of_loss_against_bits(tmp_path: Path) -> None:
    write_recipes(tmp_path)
    project = load_project(RunStore(tmp_path), "study")
    blocks = Recipes().blocks(project)
    assert not [block for block in blocks if isinstance(block, Limit)]
    figure = next(block for block in blocks if isinstance(block, Figure))
    table = next(block for block in blocks if isinstance(block, Table))
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == ["fp32", "te_nvfp4", "te_current", "te_mxfp8"], "by bits"
    assert rows["fp32"]["verdict"] == "reference" and rows["te_nvfp4"]["parameters cast"] == "75%"
    assert rows["te_nvfp4"]["bits moved, weight"] == "4.5" and rows["te_nvfp4"]["verdict"] == "worse"
    assert (
        rows["te_mxfp8"]["extra operations"] == "+2.2 % (3 casts)" != rows["te_current"]["extra operations"] == "none"
    )
    assert rows["te_nvfp4"]["y (dB)"] == "20.5" and rows["fp32"]["y (dB)"] == "–"
    found = project.comparison
    assert found is not None and not {"dx (dB)", "dW (dB)"} & set(table.header)
    dots = {text: (x, y) for mark in figure.panels[0].marks if isinstance(mark, Dots)
            for x, y, text in zip(mark.x, mark.y, mark.texts, strict=True)}  # fmt: skip
    assert dots.keys() == ARMS.keys() - {"fp32"}
    for arm, verdict in found.judged:
        assert dots[arm.name] == (pytest.approx(product_cost(arm.first.spec).operand, rel=0.02), verdict.interval.mean)


def test_a_project_without_recipes_has_no_such_section(tmp_path: Path) -> None:
    for name in ("fp32", "te_nvfp4"):
        casts = {"precision": {"rules": [] if name == "fp32" else [RULES["nvfp4"][0]]}}
        write_run(tmp_path, spec("fp32") | {"name": name} | casts, name=name, final=2.5, sited=False, points=10)
    assert Recipes().blocks(load_project(RunStore(tmp_path), "study")) == []
    note = {"expanded": "mx", "element": "e3m2", "own_rules": 1, "changed": {"weight.rounding": "stochastic"}}
    assert recipe_of({"precision": {"recipe": note}}) == "mx (element e3m2, weight.rounding stochastic)"
    mine = {"expanded": "te_current", "without": ["precision", "compute"], "besides": ["storage"]}
    assert recipe_of({"recipe": {**mine, "replaced": ["compute"]}}) == "te_current (own precision, own storage)"
    assert recipe_of({"recipe": {"name": "mx"}}) == "" == recipe_of({"precision": "none"})
