"""Claims about letting live casts enter another format."""

import pytest
import torch
from torch import nn

from altgrad.formats import FloatFormat
from altgrad.nn import PrecisionPolicy, change_formats, commit, quantize_model, quantizers

FINER = FloatFormat.parse("e3m4fn")


def network(fmt: str, scaling: str = "delayed") -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    spec = {"format": fmt, "scaling": scaling, "rounding": "stochastic"}
    return quantize_model(net, PrecisionPolicy.uniform(weight=spec, input=spec, grad_output=spec))


def step(net: nn.Module, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(32, 8)
    y = net(x)
    found = [y.detach(), *torch.autograd.grad(y.square().mean(), list(net.parameters()))]
    commit(net)
    return found


@pytest.mark.parametrize("scaling", ["delayed", "current", "unscaled"])
def test_a_changed_model_computes_as_one_that_began_so_but_for_random_bits_used_up(scaling: str) -> None:
    changed, fresh = network("e4m3fn", scaling), network("e3m4fn", scaling)
    for seed in range(3):
        step(changed, seed)
    change_formats(changed, {quantizer.site: FINER for quantizer in quantizers(changed)})
    for ours, theirs in zip(quantizers(changed), quantizers(fresh), strict=True):
        theirs.counter.copy_(ours.counter)
    for seed in range(3, 6):
        assert all(torch.equal(a, b) for a, b in zip(step(changed, seed), step(fresh, seed), strict=True))
    assert changed[0].precision == fresh[0].precision


def test_other_casts_keep_their_history() -> None:
    net = network("e4m3fn")
    step(net, 0)
    history = {quantizer.site: quantizer.scaling.amax_history.clone() for quantizer in quantizers(net)}
    change_formats(net, {"0/input": FINER})
    for quantizer in quantizers(net):
        changed = quantizer.site == "0/input"
        assert (quantizer.spec.format == FINER) == changed
        expected = torch.zeros_like(history[quantizer.site]) if changed else history[quantizer.site]
        assert torch.equal(quantizer.scaling.amax_history, expected)


def test_a_site_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="7/input is not a cast of this model"):
        change_formats(network("e4m3fn"), {"7/input": FINER})
