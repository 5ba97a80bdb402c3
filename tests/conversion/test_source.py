"""Claims about choosing tensors by name alone: a file's names answer a policy as a model's modules would."""

from pathlib import Path

import pytest
from torch import nn

from altgrad.conversion.source import Source, casts_by_name
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.nn.layers import EMBEDDINGS, HEADS
from altgrad.training.weights import StoredTensor

EVERYTHING = PrecisionPolicy.uniform(weight="e3m4")


def tensors(*names: str, shape: tuple[int, ...] = (4, 4)) -> list[StoredTensor]:
    return [StoredTensor(name, "F32", shape, Path("m.safetensors")) for name in names]


def test_names_are_decided_as_the_modules_of_the_model_are() -> None:
    model = nn.Module()
    model.body = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.LayerNorm(2))
    model.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(2, 2)}) for _ in range(12)])
    rules = [("layers.last.*", "none"), ("*.first*", "e3m4"), ("layers.1*", "e5m2"), ("body.*", "e2m1")]
    policy = PrecisionPolicy.model_validate({"rules": [{"match": match, "weight": fmt} for match, fmt in rules]})
    expected = {
        f"{found.name}.weight": found.precision.slots["forward", "weight"]
        for found in policy.decide(model)
        if found.precision is not None and found.precision.slots["forward", "weight"] is not None
    }
    stored = [StoredTensor(name, "F32", tuple(p.shape), Path("m")) for name, p in model.named_parameters()]
    assert {name: cast.spec for name, cast in casts_by_name(stored, policy).items()} == expected
    assert len(expected) == 5


@pytest.mark.parametrize(
    "name",
    [
        "transformer.wte", "transformer.wpe", "model.embed_tokens", "embeddings.word_embeddings", "shared", "positions",
        "encoder.block.0.attn.relative_attention_bias", "lm_head", "head", "classifier", "model.score",
    ],
)  # fmt: skip
def test_tables_and_heads_are_known_by_name(name: str) -> None:
    found = casts_by_name(tensors(f"{name}.weight", "a.q.weight"), EVERYTHING, without=(*EMBEDDINGS, *HEADS))
    assert found.keys() == {"a.q.weight"}


def test_modules_may_be_called_what_torch_calls_its_methods() -> None:
    names = ["type.weight", "a.forward.half.weight", "7.x.weight", "99999999.weight", "a.weight"]
    assert casts_by_name(tensors(*names), EVERYTHING).keys() == set(names)


def test_a_tensor_without_a_module_is_the_weight_of_the_whole() -> None:
    assert casts_by_name(tensors("weight"), EVERYTHING).keys() == {"weight"}


def test_convolutions_and_tokens_of_three_axes_are_left_alone() -> None:
    names = ["feature.conv.weight", "cls_token", "mixer.conv1d.weight"]
    mixed = [*tensors(*names, shape=(2, 3, 4)), *tensors("q.weight")]
    assert casts_by_name(mixed, EVERYTHING).keys() == {"q.weight"}


@pytest.mark.parametrize(("shape", "reduced"), [((8, 24), "first"), ((24, 8), "last")])
def test_the_fused_projection_tells_conv1d_from_linear(shape: tuple[int, int], reduced: str) -> None:
    stored = [*tensors("h.0.attn.c_attn.weight", shape=shape), *tensors("h.0.attn.c_proj.weight", "other.weight")]
    found = {name: cast.reduced for name, cast in casts_by_name(stored, EVERYTHING).items()}
    assert found == {"h.0.attn.c_attn.weight": reduced, "h.0.attn.c_proj.weight": reduced, "other.weight": "last"}


def test_a_weight_that_is_a_sum_of_two_casts_is_refused_in_a_line() -> None:
    policy = PrecisionPolicy.uniform(weight={"format": "e2m1", "outliers": "columns"})  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(64, 8))
    said = "^0: weights at rest have one code for an element, and outliers: columns makes them a sum of two .*out.$"
    with pytest.raises(ValueError, match=said):
        Source.of(model).casts(policy)
    with pytest.raises(ValueError, match=said):
        Source.of(quantize_model(model, policy)).own_casts()
