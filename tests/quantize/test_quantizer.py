"""Claims about Quantizer: what it casts, what its gradient is, when a pass counts, and what observers see."""

import copy
import math

import pytest
import torch

from altgrad.formats import FloatFormat, Rounding
from altgrad.quantize import Cast, CurrentSpec, DelayedSpec, Quantizer, QuantizerSpec, UnscaledSpec, round_to
from altgrad.quantize.noise import fold, site_key
from altgrad.quantize.scaling import finite_amax, scale_of
from altgrad.spec import Spec, SpecError


class Holder(Spec):
    """A spec with a cast in it, as the rooms above have."""

    cast: QuantizerSpec


def make(site="layer/input", seed=0, **spec):
    return Quantizer(QuantizerSpec.model_validate({"format": "e4m3fn"} | spec), site, seed=seed)


def ramp(dtype=torch.float32):
    return torch.linspace(-700, 700, 141).view(3, 47).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("overflow", ["saturate", "inf"])
@pytest.mark.parametrize("mode", [mode for mode in Rounding if mode.by_value])
def test_a_cast_is_round_to_at_the_scale_in_the_tensors_dtype(mode, overflow, dtype):
    x = ramp(dtype)
    found = make(rounding=mode, overflow=overflow, scaling="unscaled")(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, round_to(x, "e4m3fn", mode, overflow=overflow), rtol=0, atol=0, equal_nan=True)
    scale = scale_of(finite_amax(x), FloatFormat.parse("e4m3fn"))
    scaled = make(rounding=mode, overflow=overflow)(x)
    assert torch.equal(scaled, round_to(x, "e4m3fn", mode, overflow=overflow, scale=scale).to(dtype))


def test_a_cast_keeps_layout_shape_and_emptiness():
    x = ramp().T[::2]
    quantizer = make(scaling={"kind": "current", "granularity": "channel"})
    assert torch.equal(quantizer(x), quantizer(x.contiguous()))
    assert quantizer(torch.tensor(0.3)).shape == () and quantizer(torch.empty(0, 3)).shape == (0, 3)
    with pytest.raises(TypeError, match="float64 cannot be cast to a grid"):
        quantizer(x.double())


def test_an_identity_gradient_passes_as_it_is():
    x = torch.tensor([0.3, 1e6, -1e6, math.nan, 1e-9], requires_grad=True)
    weights = torch.tensor([1.0, -2.0, math.inf, 0.5, math.nan])
    make(scaling="unscaled")(x).backward(weights)
    torch.testing.assert_close(x.grad, weights, rtol=0, atol=0, equal_nan=True)


def test_a_clipped_gradient_is_zero_where_the_value_lay_outside_the_range():
    x = torch.tensor([448.0, 448.1, -448.0, -449.0, math.inf, math.nan, 0.0], requires_grad=True)
    make(scaling="unscaled", gradient="clipped")(x).backward(torch.full((7,), 2.0))
    assert x.grad.tolist() == [2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0]
    # outside means zero, whatever arrives there
    x.grad = None
    make(scaling="unscaled", gradient="clipped")(x).backward(torch.full((7,), math.inf))
    assert x.grad.tolist() == [math.inf, 0.0, math.inf, 0.0, 0.0, 0.0, math.inf]


