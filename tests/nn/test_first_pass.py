"""Claims about the first pass of a quantised model: a product that bypasses a layer's forward is refused by name."""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from altgrad.nn import PrecisionPolicy, QuantizedLayer, casts_off, dequantize_model, quantize_model
from altgrad.nn.first_pass import end_proof

MODES = [(True, True), (False, False), (False, True)]


class Pair(nn.Module):
    """Two layers; what is done with the second is the test's."""

    def __init__(self, use: Callable[["Pair", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.use = nn.Linear(8, 8), nn.Linear(8, 8), use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, self.one(x))


def pair(use: Callable[[Pair, Tensor], Any], training: bool = True) -> Pair:
    casts: Any = {"weight": "e4m3fn", "input": "e4m3fn"}
    model = quantize_model(Pair(use), PrecisionPolicy.uniform(**casts)).train(training)
    assert isinstance(model, Pair)
    return model


def x() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


BYPASSES: dict[str, Callable[[Pair, Tensor], Tensor]] = {
    "linear": lambda m, h: F.linear(h, m.two.weight, m.two.bias),
    "@": lambda m, h: h @ m.two.weight.T,
    "of a view": lambda m, h: torch.matmul(h, m.two.weight.t().contiguous()),
    "of a copy": lambda m, h: h.mm(m.two.weight.to(torch.bfloat16).float()),
    "of no copy": lambda m, h: F.linear(h, m.two.weight.type(torch.float32).to(h.dtype).contiguous()),
    "by Tensor": lambda m, h: torch.Tensor.matmul(h, torch.Tensor.t(m.two.weight)),
    "of a detached": lambda m, h: h @ m.two.weight.detach()[:, :8].T,
    "stacked": lambda m, h: torch.stack([h, h]).bmm(torch.stack([m.two.weight, m.two.weight])),
    "of data": lambda m, h: torch.addmm(m.two.bias, h, m.two.weight.data.mT),
    "of a piece": lambda m, h: torch.einsum("bi,oi->bo", h, torch.chunk(m.two.weight, 2)[0]),
    "of both, joined": lambda m, h: F.linear(h, torch.cat([m.two.weight, m.one.weight])),
    "scaled": lambda m, h: F.linear(h, m.two.weight * 0.5),
    "by getattr": lambda m, h: F.linear(h, getattr(m, "two").weight),  # noqa: B009
    "as a convolution": lambda m, h: F.conv1d(h[..., None], m.two.weight[..., None]),
    "attention's": lambda m, h: F.scaled_dot_product_attention(h[None], m.two.weight[None], m.two.weight[None]),
}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", BYPASSES)
def test_a_product_around_the_forward_is_refused_in_every_mode(name: str, mode: tuple[bool, bool]) -> None:
    training, grad = mode
    model = pair(BYPASSES[name], training)
    for _ in range(2):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError) as caught:
            model(x())
        said = str(caught.value)
        assert said.startswith("two is quantised, but its forward does not run:") and "\n" not in said
        assert "test_first_pass.py:" in said and "{match: two}" in said
    untouched(model)


def test_the_rule_that_is_named_cures_it() -> None:
    model = dequantize_model(pair(BYPASSES["linear"]))
    quantize_model(model, {"rules": [{"match": "two"}, {"match": "*", "weight": "e4m3fn"}]})
    for mode in MODES:
        with torch.set_grad_enabled(mode[1]):
            model.train(mode[0])(x())


HARMLESS: dict[str, Callable[[Pair, Tensor], Any]] = {
    "asks for the dtype": lambda m, h: m.two(h.to(m.two.weight.dtype)),
    "asks for it without running": lambda m, h: h.to(m.two.weight.dtype).view(-1, m.two.weight.shape[1]),
    "penalises the norm": lambda m, h: m.two(h) + m.two.weight.norm() + m.two.weight.square().sum(),
    "touches what does not run": lambda m, h: h + 0 * m.two.weight.sum() + 0 * sum(p.sum() for p in m.parameters()),
    "column norms, as DoRA's": lambda m, h: m.two(h) / torch.linalg.norm(m.two.weight, dim=1),
    "has nothing to do for it": lambda m, h: h,
    "calls it functionally": lambda m, h: torch.func.functional_call(m.two, dict(m.two.named_parameters()), (h,)),
    "checks its type": lambda m, h: m.two(h) if isinstance(m.two.weight, nn.Parameter) else None,
    "recomputes": lambda m, h: torch.utils.checkpoint.checkpoint(m.two, h, use_reentrant=False),
}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", HARMLESS)
def test_nothing_is_said_of_a_weight_that_is_only_looked_at(name: str, mode: tuple[bool, bool]) -> None:
    model = pair(HARMLESS[name], mode[0])
    with torch.set_grad_enabled(mode[1]):
        first, second = model(x()), model(x())
    assert first is not None and torch.equal(first, second)
    untouched(model)


def test_a_product_beside_the_forward_is_a_warning_and_moves_no_bit() -> None:
    model = pair(lambda m, h: m.two(h) @ m.two.weight)
    unwatched = copy.deepcopy(model)
    end_proof(unwatched)
    with pytest.warns(
        UserWarning, match=r"two: the layer's forward is cast, but matmul at test_first_pass.py:\d+ multiplies"
    ):
        model(x()).sum().backward()
    unwatched(x()).sum().backward()
    for p, q in zip(model.parameters(), unwatched.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)


def untouched(model: nn.Module) -> None:
    """After a pass nothing of the watching is left in a layer."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            assert "forward" not in vars(module) and type(vars(module)["_parameters"]) is dict
            assert all(type(p) is nn.Parameter for p in module.parameters())


def test_a_pass_that_fails_leaves_nothing_and_proves_nothing() -> None:
    def fails(m: Pair, h: Tensor) -> Tensor:
        if m.failing:
            raise KeyError("mine")
        return F.linear(h, m.two.weight)

    model = pair(fails)
    model.failing = True  # type: ignore[assignment]
    with pytest.raises(KeyError, match="mine"):
        model(x())
    untouched(model)
    model.failing = False  # type: ignore[assignment]
    with pytest.raises(ValueError, match="two is quantised"):
        model(x())


def test_a_pass_that_was_interrupted_is_over_when_the_next_begins() -> None:
    calls: list[int] = []

    def interrupted(m: Pair, h: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return m.two(h)

    model = pair(interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(x())
    assert type(model.two.weight) is nn.Parameter
    model(x())
    untouched(model)


def test_a_model_that_calls_itself_is_watched_to_the_end() -> None:
    def twice(m: Pair, h: Tensor) -> Tensor:
        m.use = lambda m, h: m.two(h)
        return F.linear(m(h), m.two.weight)

    with pytest.warns(UserWarning, match="two: the layer's forward is cast, but linear at"):
        pair(twice)(x())


@pytest.mark.parametrize("called", ["whole", "part"])
def test_parts_are_proved_where_the_model_itself_is_never_called(called: str) -> None:
    model = nn.ModuleDict({"part": Pair(BYPASSES["linear"]), "head": nn.Linear(8, 2)})
    model.forward = lambda x: model["head"](model["part"](x))  # type: ignore[assignment]
    quantize_model(model, PrecisionPolicy.uniform(weight="e4m3fn"))
    with pytest.raises(ValueError, match=r"^part.two is quantised, but its forward does not run"):
        model(x()) if called == "whole" else model["head"](model["part"](x()))
    for module in model.modules():
        untouched(module)
    model["part"].use = HARMLESS["penalises the norm"]
    for mode in MODES:
        with torch.set_grad_enabled(mode[1]):
            model.train(mode[0])(x())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_after_both_modes_no_hook_is_left() -> None:
    model = pair(lambda m, h: m.two(h))
    with casts_off(model):
        model(x())
    assert model._forward_hooks and model._forward_pre_hooks
    model(x())
    with torch.no_grad():
        model.eval()(x())
    assert not model._forward_hooks and not model._forward_pre_hooks and not model._forward_hooks_always_called
    gc.collect()


def test_a_compiled_model_is_one_graph() -> None:
    model = pair(lambda m, h: m.two(h))
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dynamo itself
        compiled = torch.compile(model, fullgraph=True, backend="eager")(x())
    assert torch.equal(compiled, pair(lambda m, h: m.two(h))(x()))
    torch.compiler.reset()


def test_a_forward_set_on_the_object_is_refused_before_and_after() -> None:
    """As accelerate does for device_map: no class would reach what runs."""
    model = Pair(lambda m, h: m.two(h))
    own = model.two.forward
    model.two.forward = lambda x: own(x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="two has a forward of its own, set on the object"):
        quantize_model(model, PrecisionPolicy.uniform(weight="e4m3fn"))
    model.two.forward = own  # type: ignore[method-assign]
    plain = model(x())
    cast = quantize_model(model, PrecisionPolicy.uniform(weight="e4m3fn"))(x())
    assert not torch.equal(cast, plain) and "forward" not in vars(model.two)
    again = model.two.forward
    model.two.forward = lambda x: again(x)  # type: ignore[method-assign]
    assert torch.equal(model(x()), cast)
    for attempt in (lambda: dequantize_model(model), lambda: casts_off(model).__enter__()):
        with pytest.raises(ValueError, match="two has a forward of its own, set on the object"):
            attempt()
    model.two.forward = again  # type: ignore[method-assign]
    with casts_off(model):
        assert torch.equal(model(x()), plain)
    assert torch.equal(dequantize_model(model)(x()), plain)
