"""Claims about scales: powers of two are the smallest that do not saturate, and a delayed scale knows only the past."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from altgrad.formats import CATALOG, FloatFormat
from altgrad.quantize import CurrentSpec, DelayedSpec, Quantizer, ScalingSpec, UnscaledSpec, round_to
from altgrad.quantize.scaling import MAX_SCALE, MIN_SCALE, finite_amax, scale_of

E4M3 = FloatFormat.parse("e4m3fn")
NAMES = [entry.name for entry in CATALOG]


def edge_amaxes(fmt):
    """Amaxes whose mantissas lie on and beside that of the format's largest value, 1 and 2, at every exponent."""
    top = math.frexp(float(fmt.max))[0]
    mantissas = np.array([0.5, 0.75, top, 1 - 2.0**-24], dtype=np.float32)
    beside = [np.nextafter(mantissas, np.float32(side)) for side in (0.0, 1.0)]
    mantissas = np.unique(np.concatenate([mantissas, *beside]))
    with np.errstate(under="ignore", over="ignore"):
        amax = np.ldexp(mantissas[:, None], np.arange(-149, 129)[None]).astype(np.float32).ravel()
    return torch.from_numpy(np.unique(amax[(amax > 0) & np.isfinite(amax)]))


def delayed(history=4, rows=None, fmt=E4M3, **options):
    return DelayedSpec(history=history, **options).build(fmt, rows)


def step(scaling, *amaxes):
    """One optimizer step whose micro-batches have these amaxes; returns the scale that its first one got."""
    scales = [scaling.scale(torch.tensor([amax, 0.0]), True) for amax in amaxes]
    scaling.commit()
    return scales[0].item()


@pytest.mark.parametrize("name", NAMES)
def test_a_power_of_two_scale_is_the_smallest_under_which_nothing_saturates(name):
    fmt = FloatFormat.parse(name)
    amax = edge_amaxes(fmt)
    scale = scale_of(amax, fmt)
    exact = amax.double() / scale.double()  # of powers of two: exact in float64
    clamped_low, clamped_high = scale == MIN_SCALE, scale == MAX_SCALE
    assert bool((torch.frexp(scale).mantissa == 0.5).all())
    assert bool((exact <= float(fmt.max))[~clamped_high].all())
    assert bool((2 * exact > float(fmt.max))[~clamped_low].all())
    # the clamps hold only where the scale without them lies beyond
    assert bool((2 * amax.double() > float(fmt.max) * MAX_SCALE)[clamped_high].all())
    assert bool((amax.double() <= float(fmt.max) * MIN_SCALE)[clamped_low].all())
    assert bool((clamped_low | clamped_high | (scale > MIN_SCALE) & (scale < MAX_SCALE)).all())


@pytest.mark.parametrize("margin", [-16, -1, 1, 3, 16])
@pytest.mark.parametrize("power_of_two", [True, False])
def test_a_margin_multiplies_the_scale_by_a_power_of_two(margin, power_of_two):
    amax = torch.tensor([1e-20, 0.3, 448.0, 449.0, 7e10])
    plain = scale_of(amax, E4M3, power_of_two=power_of_two)
    assert torch.equal(scale_of(amax, E4M3, power_of_two=power_of_two, margin=margin), plain * 2.0**margin)
    tiny, huge = torch.tensor([1e-45]), torch.tensor([3.4e38])
    assert scale_of(tiny, E4M3, power_of_two=power_of_two, margin=-16).item() == MIN_SCALE
    assert scale_of(huge, FloatFormat.parse("e0m7"), power_of_two=power_of_two, margin=16).item() == MAX_SCALE


@pytest.mark.parametrize("name", NAMES)
def test_a_real_scale_is_the_quotient_rounded_once_and_brings_the_amax_to_the_largest_value(name):
    fmt = FloatFormat.parse(name)
    amax = edge_amaxes(fmt)
    scale = scale_of(amax, fmt, power_of_two=False)
    with np.errstate(under="ignore", over="ignore"):
        expected = np.clip(amax.numpy() / np.float32(float(fmt.max)), np.float32(MIN_SCALE), np.float32(MAX_SCALE))
    assert torch.equal(scale, torch.from_numpy(expected))
    inside = (scale > MIN_SCALE) & (scale < MAX_SCALE)
    assert torch.equal(round_to(amax / scale, fmt)[inside], torch.full_like(amax, float(fmt.max))[inside])


@pytest.mark.parametrize("power_of_two", [True, False])
def test_an_amax_of_zero_gives_a_scale_of_one(power_of_two):
    found = scale_of(torch.tensor([0.0, 448.0]), E4M3, power_of_two=power_of_two, margin=2)
    assert found.tolist() == [1.0, 4.0]


@given(st.lists(st.floats(width=32), max_size=12))
def test_an_amax_is_the_largest_finite_magnitude(values):
    finite = [abs(v) for v in values if math.isfinite(v)]
    found = finite_amax(torch.tensor(values, dtype=torch.float32))
    assert found.shape == () and found.item() == max(finite, default=0.0)