def test_a_clipped_gradient_goes_by_the_scaled_range():
    quantizer = make(scaling="delayed", gradient="clipped")
    quantizer(torch.tensor([4 * 448.0], requires_grad=True))
    quantizer.commit()
    x = torch.tensor([4 * 448.0, 4 * 450.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", ["identity", "clipped"])
def test_the_gradient_has_the_dtype_of_the_tensor(gradient, dtype):
    x = ramp(dtype).requires_grad_()
    make(gradient=gradient)(x).sum().backward()
    assert x.grad.dtype == dtype and torch.equal(x.grad, torch.ones_like(x))


def test_a_pass_is_live_in_training_mode_while_autograd_records():
    quantizer = make()
    assert quantizer.live
    with torch.no_grad():
        assert not quantizer.live
    with torch.inference_mode():
        assert not quantizer.live
    assert not quantizer.eval().live


def test_only_live_passes_feed_delayed_scaling_and_advance_the_random_bits():
    quantizer = make(rounding="stochastic", scaling="delayed")
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    with torch.no_grad():
        quantizer(ramp())
    quantizer.eval()(ramp())
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.train()(ramp())
    assert quantizer.scaling.amax_now == 700 and quantizer.counter == 1


def test_stochastic_bits_are_a_function_of_seed_site_step_and_micro_batch():
    x = torch.full((4096,), 1.06)
    options = {"rounding": "stochastic", "scaling": "unscaled"}
    quantizer = make(**options)
    casts = []
    for step in range(3):
        for micro in range(2):
            casts.append(quantizer(x))
            key = fold(site_key(0, "layer/input"), step * 65536 + micro)
            assert torch.equal(casts[-1], round_to(x, "e4m3fn", "stochastic", key=key))
        quantizer.commit()
    assert all(not torch.equal(a, b) for i, a in enumerate(casts) for b in casts[:i])
    assert torch.equal(make(**options)(x), casts[0])
    assert not torch.equal(make(seed=1, **options)(x), casts[0])
    assert not torch.equal(make(site="layer/weight", **options)(x), casts[0])


def test_a_restored_or_copied_quantizer_goes_on_with_the_same_bits():
    options = {"rounding": "stochastic", "scaling": "delayed", "random_bits": 6}
    one, other = make(**options), make(**options)
    one(ramp())
    one.commit()
    one(ramp())
    other.load_state_dict(one.state_dict())
    copied = copy.deepcopy(one)
    found = one(ramp())
    assert torch.equal(other(ramp()), found) and torch.equal(copied(ramp()), found)


def test_evaluation_repeats_itself_under_stochastic_rounding():
    quantizer = make(rounding="stochastic").eval()
    assert torch.equal(quantizer(ramp()), quantizer(ramp()))


def test_random_bits_reach_the_rounding():
    quantizer = make(rounding="stochastic", scaling="unscaled", random_bits=2)
    assert bool((quantizer(torch.full((4096,), 1 + 0.24 / 8)) == 1).all())
    assert quantizer(torch.full((4096,), 1 + 0.26 / 8)).unique().numel() == 2


def test_observers_see_a_cast_only_when_watching_and_live():
    quantizer = make(scaling="unscaled", overflow="inf")
    seen: list[Cast] = []
    quantizer.observers.append(seen.append)
    quantizer(ramp())
    quantizer.watching = True
    with torch.no_grad():
        quantizer(ramp())
    quantizer.eval()(ramp())
    assert not seen
    made = quantizer.train()(ramp())
    (cast,) = seen
    assert (cast.site, cast.role, cast.format, cast.scale) == ("layer/input", "input", quantizer.spec.format, None)
    assert torch.equal(cast.exact, ramp())
    assert cast.unbounded.max() == 704 and cast.rounded.isnan().any()
    torch.testing.assert_close(cast.values(torch.float32), made, rtol=0, atol=0, equal_nan=True)


def test_observing_changes_neither_values_nor_state():
    watched, plain = (make(rounding="stochastic", scaling="delayed") for _ in range(2))
    watched.observers.append(lambda cast: None)
    watched.watching = True
    for _ in range(3):
        assert torch.equal(watched(ramp()), plain(ramp()))
        watched.commit()
        plain.commit()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in watched.state_dict().items())


def test_only_stochastic_rounding_and_delayed_scaling_keep_state():
    assert not make().state_dict()
    assert set(make(rounding="stochastic").state_dict()) == {"counter"}
    delayed = {"scaling.amax_now", "scaling.amax_history", "scaling.committed", "scaling.ready"}
    assert set(make(scaling="delayed").state_dict()) == delayed


def test_a_format_name_stands_for_a_cast_with_the_defaults():
    spec = QuantizerSpec.model_validate("e5m2")
    assert spec == QuantizerSpec.model_validate({"format": FloatFormat.parse("e5m2")})
    assert spec == QuantizerSpec.model_validate(FloatFormat.parse("e5m2"))
    assert (spec.rounding, spec.scaling, spec.overflow, spec.gradient.kind) == (
        "nearest_even",
        CurrentSpec(),
        "saturate",
        "identity",
    )
    assert Quantizer("e5m2").spec == spec
    assert Holder.parse("cast: e5m2").cast == spec
    full = Holder.parse(
        "cast: {format: e3m4, rounding: stochastic, random_bits: 8, scaling: {kind: delayed, history: 2}}"
    )
    assert full.cast.scaling == DelayedSpec(history=2) and full.cast.random_bits == 8
    assert Holder.parse("cast: {format: e3m4, scaling: unscaled}").cast.scaling == UnscaledSpec()
    assert Holder.parse(full.to_yaml()) == full


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("e4m3", "e4m3 means different formats to different people; say e4m3fn"),
        ("e9m9", "e9m9 has 19 bits; AltGrad emulates 2 to 16."),
        ("e10m5", r"e10m5 spans 2^-515..2^512; casts run in float32 (2^-149..2^128)."),
        ("{format: e2m1, overflow: inf}", "e2m1 has neither inf nor NaN for an overflow to become"),
        ("{format: e2m1, random_bits: 8}", "random_bits belongs to rounding: stochastic, not nearest_even"),
        ("{format: e2m1, rounding: stochastic, random_bits: 25}", "random_bits"),
        ("{format: e2m1, rounding: nearest}", "'nearest' is not a rounding."),
        ("{format: e2m1, scalling: current}", "'scalling' is not a key of a cast"),
        ("{rounding: stochastic}", "format"),
        ("{format: e2m1, gradient: none}", "'none'"),
    ],
)
def test_a_wrong_cast_is_refused_where_it_stands(text, message):
    with pytest.raises(SpecError) as caught:
        Holder.parse(f"cast: {text}", "run.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("run.yaml:1:")


def every_float16() -> torch.Tensor:
    """All of them but NaN, one to a row, so that each has a scale of its own by channel."""
    codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    return codes[~codes.isnan()][:, None]


@pytest.mark.parametrize("scale", ["power_of_two", "real"])
@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "stochastic"])
@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e3m4", "e2m1", "e7m0", "e0m7", "e8m7"])
def test_in_float16_what_is_finite_stays_finite_and_on_the_grid(name, rounding, scale):
    """Where float16 does not reach the value, it is the largest of the grid that it does reach."""
    x = every_float16()
    scaling = {"kind": "current", "granularity": "channel", "scale": scale}
    made = Quantizer({"format": name, "rounding": rounding, "scaling": scaling}, "site").cast(x, False)
    found, wanted = made.values(torch.float16), made.values(torch.float32)
    assert torch.equal(found.isfinite(), x.isfinite()) and torch.equal(found[x.isinf()], x[x.isinf()])
    reached = (wanted.abs() <= 65504) | x.isinf()
    assert torch.equal(found[reached], wanted[reached].to(torch.float16))
    assert bool((found[~reached].sign() == wanted[~reached].sign()).all())
    grid = round_to(torch.full_like(wanted, 65504.0), name, "toward_zero", scale=made.scale)
    assert torch.equal(found[~reached].abs(), grid[~reached].to(torch.float16))
    quantizer = Quantizer({"format": name, "rounding": rounding, "scaling": scaling}, "site")
    assert torch.equal(quantizer(x), found)


