"""Claims about passes: forwards that run again see the same random bits and count nothing, whoever runs them again.

The reference is always the same step without that: equal outputs, gradients, buffers and what observers saw.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from altgrad.nn import PrecisionPolicy, commit, quantize_model, quantizers, unrecorded
from altgrad.quantize import Cast, ScalingSpec

SCALINGS = sorted(ScalingSpec.kinds())
MODES = (True, False)
Run = Callable[[nn.Module, Tensor], Tensor]


def network(scaling: str = "delayed") -> nn.Module:
    torch.manual_seed(0)
    spec = {"format": "e2m1" if scaling == "nvfp4" else "e4m3fn", "rounding": "stochastic", "scaling": scaling}
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    return quantize_model(net, PrecisionPolicy.uniform(weight=spec, input=spec, grad_output=spec))


def plain(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


def checked(reentrant: bool) -> Run:
    return lambda net, x: checkpoint(net, x, use_reentrant=reentrant)


def twice(run: Run) -> Run:
    """One layer used twice, each use in a region of its own."""
    return lambda net, x: run(net, run(net, x))


def one_region(reentrant: bool | None) -> Run:
    """One layer used twice within one region."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        def both(x: Tensor) -> Tensor:
            return net(net(x))

        return both(x) if reentrant is None else checkpoint(both, x, use_reentrant=reentrant)

    return forward


def nested(outer: bool, inner: bool) -> Run:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(lambda x: checkpoint(net, x, use_reentrant=inner), x, use_reentrant=outer)

    return forward


class TwoPhases(torch.autograd.Function):
    """What libraries with a checkpoint of their own do: forward without a graph, and again within backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, net: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.net = net
        return net(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.net(x)
        y.backward(grads[0])
        return x.grad, None


def step(run: Run, scaling: str = "delayed", micro_batches: int = 2) -> tuple[list[Tensor], list[Any]]:
    """Two optimizer steps of so many micro-batches: every number that came of them, and what observers saw."""
    net, found, seen = network(scaling), [], []

    def see(cast: Cast) -> None:
        seen.append((cast.site, cast.rounded.clone()))

    for quantizer in quantizers(net):
        quantizer.watching = True
        quantizer.observers.append(see)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for _ in range(micro_batches):
            x = torch.randn(4, 8, generator=generator).requires_grad_()
            y = run(net, x)
            y.square().sum().backward()
            assert x.grad is not None
            found += [y.detach(), x.grad]
        commit(net)
    found += [p.grad for p in net.parameters() if p.grad is not None] + [b.clone() for b in net.buffers()]
    # Reentrant regions run their casts in another order; a site's own order is what counts.
    return found, sorted(seen, key=lambda entry: entry[0])


def assert_same(a: tuple[list[Tensor], list[Any]], b: tuple[list[Tensor], list[Any]], sums: float = 0.0) -> None:
    """sums: how far the parameters' gradients may be apart, where uses of a layer add up in another order."""
    assert len(a[0]) == len(b[0])
    for i, (x, y) in enumerate(zip(a[0], b[0], strict=True)):
        near = torch.allclose(x, y, atol=sums, rtol=0) if x.is_floating_point() else torch.equal(x, y)
        assert near, f"tensor {i} differs by {(x.double() - y.double()).abs().max()}"
    assert [site for site, _ in a[1]] == [site for site, _ in b[1]]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(a[1], b[1], strict=True))


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_checkpointed_step_is_the_step(scaling: str, reentrant: bool) -> None:
    assert_same(step(plain, scaling), step(checked(reentrant), scaling))


@pytest.mark.parametrize("reentrant", MODES)
def test_a_layer_used_twice_repeats_each_use(reentrant: bool) -> None:
    assert_same(step(twice(plain)), step(twice(checked(reentrant))), sums=2e-6 if reentrant else 0)
    assert_same(step(one_region(None)), step(one_region(reentrant)))


@pytest.mark.parametrize("outer", MODES)
@pytest.mark.parametrize("inner", MODES)
def test_regions_within_regions(outer: bool, inner: bool) -> None:
    assert_same(step(plain), step(nested(outer, inner)))


def test_a_checkpoint_of_another_library() -> None:
    assert_same(step(plain), step(lambda net, x: TwoPhases.apply(x, net)))


@pytest.mark.parametrize("reentrant", MODES)
def test_backward_of_an_earlier_micro_batch_after_a_later_forward(reentrant: bool) -> None:
    """As in pipelines: forwards of two micro-batches, then their backwards in the same order."""

    def ahead(run: Run) -> list[Tensor]:
        net = network()
        xs = [torch.randn(4, 8, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in range(2)]
        losses = [run(net, x).square().sum() for x in xs]
        for loss in losses:
            loss.backward()
        return [x.grad for x in xs if x.grad is not None] + [b.clone() for b in net.buffers()]

    for a, b in zip(ahead(plain), ahead(checked(reentrant)), strict=True):
        assert torch.equal(a, b)


def test_backward_twice_through_one_region() -> None:
    def both(run: Run) -> list[Tensor]:
        net, x = network(), torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = run(net, x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return [x.grad] if x.grad is not None else []

    assert torch.equal(both(plain)[0], both(checked(False))[0])


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_replay_repeats_the_passes_of_its_step(mode: bool | None) -> None:
    """Two micro-batches, then both again without a trace: the same outputs and gradients."""
    net = network()
    run = plain if mode is None else checked(mode)
    xs = [torch.randn(4, 8, requires_grad=True) for _ in range(2)]

    def once() -> list[Tensor]:
        found = []
        for x in xs:
            x.grad = None
            y = run(net, x)
            y.square().sum().backward()
            assert x.grad is not None
            found += [y.detach(), x.grad]
        return found

    for _ in range(2):  # in the second step there is a history
        first, before = once(), [b.clone() for b in net.buffers()]
        with unrecorded(net):
            again = once()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
        commit(net)


def test_evaluation_counts_nothing() -> None:
    net = network()
    net(torch.randn(4, 8)).sum().backward()
    before = [b.clone() for b in net.buffers()]
    with torch.no_grad():
        first, second = net(torch.ones(4, 8)), net(torch.ones(4, 8))
    assert torch.equal(first, second)
    with torch.no_grad():  # a region that will not run again
        x = torch.ones(4, 8, requires_grad=True)
        assert torch.equal(checkpoint(net, x, use_reentrant=True), first)
    net.eval()(torch.ones(4, 8)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_a_copy_is_not_watched() -> None:
    net = network()
    for quantizer in quantizers(net):
        quantizer.watching, quantizer.observers = True, [lambda cast: pytest.fail(cast.site)]
    copy.deepcopy(net)(torch.randn(4, 8)).sum().backward()