def test_an_amax_by_channel_is_one_per_row_of_the_last_axis():
    x = torch.tensor([[[1.0, -3.0], [math.inf, 2.0]], [[math.nan, 0.0], [-math.inf, math.nan]]])
    found = finite_amax(x, "channel")
    assert found.shape == (2, 2, 1) and found.flatten().tolist() == [3.0, 2.0, 0.0, 0.0]
    assert finite_amax(torch.empty(3, 0), "channel").tolist() == [[0.0]] * 3
    assert finite_amax(torch.tensor(-2.0)).item() == 2.0
    for dtype in (torch.bfloat16, torch.float16):
        half = finite_amax(x.to(dtype).requires_grad_(), "channel")
        assert half.dtype == torch.float32 and not half.requires_grad and torch.equal(half, found)


def test_current_scaling_follows_each_tensor_and_keeps_nothing():
    scaling = CurrentSpec().build(E4M3, None)
    x = torch.tensor([[1.0, -448.0], [0.5, 7.0]])
    assert scaling.scale(x, True).item() == 1.0 and scaling.scale(x * 8, True).item() == 8.0
    scaling.commit()
    assert scaling.scale(x, False).item() == 1.0
    assert not scaling.state_dict()
    rows = CurrentSpec(granularity="channel").build(E4M3, None).scale(x, True)
    assert rows.tolist() == [[1.0], [2.0**-6]]
    assert UnscaledSpec().build(E4M3, None).scale(x, True) is None
    assert CurrentSpec(scale="real", margin=1).build(E4M3, None).scale(x, True).item() == 2.0


def test_delayed_scaling_takes_the_tensors_own_amax_until_a_step_is_committed():
    scaling = delayed()
    for amax in (448.0, 896.0):  # two micro-batches of the first step, each by itself
        assert scaling.scale(torch.tensor([amax]), True).item() == amax / 448
    scaling.commit()
    assert scaling.scale(torch.tensor([7.0]), True).item() == 2.0


def test_delayed_scaling_by_maximum_forgets_after_its_history():
    scaling = delayed(history=3)
    amaxes = [448.0, 1792.0, 448.0, 224.0, 224.0, 112.0, 56.0]
    expected = [1.0, 1.0, 4.0, 4.0, 4.0, 1.0, 0.5]  # from the three steps before; the first from itself
    assert [step(scaling, amax) for amax in amaxes] == expected


def test_delayed_scaling_by_most_recent_follows_one_step_behind():
    scaling = delayed(history=3, reduce="most_recent")
    assert [step(scaling, amax) for amax in (448.0, 1792.0, 112.0, 896.0)] == [1.0, 1.0, 4.0, 0.25]


def test_a_commit_pushes_once_for_all_micro_batches_of_a_step():
    scaling = delayed(history=2)
    step(scaling, 448.0, 7168.0, 448.0)
    assert scaling.amax_history.tolist() == [7168.0, 0.0] and scaling.amax_now.item() == 0.0
    step(scaling, 448.0, 448.0)
    assert scaling.amax_history.tolist() == [448.0, 7168.0]
    assert step(scaling, 1.0) == 16.0
    assert step(scaling, 1.0) == 1.0


@pytest.mark.parametrize("reduce", ["max", "most_recent"])
@pytest.mark.parametrize("amax", [0.0, -0.0, math.inf, math.nan])
def test_an_amax_of_zero_and_non_finite_entries_keep_the_scale(reduce, amax):
    scaling = delayed(history=2, reduce=reduce)
    step(scaling, 1792.0)
    for _ in range(4):
        assert step(scaling, amax) == 4.0
    assert bool(torch.isfinite(scaling.amax_history).all()) and scaling.amax_history.tolist() == [0.0, 0.0]
    assert step(scaling, 448.0) == 4.0
    assert step(scaling, 448.0) == 1.0


@pytest.mark.parametrize("amax", [0.0, math.inf, math.nan])
def test_a_scale_that_never_had_an_amax_goes_on_taking_the_tensors_own(amax):
    scaling = delayed(history=2)
    assert [step(scaling, amax) for _ in range(3)] == [1.0] * 3
    assert step(scaling, 1792.0) == 4.0


def test_non_finite_entries_never_hide_the_finite_ones():
    scaling = delayed()
    scaling.scale(torch.tensor([math.inf, 896.0, math.nan, -math.inf]), True)
    scaling.commit()
    assert scaling.amax_history[0].item() == 896.0 and scaling.scale(torch.ones(1), False).item() == 2.0


def test_evaluation_never_writes():
    scaling = delayed()
    for _ in range(2):
        before = {name: value.clone() for name, value in scaling.state_dict().items()}
        scaling.scale(torch.tensor([1e9]), False)
        assert all(torch.equal(value, before[name]) for name, value in scaling.state_dict().items())
        step(scaling, 448.0)
    assert scaling.scale(torch.tensor([1e9]), False).item() == 1.0


def test_buffers_are_written_in_place():
    scaling = delayed()
    before = {name: value.data_ptr() for name, value in scaling.named_buffers()}
    step(scaling, 448.0, 3.0)
    assert {name: value.data_ptr() for name, value in scaling.named_buffers()} == before


