"""A step that is left to the device is the step that the host would have decided about: to the bit, and in every word.

Bad steps are the first, one on its own and two in a row. Scales are delayed and casts stochastic, so what a commit
changes matters to the explanation of a bad step, which runs it again.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad.monitors import GradientMonitor, MonitorSpec, Replay
from altgrad.optim import SGD, AdamW, ManifoldAdamW
from altgrad.watching import MonitorSet
from altgrad.watching.before_update import BeforeUpdate

# torch.compile warns of what it does itself.
pytestmark = [
    pytest.mark.needs("c++"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]

STEPS, BAD = 7, (1, 4, 6, 7)
CAST = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}
PACKED = {"format": "e4m3fn", "scaling": {"kind": "block", "size": 64}, "packed": True, "min_size": 0}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (AdamW, {"storage": {"kind": "stochastic", "format": "e4m3fn"}}),
    (AdamW, {}),
    (ManifoldAdamW, {"format": "e4m3fn"}),
    (ManifoldAdamW, {"storage": {"kind": "nearest", "format": "e3m4"}}),
    (AdamW, {"states": {"exp_avg": PACKED, "exp_avg_sq": {**PACKED, "step_takes": "rounded"}}}),
]


def trained(
    made: Any, settings: dict[str, Any], deferred: bool, kinds: list[Any], engine: Any = "eager"
) -> dict[str, Any]:
    """Everything that is said of some steps, and everything that is kept after them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24, bias=False), nn.GELU(), nn.Linear(24, 16, bias=False))
    altgrad.quantize_model(net, altgrad.PrecisionPolicy.uniform(weight=CAST, input=CAST, grad_output=CAST))
    optimizer = made(net.named_parameters(), lr=1e-2, **settings)
    optimizer.engine = "compiled"
    watch = MonitorSet([MonitorSpec.of({"every": 1, **kind}) for kind in kinds], net, optimizer)
    watch.looks.engine = engine
    x = torch.randn(STEPS, 12, 16)
    for step in BAD:
        x[step - 1, 3, 5] = torch.inf if step % 2 else torch.nan
    said: list[Any] = []
    for step in range(1, STEPS + 1):
        watch.begin(step)

        def losses(step: int = step) -> Iterator[Tensor]:
            yield net(x[step - 1]).square().mean()

        with watch.micro_batch():
            loss = next(losses())
            torch.autograd.backward(loss)
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        watch.look(loss, norm, gradients, Replay(net, gradients, losses))
        reports, skipped = {}, False
        if deferred:
            assert watch.defer()
        else:
            reports = watch.read()
            skipped = any(report.skip for report in reports.values())
        if not skipped:
            optimizer.step()
        optimizer.zero_grad()
        watch.recorded()
        altgrad.commit(net)
        reports |= watch.finish()
        assert any(report.skip for report in reports.values()) == (step in BAD)
        assert optimizer.applies is None  # a word about this step holds back no other
        said.append((str(reports), str(watch.loss), str(watch.norm)))
    state = optimizer.state_dict()["state"]
    return {
        "said": said,
        "net": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "state": {(key, name): t for key, of in state.items() for name, t in of.items()},
        "monitors": watch.state(),
    }


def check(made: Any, settings: dict[str, Any], kinds: list[Any], engine: Any = "eager") -> None:
    host, device = (trained(made, settings, deferred, kinds, engine) for deferred in (False, True))
    assert device["said"] == host["said"]
    assert "site='0'" in host["said"][3][0] and float(host["state"][0, "step"]) == STEPS - len(BAD)
    for kept in ("net", "state"):
        assert host[kept].keys() == device[kept].keys()
        assert [name for name in host[kept] if not torch.equal(host[kept][name], device[kept][name])] == []
    assert str(host["monitors"]) == str(device["monitors"])


EVERY = [{"kind": kind, **({"patience": 9} if kind == "finite" else {})} for kind in MonitorSpec.kinds()]


# A case takes seconds to compile: all monitors with one of them here, the others among the long ones.
@pytest.mark.parametrize(
    ("made", "settings"),
    [pytest.param(*case, marks=() if number == 0 else pytest.mark.long) for number, case in enumerate(CASES)],
)
def test_a_step_left_to_the_device_is_what_the_host_would_have_decided(made: Any, settings: dict[str, Any]) -> None:
    # Whoever asks what rounding made of states has the step taken without a graph, which waits for the host.
    check(made, settings, [each for each in EVERY if "states" not in settings or each["kind"] != "optimizer_state"])


@pytest.mark.long
def test_so_it_is_where_what_monitors_keep_is_masked_in_their_graph() -> None:
    check(*CASES[0], EVERY, "compiled")


def test_a_step_that_is_no_graph_waits_for_the_host() -> None:
    p, q = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    for optimizer in (SGD([p], lr=1.0), AdamW([q], lr=1.0)):
        before = optimizer.param_groups[0]["params"][0].clone()
        for word in (False, True):
            optimizer.param_groups[0]["params"][0].grad = torch.ones(4)
            optimizer.applies = torch.tensor(word)
            optimizer.step()
            assert not optimizer.masks
            assert torch.equal(optimizer.param_groups[0]["params"][0], before) != word
            assert bool(optimizer.state[q]) == (word and isinstance(optimizer, AdamW))


class Stubborn(GradientMonitor):
    """Says on the host alone that a step is bad."""

    def measure(self, gradient: Tensor) -> dict[str, Tensor]:
        return {"sum": gradient.sum().double()}

    def report_all(self, loss: float, found: Any, casts: Any = None) -> Any:
        return altgrad.monitors.monitor.Report(skip=True)


def test_a_monitor_that_decides_on_the_host_is_asked_before_the_update() -> None:
    ones = torch.ones(())
    seen = {"p": (torch.ones(1).double(), (("some", "", "sum"),))}
    assert not BeforeUpdate({"some": Stubborn()}, ones, ones, seen, [], None).decided


class Fickle(Stubborn):
    """Says on the device that a step may be applied, and on the host that it may not."""

    def applies(self, loss: Tensor, found: Any) -> bool:
        return True


def test_a_monitor_of_two_words_is_an_error() -> None:
    ones = torch.ones(())
    before = BeforeUpdate({"some": Fickle()}, ones, ones, {}, [], None)
    with pytest.raises(RuntimeError, match="some"):
        before.read([tensor.tolist() for tensor in before.tensors], {})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_the_device_says_what_the_report_says(bad: float, where: str) -> None:
    monitor = MonitorSpec.of({"kind": "finite"}).build()
    assert isinstance(monitor, GradientMonitor)
    for value in (bad, 1e38):  # whose square is no float32
        loss = torch.tensor(value if where == "loss" else 1.0)
        gradients = {"a": torch.ones(3), "b": torch.tensor([1.0, value if where == "gradient" else 2.0])}
        found = {name: monitor.measure(g) for name, g in gradients.items()}
        word = monitor.applies(loss, {"linf": torch.stack([each["linf"] for each in found.values()])})
        numbers = {name: {key: float(x) for key, x in each.items()} for name, each in found.items()}
        assert bool(word) == (not monitor.report_all(float(loss), numbers).skip) == (value == 1e38)
