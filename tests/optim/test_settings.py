"""Claims about settings: an optimizer's spec and class name the same ones; defaults differ where torch's do."""

import inspect

import pytest

from altgrad.optim.optimizer import OptimizerSpec

OF_TORCH = {
    "adamw": {"betas", "weight_decay"}, "manifold_adamw": {"betas", "weight_decay"}, "sgd": {"momentum"},
    "grid_optim": {"lr"}, "madam": set(), "lion": set(), "muon": {"weight_decay"},
}  # fmt: skip
"""Defaults that a class has from torch's class of its name, and its spec has not (GridOptim: a whole rung)."""


@pytest.mark.parametrize("kind", OptimizerSpec.kinds())
def test_a_spec_and_its_class_have_the_same_settings(kind: str) -> None:
    spec = OptimizerSpec.kinds()[kind]
    taken = inspect.signature(spec.product()).parameters
    fields = {name: info for name, info in spec.model_fields.items() if name not in ("groups", "states")}
    assert fields.keys() - taken.keys() == set()
    differ = {name for name, info in fields.items() if str(taken[name].default) != str(info.default)}
    assert differ == OF_TORCH[kind]