def test_delayed_scaling_by_channel_keeps_each_row_apart():
    scaling = delayed(rows=3, granularity="channel")
    first = torch.tensor([[448.0, 1.0], [0.0, 0.0], [896.0, math.inf]])
    assert scaling.scale(first, True).tolist() == [[1.0], [1.0], [2.0]]
    scaling.commit()
    # rows 0 and 2 have a past; row 1 has none yet and goes by itself
    assert scaling.scale(torch.full((3, 2), 1792.0), True).tolist() == [[1.0], [4.0], [2.0]]
    with pytest.raises(ValueError, match="delayed scaling by channel needs a fixed number of rows, which only weights"):
        delayed(granularity="channel")


@pytest.mark.parametrize("rows", [None, 2])
def test_state_goes_through_a_state_dict(rows):
    options = {"history": 3, "granularity": "tensor" if rows is None else "channel", "rows": rows}
    one, other = delayed(**options), delayed(**options)
    random = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 8, generator=random) * 2.0 ** (at % 5) for at in range(12)]
    for at, batch in enumerate(batches):
        if at == 5:  # between two micro-batches
            other.load_state_dict(one.state_dict())
        made = [scaling.scale(batch, True) for scaling in ((one, other) if at >= 5 else (one,))]
        assert all(torch.equal(scale, made[0]) for scale in made)
        if at % 3 == 2:
            one.commit()
            other.commit()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_delayed_scales_have_the_margin_and_the_kind_of_their_spec():
    assert step(delayed(margin=3), 448.0) == 8.0
    scaling = delayed(scale="real", margin=-1)
    step(scaling, 100.0)
    assert (
        Fraction(scaling.scale(torch.ones(1), False).item()) == Fraction(float(np.float32(100) / np.float32(448))) / 2
    )


@pytest.mark.parametrize("change", ["bfloat16", "half", "double"])
def test_scales_stay_float32_whatever_the_model_becomes(change):
    scaling = delayed(rows=2, granularity="channel", scale="real")
    scaling.scale(torch.tensor([[0.1, 70000.0], [3e38, 1e-30]]), True)
    scaling.commit()
    scaling.scale(torch.tensor([[0.3], [0.7]]), True)
    before = {name: (value.dtype, value.clone()) for name, value in scaling.named_buffers()}
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), scaling)
    assert getattr(model, change)()[0].weight.dtype != torch.float32
    assert getattr(torch, change) == model[0].weight.dtype == model.to(getattr(torch, change))[0].weight.dtype
    for name, value in scaling.named_buffers():
        assert value.dtype == before[name][0] and torch.equal(value, before[name][1]), name


def test_scales_move_with_the_model_to_another_device():
    scaling = delayed()
    assert all(value.is_meta for value in scaling.to("meta", torch.bfloat16).buffers())
    assert {value.dtype for value in scaling.buffers()} == {torch.float32, torch.int64}
    assert not any(value.is_meta for value in scaling.to_empty(device="cpu").buffers())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("delay", "'delay' is not a scaling. Did you mean 'delayed'?"),
        ({"kind": "delayed", "history": 0}, "history"),
        ({"kind": "current", "margin": 17}, "margin"),
        ({"kind": "current", "history": 4}, "history"),
        ({"kind": "current", "granularity": "block"}, "granularity"),
    ],
)
def test_a_wrong_scaling_is_refused_by_name(value, message):
    with pytest.raises(ValueError) as caught:
        ScalingSpec.of(value)
    assert message in str(caught.value)


def test_the_family_has_the_scalings_of_transformer_engine():
    assert {"current", "delayed", "unscaled"} <= set(ScalingSpec.kinds())
    assert ScalingSpec.of("delayed") == DelayedSpec() and DelayedSpec().history == 16
    assert not CurrentSpec(scale="real").power_of_two
    assert CurrentSpec().power_of_two and UnscaledSpec().power_of_two


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", ["power_of_two", "real"])
@pytest.mark.parametrize("fmt", ["e2m1", "e3m4", "e4m3fn", "e5m2"])
def test_mse_chooses_alike_at_every_magnitude(fmt: str, kind: str, granularity: str) -> None:
    """2^k x has 2^k the scale of x, for all k under which no entry and no candidate leaves float32's normal numbers.

    Squares of float32 errors leave it for |k| above 60 or so, and the choice was then the largest candidate.
    """
    scaling = {"kind": "mse", "scale": kind, "granularity": granularity}
    quantizer = Quantizer({"format": fmt, "scaling": scaling}, "s")
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    x = torch.where(x.abs() < 2**-6, 2**-6, x)
    at_one = quantizer.find_scale(x).entries
    top = float(quantizer.spec.format.max)
    lowest = math.ceil(math.log2(top)) + 9 - 126
    for k in range(lowest, 126):
        moved = torch.ldexp(torch.ldexp(x, torch.tensor(k // 2)), torch.tensor(k - k // 2))
        scale = quantizer.find_scale(moved).entries.double()
        assert torch.equal(scale, at_one.double() * 2.0**k), k
