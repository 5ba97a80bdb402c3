"""Claims about every discovered monitor in a loop of one's own: a pass counts once, however often forward runs.

The same step is taken plainly, with its activations checkpointed in both of torch's forms, and as a closure; in one
micro-batch and in several. Casts are stochastic and scales delayed, so a pass that counts twice, or takes other random
bits when it is computed again, changes the numbers.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import altgrad
from altgrad.monitors import CastMonitor, MonitorSpec
from altgrad.optim import AdamW

KINDS = list(MonitorSpec.kinds())
CAST_KINDS = [kind for kind in KINDS if isinstance(MonitorSpec.of(kind).build(), CastMonitor)]
CAST = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}
APART: dict[str, Any] = {"outliers": {"kind": "elements", "quantile": 0.9}}
SUMS: dict[str, Any] = {"accumulator": "hopper_fast"}
POLICY = {
    "weight": CAST,
    "input": {**CAST, **APART},
    "grad_output": {**CAST, "format": "e5m2"},
    "grad_input": SUMS,
}
WAYS = ("closure", "non-reentrant", "reentrant")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "ours": lambda p: AdamW(p, lr=1e-2, storage={"kind": "stochastic", "format": "e4m3fn"}),
}
Seen = tuple[dict[str, float], list[list[str]], dict[str, Tensor]]


class Blocks(nn.Module):
    """A layer, and two that are a checkpointed region if `way` names a form of checkpointing."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Linear(8, 16)
        self.region = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.way not in ("reentrant", "non-reentrant"):
            return self.region(h)  # type: ignore[no-any-return]
        return checkpoint(self.region, h, use_reentrant=self.way == "reentrant")  # type: ignore[no-any-return]


@cache
def taken(way: str, micro_batches: int, optimizer: str, steps: int = 3) -> Seen:
    """Metrics of the last step, alarms of all, and what became of weights and buffers."""
    torch.manual_seed(0)
    net = Blocks(way)
    altgrad.quantize_model(net, altgrad.PrecisionPolicy.uniform(**POLICY))
    made = OPTIMIZERS[optimizer](net.parameters())
    batches = torch.randn(steps, micro_batches, 12, 8, generator=torch.Generator().manual_seed(1))
    step = 0

    def losses() -> Iterator[Tensor]:
        for x in batches[step]:
            yield net(x).square().mean() / micro_batches

    watch = altgrad.watch(net, made, [{"kind": kind, "every": 1} for kind in KINDS], replay=losses)
    alarms = []

    def backward() -> Tensor:
        made.zero_grad()
        total = torch.zeros(())
        for loss in losses():
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    while step < steps:
        if way == "closure":
            made.step(backward)  # type: ignore[arg-type]
        else:
            backward()
            made.step()
        altgrad.commit(net)
        alarms.append([*map(str, watch.alarms), *watch.notices])
        step += 1
    return dict(watch.metrics), alarms, {name: t.clone() for name, t in net.state_dict().items()}


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("micro_batches", [1, 6])
@pytest.mark.parametrize("way", WAYS)
def test_however_a_step_is_computed_it_is_one_step(way: str, micro_batches: int, optimizer: str) -> None:
    _, alarms, state = taken("plain", micro_batches, optimizer)
    _, others, other = taken(way, micro_batches, optimizer)
    assert others == alarms
    assert state.keys() == other.keys() and [n for n in state if not torch.equal(state[n], other[n])] == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_monitor_says_the_same_however_a_step_is_computed(kind: str, way: str, optimizer: str) -> None:
    for micro_batches in (1, 6):
        plain, other = (taken(each, micro_batches, optimizer)[0] for each in ("plain", way))
        own, others = ({k: v for k, v in m.items() if k.startswith(f"{kind}/")} for m in (plain, other))
        assert own.keys() == others.keys() and bool(own) == (kind != "finite")
        assert [(key, own[key], others[key]) for key in own if not same(own[key], others[key])] == []
        if kind == "gsnr" and micro_batches > 1:
            assert all(math.isfinite(value) for key, value in own.items() if key.endswith("/pooled"))


def routed(rows: int | None) -> tuple[Any, nn.Module, Callable[[], None]]:
    """Two experts, of which the second gets so many rows, or (None) no call."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])
    altgrad.quantize_model(
        net,
        altgrad.PrecisionPolicy.uniform(
            weight="e4m3fn", input={"format": "e4m3fn", **APART}, grad_output="e5m2", grad_input=SUMS
        ),
    )
    x = torch.randn(16, 8, requires_grad=True)  # so that grad_input is computed

    def loss() -> Tensor:
        first, second = net
        out: Tensor = first(x).square().sum()
        return out if rows is None else out + second(x[:rows]).square().sum()

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    watch = altgrad.watch(net, optimizer, [{"kind": kind, "every": 1} for kind in KINDS], replay=loss)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return watch, net, step


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_without_a_pass_reports_nothing(kind: str) -> None:
    """An expert without a token: no cast, no gradient, no update; only what looks at weights as such speaks of it."""
    watch, _, step = routed(None)
    of_weights = {"alignment", "codes", "rank", "stiffness", "optimizer_state"}
    for _ in range(4):
        step()
        seen = [key for key in watch.metrics if key.startswith((f"{kind}/1/", f"{kind}/1."))]
        assert kind in of_weights or seen == []
        assert [alarm for alarm in watch.alarms if alarm.site.startswith("1/")] == []
    assert kind == "finite" or any(key.startswith(f"{kind}/0") for key in watch.metrics)


@pytest.mark.parametrize("kind", CAST_KINDS)
def test_a_step_without_a_forward_reports_no_cast(kind: str) -> None:
    """Gradients that came from elsewhere: there was a step, and no pass."""
    watch, net, _ = routed(None)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    watch.watch.optimizer.step()
    casts = [key for key in watch.metrics if key.startswith((f"{kind}/0/", f"{kind}/1/"))]
    requested = any(key.startswith(f"{kind}/0.weight/requested") for key in watch.metrics)
    assert casts == [] and requested == (kind != "outliers")  # of which a request has none


@pytest.mark.parametrize("kind", KINDS)
def test_a_cast_of_no_rows_is_a_pass_with_nothing_in_it(kind: str) -> None:
    watch, _, step = routed(0)
    for _ in range(4):
        step()
        rows = {
            key: value
            for key, value in watch.metrics.items()
            if key.startswith((f"{kind}/1/input", f"{kind}/1/grad_output"))
        }
        assert bool(rows) == (kind in CAST_KINDS)
        assert all(math.isnan(value) or (value == 0 and key.endswith("_count")) for key, value in rows.items())
        assert [alarm for alarm in watch.alarms if alarm.site == "1" or alarm.site.startswith("1/")] == []
