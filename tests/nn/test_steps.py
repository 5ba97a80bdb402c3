"""Claims about optimizer steps of models with casts, without any monitor: closures, and commits that never come."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad.nn import closure_of, with_closure
from altgrad.optim import SGD
from altgrad.quantize import Quantizer
from altgrad.quantize.scaling import ScalingSpec

STOCHASTIC = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}


def network(cast: Any = STOCHASTIC) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    return altgrad.quantize_model(net, altgrad.PrecisionPolicy.uniform(weight=cast, input=cast, grad_output=cast))


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


class Repeating(torch.optim.SGD):
    """Evaluates its closure `times` times at the same weights, as a line search of length 0 would."""

    times = 3

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                for _ in range(self.times):
                    closure()
        return super().step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, SGD, Repeating, torch.optim.LBFGS])
def test_a_closure_is_one_function_and_counts_once(kind: Any) -> None:
    """However often it is evaluated at some weights it gives the same loss, and buffers are those of one evaluation."""
    net, once = network(), network()
    options = {"max_iter": 4, "line_search_fn": "strong_wolfe"} if kind is torch.optim.LBFGS else {}
    optimizer = kind(net.parameters(), lr=0.1, **options)
    x = torch.randn(16, 8)
    weights: list[Tensor] = []
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        weights.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    once(x).square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(buffers(net).values(), buffers(once).values(), strict=True))
    assert len(losses) == {Repeating: 3, torch.optim.SGD: 1, SGD: 1}.get(kind, len(losses)) and len(losses) > 0
    for w, loss in zip(weights, losses, strict=True):
        assert loss == losses[0] or not torch.equal(w, weights[0])


def test_a_closure_goes_on_where_the_step_stands() -> None:
    """As in Lightning: three micro-batches before, the fourth in the closure."""
    found = []
    for closed in (False, True):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        batches = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0))

        def last(net: nn.Module = net, x: Tensor = batches[3]) -> Tensor:
            loss: Tensor = net(x).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for x in batches[:3]:
            net(x).square().mean().backward()
        if closed:
            optimizer.step(last)  # type: ignore[arg-type]
        else:
            last()
            optimizer.step()
        found.append({**buffers(net), **dict(net.named_parameters())})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_step_was_called_with_keeps_its_form() -> None:
    def one() -> None: ...
    def two() -> None: ...

    assert closure_of(("self",), {}) is None and closure_of(("self", None), {}) is None
    assert closure_of(("self", one), {}) is one and closure_of(("self",), {"closure": one}) is one
    assert with_closure(("self", one, 3), {"a": 1}, two) == (("self", two, 3), {"a": 1})
    assert with_closure(("self",), {"closure": one}, two) == (("self",), {"closure": two})


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "altgrad"]


def train(net: nn.Module, commit: Callable[[int], bool], steps: int = 4, optimizers: int = 1) -> None:
    made = [torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(optimizers)]
    for step in range(steps):
        net(torch.randn(16, 8)).square().mean().backward()
        for optimizer in made:
            optimizer.step()
        if commit(step):
            altgrad.commit(net)


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("scaling", ScalingSpec.kinds())
def test_a_commit_that_never_comes_is_said_once_at_the_second_step(
    scaling: str, rounding: str, caplog: pytest.LogCaptureFixture
) -> None:
    needed = {"fixed": {"kind": "fixed", "scale": 1.0}}
    try:
        net = network({"format": "e4m3fn", "rounding": rounding, "scaling": needed.get(scaling, scaling)})
    except ValueError as error:
        pytest.skip(f"a scaling that asks for more: {error}")
    with caplog.at_level(logging.WARNING, "altgrad"):
        train(net, lambda step: False)
    wanted = int(scaling == "delayed" or rounding == "stochastic")
    assert len(said(caplog)) == wanted
    assert all("altgrad.commit(model) was never called" in line for line in said(caplog))


def test_a_loop_that_commits_is_not_told_whenever_it_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "altgrad"):
        train(network(), lambda step: True)
        train(network(), lambda step: True, optimizers=2)
        frozen = network().eval()
        train(frozen, lambda step: False)
        net = network()
        altgrad.dequantize_model(net)
        train(net, lambda step: False)
        train(nn.Linear(8, 4), lambda step: False)
    assert said(caplog) == []


def test_adapters_beside_frozen_layers_need_the_commit_too(caplog: pytest.LogCaptureFixture) -> None:
    """The optimizer has none of the quantised layers' parameters, as with LoRA."""
    net = network().requires_grad_(False)
    net.append(nn.Linear(4, 4))
    with caplog.at_level(logging.WARNING, "altgrad"):
        train(net, lambda step: False)
    assert len(said(caplog)) == 1


def test_a_step_holds_no_model_alive() -> None:
    import gc
    import weakref

    net = network()
    train(net, lambda step: True, steps=2)
    watched = weakref.ref(next(m for m in net.modules() if isinstance(m, Quantizer)))
    del net
    gc.collect()
    assert watched() is None
