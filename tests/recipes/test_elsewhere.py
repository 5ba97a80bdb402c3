"""Claims about recipes that cast more than layers: attention as Transformer Engine emulates it, norms in MX."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import commit, quantize_model, quantizers
from altgrad.nn.attention import QuantizedAttention
from altgrad.nn.attention_slots import AttentionSpec
from altgrad.recipes.book import find
from tests.recipes.vendor import slots

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Emulated(torch.autograd.Function):
    """FP8EmulationFunc of Transformer Engine's UnfusedDotProductAttention: quantised and dequantised forward, if it is
    for a tensor of forward, else backward; by torch's own float8 and a scale of max / amax."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, backward: bool) -> Tensor:
        ctx.dtype, ctx.used = dtype, backward
        return x.clone() if backward else through(x, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (through(grads[0], ctx.dtype) if ctx.used else grads[0]), None, None


def through(x: Tensor, dtype: torch.dtype) -> Tensor:
    scale = torch.finfo(dtype).max / x.abs().amax()
    return (x * scale).to(dtype).float() * (1 / scale)


def test_attention_of_transformer_engine() -> None:
    """In its order: QKV, then P behind softmax; backward dO, then the gradient of the scaled scores. One scale serves
    query, key and value there, so here they have one amax. A step later the amaxes are the history's."""
    rule = find("te_fp8_attention").expansion().run["precision"]["rules"][0]
    ours = QuantizedAttention(AttentionSpec.made_from(rule["attention"]), "site", 0)
    assert {name: str(spec.format) for name, spec in ours.spec.chosen().items()} == {
        "query": "e4m3fn", "key": "e4m3fn", "value": "e4m3fn", "probabilities": "e4m3fn", "grad_output": "e5m2",
        "grad_scores": "e5m2",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    given = [torch.randn(2, 4, 16, 8, generator=generator).clamp_(-3, 3) for _ in range(3)]
    for x in given:
        x.view(-1)[7] = 3.25
    gradient = torch.randn(2, 4, 16, 8, generator=generator)
    ahead = torch.ones(16, 16, dtype=torch.bool).triu(1)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (Emulated.apply(x, E4M3, False) for x in (q, k, v))  # type: ignore[no-untyped-call]
        scores = Emulated.apply(q @ k.mT * 8**-0.5, E5M2, True)  # type: ignore[no-untyped-call]
        p = Emulated.apply(torch.softmax(scores.masked_fill(ahead, -10_000.0), -1), E4M3, False)  # type: ignore[no-untyped-call]
        made: Tensor = Emulated.apply(p @ v, E5M2, True)  # type: ignore[no-untyped-call]
        return made

    def grads(run: Any) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in given]
        y = run(*inputs)
        y.backward(gradient)
        return [y.detach(), *(x.grad for x in inputs if x.grad is not None)]

    expected = grads(theirs)
    for _ in range(2):
        for made, wanted in zip(grads(lambda *qkv: ours(*qkv, causal=True)), expected, strict=True):
            torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)
        commit(ours)


@pytest.mark.parametrize("element", ["e4m3fn", "e2m1"])
def test_norms_in_mx(element: str) -> None:
    """A norm's weight has the cast of the body's, which the recordings of microxcaling prove; near 1 it loses what the
    paper names: of weights in (0.9, 1) all that lie beyond the largest value of the block become it."""
    body = slots("mx_norms", element=element)["forward.weight"]
    norm = nn.LayerNorm(64, bias=False)
    rules = find("mx_norms").expansion(element=element).run["precision"]["rules"][:1]
    (cast,) = quantizers(quantize_model(nn.Sequential(norm), {"rules": rules}))
    assert cast.spec == body
    with torch.no_grad():
        dict(norm.named_parameters())["weight"].copy_(torch.linspace(0.9, 0.999, 64))
    top = {"e4m3fn": 0.875, "e2m1": 0.75}[element]  # 448 / 512 and 6 / 8 of the power of two above
    assert norm.weight.unique().tolist() == [top]
