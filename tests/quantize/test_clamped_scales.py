"""Claims about scales beyond float32's normal range: clamped where they must be, and counted exactly there."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from altgrad.formats import CATALOG, FloatFormat
from altgrad.monitors import MonitorSpec
from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.optim import AdamW
from altgrad.quantize import Cast, DelayedSpec, Quantizer, ScalingSpec
from altgrad.quantize.scaling import beyond_range
from altgrad.watching import MonitorSet

LOW, HIGH = Fraction(2) ** -126, Fraction(2) ** 127
E4M3 = FloatFormat.parse("e4m3fn")
CHANNEL = {"kind": "current", "granularity": "channel"}
SQUARE = {"kind": "block", "size": 4, "shape": "square"}


def amaxes() -> list[float]:
    """Zero, and at every exponent of float32 a few mantissas that lie on and beside those of largest values."""
    mantissas = np.array([1, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.99999988], dtype=np.float32)
    with np.errstate(under="ignore"):
        found = np.ldexp(mantissas[:, None], np.arange(-149, 128)[None]).astype(np.float32).ravel()
    return [0.0, *np.unique(found[found > 0]).tolist()]


def exact_power(amax: float, fmt: FloatFormat, margin: int) -> Fraction:
    """The smallest power of two that holds amax within the format, times 2^margin."""
    ratio = Fraction(amax) / Fraction(fmt.max)
    k = ratio.numerator.bit_length() - ratio.denominator.bit_length() - 1
    while Fraction(2) ** k < ratio:
        k += 1
    return Fraction(2) ** (k + margin)


@pytest.mark.parametrize("margin", [0, -3, 16])
@pytest.mark.parametrize("name", [entry.name for entry in CATALOG])
def test_a_scale_is_clamped_where_the_exact_one_lies_beyond(name: str, margin: int) -> None:
    fmt, values = FloatFormat.parse(name), amaxes()
    wanted = [amax > 0 and not LOW <= exact_power(amax, fmt, margin) <= HIGH for amax in values]
    assert beyond_range(torch.tensor(values), fmt, margin=margin).tolist() == wanted


@pytest.mark.parametrize("name", ["e4m3fn", "e7m0", "e0m7", "e5m2"])
def test_a_real_scale_is_clamped_where_its_quotient_lies_beyond(name: str) -> None:
    fmt, values = FloatFormat.parse(name), amaxes()
    found = beyond_range(torch.tensor(values), fmt, power_of_two=False).tolist()
    for amax, is_beyond in zip(values, found, strict=True):
        exact = Fraction(amax) / Fraction(fmt.max)
        near = [abs(exact / end - 1) < Fraction(1, 1 << 22) for end in (LOW, HIGH)]
        assert any(near) or is_beyond == (amax > 0 and not LOW <= exact <= HIGH), amax


def watched(x: Tensor, spec: Any, **options: Any) -> Cast:
    """The cast of x as an observer sees it."""
    quantizer = Quantizer(spec, rows=len(x), **options)
    seen: list[Cast] = []
    quantizer.watching = True
    quantizer.observers.append(seen.append)
    quantizer.cast(x, True)
    return seen[0]


def count(x: Tensor, name: str, scaling: Any, **options: Any) -> int:
    clamped = watched(x, {"format": name, "scaling": scaling}, **options).clamped
    assert clamped is not None and clamped.dtype == torch.int64 and clamped.shape == ()
    return int(clamped)


@pytest.mark.parametrize(
    ("scaling", "wanted"),
    [
        ("current", 1), ({"kind": "current", "scale": "real"}, 1), ("delayed", 1), ("mse", 1), (CHANNEL, 5),
        ({"kind": "delayed", "granularity": "channel"}, 5), ({"kind": "mse", "granularity": "channel"}, 5),
        ({"kind": "block", "size": 4}, 5 * 3), (SQUARE, 2 * 3), ({"kind": "mx", "size": 4}, 5 * 3), ("nvfp4", 1),
    ],
)  # fmt: skip
def test_a_tensor_at_1e_40_has_every_scale_clamped_and_a_common_one_none(scaling: Any, wanted: int) -> None:
    x = torch.full((6, 9), 1e-40)
    x[5] = 0.0  # a row of zeros asks for nothing
    assert count(x, "e4m3fn", scaling) == wanted
    assert count(torch.randn(6, 9), "e4m3fn", scaling) == 0
    assert count(torch.zeros(6, 9), "e4m3fn", scaling) == 0


def test_channels_and_blocks_are_counted_along_the_reduced_axis() -> None:
    x = torch.ones(8, 3)
    x[:, 1] = 1e-40
    assert count(x, "e4m3fn", CHANNEL) == 0
    assert count(x, "e4m3fn", CHANNEL, reduced="first") == 1
    assert count(x, "e4m3fn", {"kind": "block", "size": 4}, reduced="first") == 2


def test_a_wide_format_needs_a_clamp_long_before_float32_ends() -> None:
    """The largest value of e7m0 is 2^64: an amax of 0.01 has a scale of 2^-70, one of 1e-20 would have 2^-130."""
    for amax, wanted in ((0.01, 0), (2.0**-62, 0), (2.0**-63, 1), (1e-20, 1)):
        made = watched(torch.tensor([amax, amax / 2]), {"format": "e7m0"})
        assert made.clamped == wanted and made.scale is not None
        assert (made.scale == 2.0**-126) == (amax < 1e-18)


def test_a_scale_at_the_end_of_the_range_that_no_amax_wants_further_is_not_clamped() -> None:
    made = watched(torch.tensor([448 * 2.0**-126]), {"format": "e4m3fn"})
    assert made.scale == 2.0**-126 and made.clamped == 0
    top = watched(torch.tensor([2.0**127]), {"format": "e0m7", "scaling": {"kind": "current", "margin": -1}})
    assert top.scale == 2.0**127 and top.clamped == 0
    top = watched(torch.tensor([2.0**127]), {"format": "e0m7"})
    assert top.scale == 2.0**127 and top.clamped == 1 and top.unbounded == 1.0


@pytest.mark.parametrize("arithmetic", ["divide", "encode", "te", "quartet"])
def test_a_scale_of_two_levels_that_is_held_at_the_largest_float32_is_counted(arithmetic: str) -> None:
    """2^126 / 6 * 2^16 is not within float32, of either level; what is finite stays so."""
    scaling = {"kind": "nvfp4", "margin": 16, "arithmetic": arithmetic}
    x = torch.full((2, 32), 2.0**126)
    x[1] = 1.0
    made = watched(x, {"format": "e2m1", "scaling": scaling})
    assert made.scale is not None and made.scale[1].max() < 2.0**100
    held = (made.scale == torch.finfo(torch.float32).max)[:, ::16].sum()
    assert made.clamped == held and int(held) == (0 if arithmetic == "encode" else 2)  # whose factor is sub-normal here
    assert made.values(torch.float32).isfinite().all()
    assert count(x * 2.0**-30, "e2m1", scaling) == 0


def test_an_mse_candidate_below_the_range_counts_if_it_is_chosen() -> None:
    """Of many equal values e2m1 holds 5/6 of its largest worst, so a smaller scale wins; here it lies below 2^-126."""
    scaling = {"kind": "mse", "scale": "real", "candidates": 64}
    x = torch.full((4, 9), 5.0)
    x[0, 0] = 6.0
    plain = watched(x, {"format": "e2m1", "scaling": scaling})
    assert plain.scale is not None and plain.scale < 1 and plain.clamped == 0
    tiny = watched(x * 2.0**-126, {"format": "e2m1", "scaling": scaling})
    assert tiny.scale == 2.0**-126 and tiny.clamped == 0  # clamped candidates equal the first, which is in range
    low = watched(x * 1.01 * 2.0**-126, {"format": "e2m1", "scaling": scaling})
    assert low.scale is not None and low.clamped == (low.scale == 2.0**-126)


def test_a_delayed_scale_is_clamped_by_the_history_it_goes_by() -> None:
    scaling = DelayedSpec(history=2).build(E4M3, None)

    def step(value: float) -> int:
        found = scaling.find((torch.tensor([value]),), live=True, count=True)
        scaling.commit()
        assert found is not None and found.clamped is not None
        return int(found.clamped)

    # The first goes by itself, the others by the largest of the two before; with no amax there, nothing is asked for.
    assert [step(value) for value in (1e-40, 1e-40, 1.0, 1e-40, 1e-40, 1e-40, 0.0, 0.0, 0.0)] == [
        1, 1, 1, 0, 0, 1, 1, 1, 0
    ]  # fmt: skip


@pytest.mark.parametrize("scaling", list(ScalingSpec.kinds()))
def test_nothing_is_counted_unless_somebody_watches(scaling: str) -> None:
    quantizer = Quantizer({"format": "e4m3fn", "scaling": scaling})  # type: ignore[arg-type]
    assert quantizer.cast(torch.full((4, 32), 1e-40), True).clamped is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize(
    "scaling",
    [
        pytest.param(
            each, marks=[pytest.mark.long] if each in ("block", "mse") else []
        )  # seconds; SQUARE is blocks, too
        for each in (*ScalingSpec.kinds(), CHANNEL, SQUARE)
    ],
    ids=str,
)
def test_a_watched_cast_is_one_graph_with_the_same_count(scaling: Any) -> None:
    torch._dynamo.reset()
    quantizer = Quantizer({"format": "e4m3fn", "scaling": scaling})  # type: ignore[arg-type]
    x = torch.randn(6, 40)
    x[2] = 1e-40

    def cast(x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = quantizer.find_scale(x, count=True)
        return quantizer.values(x, False, torch.float32), None if found is None else found.clamped

    values, clamped = torch.compile(cast, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(values, cast(x)[0]) and clamped == cast(x)[1]


def test_the_range_monitor_reports_it_for_every_cast_of_a_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    casts = {"format": "e4m3fn", "scaling": CHANNEL}
    quantize_model(net, PrecisionPolicy.uniform(weight=casts, input=casts, grad_output="e5m2"))
    with torch.no_grad():
        net[0].weight[:3] = 1e-40  # type: ignore[union-attr]
    optimizer = AdamW(net.named_parameters())
    watch = MonitorSet([MonitorSpec.of("range")], net, optimizer)
    watch.begin(1)
    for _ in range(2):
        net(torch.ones(5, 8)).sum().backward()
    optimizer.step()
    commit(net)
    metrics = watch.finish()["range"].metrics
    found = {key: value for key, value in metrics.items() if key.endswith("/clamped_scale_count")}
    assert found.pop("0/weight/clamped_scale_count") == 2 * 3
    assert {"1/weight/clamped_scale_count", "0/input/clamped_scale_count", "0.weight/stored/clamped_scale_count"} < (
        found.keys()
    )
    assert set(found.values()) == {0}
