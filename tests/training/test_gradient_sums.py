"""Claims about gradients in a format before they are added: the stated order, factors, resume, bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import ALONE, Processes
from altgrad.quantize import round_to
from altgrad.spec import LocatedError, SpecError
from altgrad.store import Run
from altgrad.training import RunSpec, train_run
from altgrad.training.gradient_sums import GradientCasts, GradientSums
from tests.training.rank_job import TINY
from tests.training.running import lines


def added(spec: dict[str, Any], gradients: list[Tensor], states: Any = None, step: int = 0) -> Tensor:
    """The sum of these micro-batches' gradients, as a spec says."""
    p = nn.Parameter(torch.zeros(gradients[0].shape))
    kept: Any = {p: {}} if states is None else {p: states}
    sums = GradientSums(GradientCasts.model_validate(spec), {"w": p}, kept, seed=0, processes=ALONE)
    for micro, gradient in enumerate(gradients):
        p.grad = gradient.clone()
        sums.take(step, micro)
        assert p.grad is None
    sums.give(step)
    assert p.grad is not None
    return p.grad


@pytest.fixture(scope="module")
def gradients() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(40, 8) * 2.0 ** torch.randint(-6, 3, (40, 1)) for _ in range(8)]


def test_sums_in_bfloat16_are_those_of_bfloat16_tensors(gradients: list[Tensor]) -> None:
    cast = {"format": "bf16", "scaling": "unscaled", "sums": "rounded"}
    expected = gradients[0].bfloat16()
    for gradient in gradients[1:]:
        expected = expected + gradient.bfloat16()
    assert torch.equal(added({"micro_batch": cast}, gradients), expected.float())
    unrounded = added({"micro_batch": {**cast, "sums": "float32"}}, gradients)
    assert torch.equal(unrounded, sum((g.bfloat16().float() for g in gradients[1:]), gradients[0].bfloat16().float()))
    assert torch.equal(added({}, gradients), sum(gradients[1:], gradients[0]))


@pytest.mark.parametrize("factor", [1.0, "root", "auto"])
def test_processes_are_added_in_their_order_at_one_scale(gradients: list[Tensor], factor: Any) -> None:
    """Four processes of two micro-batches each, by hand."""
    reduce = {"format": "e4m3fn", "processes": 4, "factor": factor}
    own = [gradients[number] + gradients[number + 4] for number in range(4)]
    scale = 2.0 ** torch.tensor([float(g.abs().max()) / 448 for g in own]).max().log2().ceil()
    by = 0.5 if factor == "root" else 1.0
    expected = round_to(own[0] * by, "e4m3fn", scale=scale)
    for gradient in own[1:]:
        expected = round_to(expected + round_to(gradient * by, "e4m3fn", scale=scale), "e4m3fn", scale=scale)
    assert torch.equal(added({"reduce": reduce}, gradients), expected / by)
    loose = added({"reduce": {**reduce, "sums": "float32"}}, gradients)
    assert (loose - sum(own[1:], own[0])).norm() < (expected / by - sum(own[1:], own[0])).norm()


def test_the_automatic_factor_halves_where_values_saturate_and_grows_else() -> None:
    reduce = {"format": "e4m3fn", "processes": 2, "factor": "auto"}
    states: dict[str, Tensor] = {}
    plain = [torch.linspace(-1, 0.99, 100), torch.linspace(0.5, -0.9, 100)]
    for step in range(3):
        added({"reduce": reduce}, plain, states, step)
    assert states["reduce_factor"] == pytest.approx(2.0**0.003)
    states["reduce_factor"].fill_(4.0)
    added({"reduce": reduce}, plain, states, 3)
    assert states["reduce_factor"] == 2.0


def test_stochastic_casts_are_counted_and_unbiased() -> None:
    cast = {"format": "e2m1", "rounding": "stochastic"}
    g = torch.full((20_000,), 0.6)
    g[0] = 6.0
    first, again = (added({"micro_batch": cast}, [g, g], step=step) for step in (1, 2))
    assert torch.equal(first, added({"micro_batch": cast}, [g, g], step=1)) and not torch.equal(first, again)
    assert abs(float(first[1:].mean()) - 1.2) < 4 * 0.2 * 2**0.5 / 20_000**0.5
    reduce = {"format": "e2m1", "processes": 2, "rounding": "stochastic", "sums": "float32"}
    total = added({"reduce": reduce}, [g, g])
    assert abs(float(total[1:].mean()) - 1.2) < 4 * 0.2 * 2**0.5 / 20_000**0.5


SETS = ["precision=none", "accumulate=4", "steps=4", "checkpoint_every=2", "schedule.warmup=0"]
CASTS = ["gradients.micro_batch={format: bf16, scaling: unscaled, rounding: stochastic, sums: rounded}",
         "gradients.reduce={format: e4m3fn, processes: 2, factor: auto}"]  # fmt: skip


def test_a_run_with_them_differs_and_resumes_to_the_same_bits(tmp_path: Path, short_data: Callable[..., Any]) -> None:
    told = []
    for name, sets, stops in (("none", [], [None]), ("whole", CASTS, [None]), ("parts", CASTS, [2, None])):
        spec = RunSpec.parse(TINY, name, [*SETS, *sets])
        run = Run(tmp_path / name).create(spec.to_yaml(), {"steps": spec.steps})
        for stop in stops:
            train_run(spec, run, short_data(spec), until=stop)
        told.append([row for row in lines(run) if "train/loss" in row])
    assert told[1] == told[2] and told[0] != told[1]
    assert "gradients" not in RunSpec.parse(TINY).tree()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["gradients.reduce={format: e4m3fn, processes: 3}"], "accumulate is 4, which 3 processes cannot share evenly"),
        (["gradients.micro_batch={format: bf16, scaling: delayed}"], "has no history, outliers or correction"),
        (["gradients.reduce={format: e4m3fn, process: 2}"], "Did you mean 'processes'?"),
    ],
)
def test_bad_input_is_one_line_with_its_place(sets: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        RunSpec.parse(TINY, "spec", [*SETS, *sets])
    assert message in str(caught.value) and "\n" not in str(caught.value) and "gradients" in str(caught.value)


def test_processes_that_do_not_divide_them_are_refused() -> None:
    spec = RunSpec.parse(TINY, "spec", [*SETS, "accumulate=6", "gradients.reduce={format: e4m3fn, processes: 2}"])
    with pytest.raises(LocatedError, match="2 processes are emulated, which 3 cannot share evenly"):
        spec.check_processes(Processes(0, 3))
