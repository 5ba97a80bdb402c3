"""Madam against its formula in float64 numpy; its signs never change, its zeros never move and are counted."""

import numpy
import pytest
import torch

from altgrad.optim import Madam


def reference(w: numpy.ndarray, gradients: list[numpy.ndarray], lr: float, clip: float, bound: float) -> numpy.ndarray:
    v, limit = numpy.zeros_like(w), bound * numpy.sqrt((w**2).mean())
    for step, g in enumerate(gradients, 1):
        v = 0.999 * v + 0.001 * g**2
        with numpy.errstate(invalid="ignore"):
            ratio = g / numpy.sqrt(v / (1 - 0.999**step))
        ratio = numpy.clip(numpy.nan_to_num(ratio), -clip, clip)
        w = w * numpy.exp(-lr * numpy.sign(w) * ratio)
        w = numpy.clip(w, -limit, limit)
    return w


@pytest.mark.parametrize("settings", [(1e-2, 10.0, 3.0), (0.2, 0.5, 1.5)])
def test_madam_follows_its_formula(settings: tuple[float, float, float]) -> None:
    lr, clip, bound = settings
    torch.manual_seed(0)
    w = torch.randn(300, dtype=torch.float32)
    w[:5] = 0
    gradients = [torch.randn(300) * (torch.arange(300) > 20) for _ in range(40)]
    p = torch.nn.Parameter(w.clone())
    optimizer = Madam([p], lr=lr, clip=clip, bound=bound)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        assert torch.equal(p.grad, g)
    expected = reference(w.double().numpy(), [g.double().numpy() for g in gradients], lr, clip, bound)
    assert numpy.allclose(p.detach().numpy(), expected, rtol=1e-4, atol=0)
    assert torch.equal(p.sign(), w.sign())
    assert optimizer.zero_weights() == 5
    assert p.abs().max() <= bound * w.square().mean().sqrt() * (1 + 1e-6)


@pytest.mark.parametrize("bad", [{"beta": 1.0}, {"clip": 0.0}, {"bound": -1.0}])
def test_values_out_of_range_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Madam, group 0: {next(iter(bad))} is "):
        Madam([torch.nn.Parameter(torch.ones(3))], **bad)  # type: ignore[arg-type]