def test_the_largest_float16_enters_e4m3fn_as_240_times_its_scale():
    assert Quantizer("e4m3fn")(torch.tensor([65504.0, -65504.0, 1.0]).half()).tolist() == [61440.0, -61440.0, 1.0]
    saturating = Quantizer({"format": "e4m3fn", "nonfinite": "saturate"})
    assert saturating(torch.tensor([65504.0, torch.inf]).bfloat16()).tolist() == [65536.0, 114688.0]
    assert saturating(torch.tensor([65504.0, torch.inf]).half()).tolist() == [61440.0, 61440.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_rounds_up_to_the_end_of_float32_is_inf(dtype):
    top = torch.finfo(dtype).max
    assert Quantizer("e4m3fn")(torch.tensor([top], dtype=dtype)).tolist() == [torch.inf]
    assert Quantizer("e4m3fn")(torch.tensor([242 * 2.0**120], dtype=dtype)).tolist() == [240 * 2.0**120]


def test_an_overflow_that_is_to_become_inf_is_inf_in_float16_too():
    spec = {"format": "e5m2", "overflow": "inf", "scaling": "unscaled"}
    found = Quantizer(spec)(torch.tensor([65504.0, 57344.0, torch.inf, torch.nan]).half())
    assert found.tolist()[:3] == [torch.inf, 57344.0, torch.inf] and bool(found[3].isnan())


def test_a_quantizer_made_from_a_wrong_name_says_so():
    for value, message in (
        ("e9m9", "e9m9 has 19 bits; AltGrad emulates 2 to 16."),
        ("e4m3", "e4m3 means different formats to different people; say e4m3fn"),
        ({"format": "e4m3fn", "scalling": "mx"}, "'scalling' is not a key of a cast. Did you mean 'scaling'?"),
        ({"format": "e2m1", "overflow": "inf"}, "e2m1 has neither inf nor NaN for an overflow to become;"),
        (7, "the spec is 7; it takes "),
        ({"format": "e2m1", "scaling": "mxx"}, "'mxx' is not a scaling. Did you mean 'mx'?"),
    ):
        with pytest.raises(ValueError) as caught:
            Quantizer(value, "a/weight")
        assert str(caught.value).startswith(f"a/weight: {message}") and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="delayed scaling by channel needs a fixed number of rows"):
        make(scaling={"kind": "delayed", "granularity": "channel"})


def test_a_printed_quantizer_names_its_axes():
    assert "e4m3fn, stochastic, delayed" in repr(make(rounding="stochastic", scaling="delayed"))
