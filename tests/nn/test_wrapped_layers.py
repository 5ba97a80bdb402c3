"""Claims about what torch wraps around a layer's class: parametrisations and FSDP2, registered before or after."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import parametrizations, parametrize

from altgrad.nn import PrecisionPolicy, QuantizedLayer, casts_off, dequantize_model, quantize_model, weight_quantizers
from altgrad.nn.layers import core_of, exchanged
from altgrad.nn.linear import QuantizedLinear

POLICY = PrecisionPolicy.uniform(weight="e2m1", input="e2m1", grad_output="e5m2")


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


PARAMETRISATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "two": lambda layer: [parametrize.register_parametrization(layer, "weight", Doubled()) for _ in range(2)],
    "of the bias": lambda layer: parametrize.register_parametrization(layer, "bias", Doubled()),
    "hook: weight_norm": torch.nn.utils.weight_norm,
    "hook: spectral_norm": torch.nn.utils.spectral_norm,
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


def x() -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> list[Tensor]:
    """The output and all gradients."""
    model.zero_grad()
    y = model(x())
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_a_parametrisation_survives_casts_shadow_copies_and_taking_back(name: str, when: str) -> None:
    register, model, plain = PARAMETRISATIONS[name], network(), network()
    register(plain[2])
    if when == "before":
        register(model[2])
    quantize_model(model, POLICY)
    if when == "after":
        register(model[2])
    for each in (model.eval(), plain.eval()):  # in training spectral_norm iterates with each pass
        assert isinstance(each, nn.Sequential)
    model.load_state_dict(plain.state_dict(), strict=False)
    reference, cast = step(plain), step(model)
    assert isinstance(model[2], QuantizedLayer) and not same(cast, reference)
    with casts_off(model):
        assert same(step(model), reference) and not isinstance(model[2], QuantizedLayer)
        with casts_off(model):
            assert same(step(model), reference)
    assert same(step(model), cast)
    if "hook" not in name:  # whose non-leaf weights torch does not copy
        assert same(step(copy.deepcopy(model)), cast)
    dequantize_model(model)
    assert same(step(model), reference) and list(model.state_dict()) == list(plain.state_dict())
    assert (
        type(model[2]).__name__ == type(plain[2]).__name__ and type(model[2]).__mro__[1:] == type(plain[2]).__mro__[1:]
    )
    if "hook" not in name:
        parametrize.remove_parametrizations(model[2], "bias" if "bias" in name else "weight")
        assert type(model[2]) is nn.Linear


def test_removing_a_parametrisation_of_a_quantised_layer_leaves_it_quantised() -> None:
    for register_first in (True, False):
        model = network()
        if register_first:
            parametrizations.weight_norm(model[2])
        quantize_model(model, POLICY)
        if not register_first:
            parametrizations.weight_norm(model[2])
        before = model(x())
        parametrize.remove_parametrizations(model[2], "weight")
        assert type(model[2]) is QuantizedLinear
        torch.testing.assert_close(model(x()), before)


def test_a_weight_that_is_computed_has_no_grid_to_watch() -> None:
    model = quantize_model(network(), POLICY)
    parametrizations.weight_norm(model[2])  # type: ignore[index]
    assert list(weight_quantizers(model)) == ["0.weight"]


def test_a_parametrisation_registered_between_two_exchanges_is_in_the_second() -> None:
    model = quantize_model(network(), POLICY)
    layer = model[2]  # type: ignore[index]
    parametrize.register_parametrization(layer, "weight", Doubled())
    with casts_off(model):
        once = type(layer)
    with casts_off(model):
        assert type(layer) is once
    parametrize.register_parametrization(layer, "bias", Doubled())
    with casts_off(model):
        assert type(layer) is not once and isinstance(vars(type(layer))["bias"], property)
        model(x())


def test_what_is_no_wrapper_of_torchs_is_its_own_core() -> None:
    class Own(nn.Linear):
        def __getstate__(self) -> Any:
            return self.__dict__

    class Mixed(nn.Dropout, nn.Linear):
        pass

    for cls in (nn.Linear, QuantizedLinear, Own, Mixed, nn.Module, object):
        assert core_of(cls) is cls and exchanged(cls, nn.Linear) is nn.Linear


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(model: nn.Sequential, mesh: Any) -> nn.Sequential:
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def whole(gradients: list[Any]) -> list[Tensor]:
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # returned a view; nothing here is in place
@pytest.mark.parametrize("parametrised", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_fsdp2_survives_casts_shadow_and_taking_back(when: str, parametrised: bool, alone: Any) -> None:
    model, plain = network(), network()
    if parametrised:
        for each in (model, plain):
            parametrize.register_parametrization(each[2], "weight", Doubled())
    cast_alone = quantize_model(copy.deepcopy(plain), POLICY)
    if when == "before":
        sharded(model, alone)
    quantize_model(model, POLICY)
    if when == "after":
        sharded(model, alone)
    reference, cast = step(plain), step(cast_alone)
    for _ in range(2):
        assert isinstance(model[2], FSDPModule) and isinstance(model[2], QuantizedLayer)
        assert same(whole(step(model)), cast)
        with casts_off(model):
            assert isinstance(model[2], FSDPModule) and not isinstance(model[2], QuantizedLayer)
            assert same(whole(step(model)), reference)
    dequantize_model(model)
    assert isinstance(model[2], FSDPModule) and core_of(type(model[2])) is nn.Linear
    assert same(whole(step(model)), reference)
