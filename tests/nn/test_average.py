"""Claims about rounding towards a weight's average: one step of the average for each of the optimizer, whatever else
runs, and a run taken up again goes on as if it had not stopped."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from altgrad.diagnosis.sites import reformatted, rerounded, specs_as
from altgrad.interventions.range_probe import look_at_casts
from altgrad.nn import PrecisionPolicy, QuantizedLinear, commit, quantize_model, unrecorded
from altgrad.nn.slots import slot_text
from altgrad.quantize import Quantizer, QuantizerSpec, round_to
from altgrad.quantize.average import Average
from altgrad.quantize.chunks import cast_in_slabs, whole_scale

DECAY = 0.75
WEIGHT: dict[str, Any] = {"format": "e2m1", "rounding": "toward_average", "average_decay": DECAY, "gradient": "dge"}


def network(weight: dict[str, Any] = WEIGHT) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 4, bias=False))
    quantize_model(net, PrecisionPolicy.uniform(weight=weight, input="e4m3fn"))
    return net


def average_of(net: nn.Module) -> Average:
    layer = net[0]
    assert isinstance(layer, QuantizedLinear)
    average = layer.slot_casts["forward", "weight"].average
    assert average is not None
    return average


def data(step: int) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(step))


def train(net: nn.Module, steps: range, run: Any = None) -> list[Tensor]:
    """Steps of two micro-batches; the first weight that each step began with."""
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.02), []
    for step in steps:
        seen.append(next(net.parameters()).detach().clone())
        for micro in range(2):
            (run or net)(data(2 * step + micro)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        commit(net)
    return seen


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_average_begins_as_the_weight_and_moves_once_a_step() -> None:
    net = network()
    weights = train(net, range(4))
    expected = weights[0]
    for weight in weights[1:]:
        expected = (expected.double() * DECAY + weight.double() * (1 - DECAY)).float()
    average = average_of(net)
    assert torch.equal(average.committed, expected) and int(average.steps) == 4
    layer = net[0]
    assert isinstance(layer, QuantizedLinear)
    quantizer, weight = layer.slot_casts["forward", "weight"], layer.weight.detach()
    next_one = (expected.double() * DECAY + weight.double() * (1 - DECAY)).float()
    scale = quantizer.find_scale(weight)
    assert scale is not None
    wanted = round_to(weight, "e2m1", "toward_average", scale=scale.entries, average=next_one)
    assert torch.equal(quantizer(weight), wanted)
    assert not torch.equal(wanted, round_to(weight, "e2m1", scale=scale.entries))


def test_evaluation_replays_and_recomputation_neither_move_it_nor_see_another() -> None:
    plain, busy = network(), network()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            before = busy(x)
        with unrecorded(busy):
            assert torch.equal(busy(x), before)
        found = checkpoint(busy, x, use_reentrant=False)
        assert isinstance(found, Tensor) and torch.equal(found, before)
        busy.eval()
        assert torch.equal(busy(x), before)
        busy.train()
        return found

    train(plain, range(3))
    train(busy, range(3), run)
    assert same(state(plain), state(busy))


def test_a_closure_counts_its_first_evaluation_alone() -> None:
    net = network()
    weight = next(net.parameters()).detach().clone()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4, lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(data(0)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    commit(net)
    assert torch.equal(average_of(net).committed, weight) and int(average_of(net).steps) == 1
    assert not torch.equal(next(net.parameters()), weight)


def test_a_run_taken_up_again_goes_on_as_if_it_had_not_stopped() -> None:
    whole, first, second = network(), network(), network()
    train(whole, range(5))
    train(first, range(2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, range(2, 5))
    assert same(state(whole), state(second))


def test_it_stays_float32_and_a_weight_that_is_not_finite_leaves_it() -> None:
    net = network().to(torch.bfloat16)
    average = average_of(net)
    assert {b.dtype for b in average.buffers()} == {torch.float32, torch.int64}
    weight = torch.tensor([[1.0, torch.inf, torch.nan]])
    own = Average((1, 3), DECAY)
    for step in range(3):
        goal = own.goal(weight if step == 1 else torch.full((1, 3), 4.0), live=True)
        own.commit()
    assert bool(goal.isfinite().all()) and own.committed.tolist() == [[3.4375, 4, 4]]


def test_a_weight_cast_in_slabs_is_the_weight_cast_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altgrad.quantize.chunks.ELEMENTS", 64)
    net = network({**WEIGHT, "scaling": "mx"})
    train(net, range(2))
    layer = net[0]
    assert isinstance(layer, QuantizedLinear)
    quantizer, weight = layer.slot_casts["forward", "weight"], layer.weight.detach()
    slabs = [cast.values(torch.float32) for _, cast in cast_in_slabs(weight, quantizer, whole_scale(weight, quantizer))]
    assert len(slabs) > 1 and torch.equal(torch.cat(slabs), quantizer(weight))


def test_questions_about_a_step_leave_it_and_know_it() -> None:
    """What its casts say about their range, and the step under another rounding or format."""
    net = network()
    train(net, range(2))
    before = state(net)
    found = look_at_casts(net, lambda: iter([net(data(9)).square().sum()]))
    assert {"0/weight", "0/input"} <= found.keys() and same(state(net), before)
    for change in (rerounded("stochastic"), rerounded("nearest_ties_up"), reformatted("e4m3fn")):
        with specs_as(net, lambda spec, change=change: change(spec) if spec.rounding == "toward_average" else spec):
            assert bool(net(data(9)).isfinite().all())
    assert same(state(net), before)


def test_a_table_says_how_a_slot_is_rounded() -> None:
    spec = QuantizerSpec.model_validate({"format": "e2m1", "rounding": "toward_average", "gradient": "dge"})
    assert slot_text(spec) == "e2m1 toward_average (decay 0.998) current dge k 5 clamp 3"
    assert slot_text(QuantizerSpec.model_validate("e2m1")) == "e2m1 current"


def test_before_a_first_step_it_rounds_to_nearest() -> None:
    weight = torch.linspace(-6, 6, 49).view(7, 7)
    quantizer = Quantizer({"format": "e2m1", "rounding": "toward_average"}, "s/weight", "weight", shape=(7, 7))
    assert torch.equal(quantizer(weight), round_to(weight, "e2m1", "nearest_away"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.long, pytest.mark.needs("c++")])]
)
def test_compiled_it_is_one_graph_with_the_same_bits(backend: str) -> None:
    """With the slope of dge; weights of three steps, and the average."""
    torch._dynamo.reset()
    weight = {**WEIGHT, "scaling": {"kind": "block", "size": 8, "scale": "real"}}
    eager, compiled = network(weight)[:1], network(weight)[:1]
    train(eager, range(3))
    train(compiled, range(3), torch.compile(compiled, fullgraph=True, backend=backend))
    for (name, one), other in zip(state(eager).items(), state(compiled).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"input": WEIGHT}, "toward_average goes by the average of a weight, and forward.input is none"),
        ({"grad_output": {**WEIGHT, "gradient": "identity"}}, "and grad_input.grad_output is none"),
        ({"weight": "e2m1", "grad_input": {"weight": {**WEIGHT, "source": "forward", "gradient": "identity"}}},
         "grad_input.weight has rounding: toward_average, .* and source: forward"),
        ({"forward": {"weight": WEIGHT, "input": "e2m1",
                      "transform": {"kind": "hadamard", "size": 16, "signs": "step"}}},
         "forward.weight has rounding: toward_average, and forward.transform draws its signs"),
        ({"weight": {"format": "e2m1", "average_decay": 0.9}},
         "average_decay belongs to rounding: toward_average, not nearest_even"),
        ({"weight": {**WEIGHT, "average_decay": 0.4}}, "average_decay is 0.4; it takes a number, 0.5 or more"),
    ],
)  # fmt: skip
def test_an_average_where_there_is_none_is_refused_in_one_line(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PrecisionPolicy.uniform(**rule)
    assert "\n" not in str(caught.value)


def test_a_quantizer_alone_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="rounding: toward_average .* role: input"):
        Quantizer({"format": "e2m1", "rounding": "toward_average"})
    with pytest.raises(ValueError, match="give the weight's shape="):
        Quantizer({"format": "e2m1", "rounding": "toward_average"}, "s/weight", "weight")
    with pytest.raises(ValueError, match="toward_average needs the average"):
        round_to(torch.ones(2), "e2m1", "toward_average")
