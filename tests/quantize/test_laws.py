"""Laws of casts, over all axes at once: specs from the whole product of `axes`, matrices with zeros and ragged ends.

Where a law has exceptions its test says which, and why.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding, TableFormat
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.correction import correction
from altgrad.quantize.grid import bound_units, inside, round_units
from altgrad.quantize.scaling import ScalingSpec
from altgrad.spec import SpecError
from tests.quantize.axes import specs, tensors, words

RUN = 64
"""Elements of a run for casts that correct one."""
FIELDS = {*QuantizerSpec.model_fields, *(field for spec in ScalingSpec.kinds().values() for field in spec.model_fields)}
daily_and_long = pytest.mark.parametrize("examples", [10, pytest.param(500, marks=pytest.mark.long)])


def holds(examples: int, law: Callable[..., None], *drawn: st.SearchStrategy[Any]) -> None:
    """Try the law on so many examples."""
    settings(max_examples=examples, phases=[Phase.generate, Phase.shrink])(given(*drawn)(law))()


def made(spec: QuantizerSpec, x: Tensor, **more: Any) -> Quantizer:
    run = RUN if spec.correction == "eden" else None
    return Quantizer(spec, "s", "weight", **{"rows": len(x), "run": run, "shape": tuple(x.shape), **more})


def values(spec: QuantizerSpec, x: Tensor, **more: Any) -> Tensor:
    """What a new quantizer of one site makes of x."""
    return made(spec, x, **more).values(x, False, torch.float32)


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal numbers, NaN for NaN."""
    return found.shape == expected.shape and bool(((found == expected) | (found.isnan() & expected.isnan())).all())


def correctable(spec: QuantizerSpec) -> bool:
    """Whether eden's runs are whole blocks."""
    return spec.correction == "none" or RUN % spec.scaling.size == 0  # type: ignore[attr-defined]


CASTS = specs().filter(correctable)


@daily_and_long
def test_words_are_taken_or_refused_in_one_line_that_names_both(examples: int) -> None:
    def law(said: dict[str, Any]) -> None:
        try:
            spec = QuantizerSpec.made_from(said)  # type: ignore[arg-type]
        except SpecError as error:
            message = str(error).strip()
            assert "\n" not in message and len(message) < 400
            fields = [name for name in FIELDS if re.search(rf"\b{name}\b", message)]
            name = said["format"] if isinstance(said["format"], str) else str(TableFormat.of(said["format"]))
            assert len(fields) + (name in message) >= 2, message
            return
        assert QuantizerSpec.made_from(spec.tree()) == spec  # type: ignore[arg-type]

    holds(2 * examples, law, words())


@daily_and_long
def test_values_are_those_of_the_grid_whatever_the_way_and_the_layout(examples: int) -> None:
    """By the short form and the general one, from any strides, along either axis, from slabs of rows, in bfloat16."""

    def law(spec: QuantizerSpec, x: Tensor) -> None:
        found, cast = values(spec, x), made(spec, x).cast(x, False)
        assert same(cast.values(torch.float32), found)
        on_grid = cast.rounded[cast.rounded.isfinite()]
        assert same(round_units(on_grid, spec.format, Rounding.nearest_even), on_grid)
        for laid in (x.T.contiguous().T, torch.stack((x, x), -1)[..., 0]):
            assert same(values(spec, laid), found)
        if not spec.draws:  # bits are counted by the place in the tensor
            for turned in (x.T, x.T.contiguous()):
                first = made(spec, x, reduced="first", shape=tuple(turned.shape))
                assert same(first.values(turned, False, torch.float32).T, found)
        scaling, shape = made(spec, x).scaling, tuple(x.shape)
        if len(x) > 32 and (whole := scaling.find((x,))) is not None:
            cut = scaling.find((x[:32], x[32:]))
            assert cut is not None and same(cut.spread(shape), whole.spread(shape))
        half = x.bfloat16()
        assert same(made(spec, x)(half), values(spec, half.float()).bfloat16())

    holds(examples, law, CASTS, tensors(rows=40))


def follows(spec: QuantizerSpec) -> bool:
    """Whether Q(2^k x) = 2^k Q(x): unless a constant of the spec has a size of its own, or a scale of a format has no
    outer one. std has the constant 1e-8."""
    scaling: Any = spec.scaling
    constants = [getattr(scaling, name, 0) for name in ("floor", "least", "zero_becomes")]
    of_format = isinstance(getattr(scaling, "scale", None), FloatFormat)
    alone = of_format and getattr(scaling, "outer", "none") == "none"
    return scaling.measures and not any(constants) and not alone and getattr(scaling, "statistic", "amax") != "std"


@daily_and_long
def test_a_common_power_of_two_goes_through_exactly(examples: int) -> None:
    def law(spec: QuantizerSpec, x: Tensor, exponent: int) -> None:
        assert same(values(spec, x * 2.0**exponent), values(spec, x) * 2.0**exponent)

    holds(examples, law, CASTS.filter(follows), tensors(), st.integers(-30, 30))


@daily_and_long
def test_zeros_stay_and_ragged_ends_are_smaller_blocks(examples: int) -> None:
    """Zeros filled up change nothing, but for a mean or deviation, which count them, and where they are drawn."""

    def law(spec: QuantizerSpec, x: Tensor) -> None:
        found = values(spec, x)
        assert bool((found[x == 0] == 0).all())
        scaling: Any = spec.scaling
        if getattr(scaling, "statistic", "amax") == "amax" and not spec.draws and spec.correction == "none":
            filled = torch.nn.functional.pad(x, (0, 64 + -x.shape[1] % 64))
            assert same(values(spec, filled)[:, : x.shape[1]], found)

    holds(examples, law, CASTS, tensors())


def neighbours_change(spec: QuantizerSpec) -> bool:
    """Whether a NaN or an infinity reaches other elements: through the inner product of a run."""
    return spec.correction != "none"


@daily_and_long
def test_an_infinity_or_nan_is_its_own_and_changes_no_other_element(examples: int) -> None:
    """NaN fills its block where scales are e8m0, as the standard says; an infinity stays or saturates."""

    def law(spec: QuantizerSpec, x: Tensor, place: int, value: float) -> None:
        place %= x.numel()
        given, plain = x.clone(), x.clone()
        given.view(-1)[place], plain.view(-1)[place] = value, 0.0
        cast, found = made(spec, x).cast(given, False), values(spec, given).view(-1)
        assert same(cast.values(torch.float32).view(-1), found)
        own, e8m0 = float(found[place]), getattr(spec.scaling, "scale", "") == "e8m0"
        if math.isnan(value):
            assert math.isnan(own)
        elif spec.nonfinite == "keep":
            assert own == value
        elif spec.overflow == "saturate":
            end = spec.format.highest if value > 0 else spec.format.lowest
            given_up = cast.scale is not None and float(cast.scale.expand(x.shape).reshape(-1)[place]) == 0
            assert float(cast.rounded.view(-1)[place]) == float(end) or given_up
            assert math.isfinite(own)
        if not neighbours_change(spec) and not (math.isnan(value) and e8m0):
            others = torch.arange(x.numel()) != place
            assert same(found[others], values(spec, plain).view(-1)[others])

    numbers = st.sampled_from([math.inf, -math.inf, math.nan])
    holds(examples, law, CASTS, tensors(), st.integers(0, 1 << 20), numbers)


@daily_and_long
def test_what_is_finite_becomes_no_nan_at_either_end_of_float32(examples: int) -> None:
    """Nor inf, but for values that round up to 2^128; and the short form stays the general one."""

    def law(spec: QuantizerSpec, x: Tensor, exponent: int) -> None:
        x = (x.double() * 2.0**exponent).clamp(-3e38, 3e38).float()
        found, cast = values(spec, x), made(spec, x).cast(x, False)
        assert not bool(found.isnan().any() | cast.exact.isnan().any())
        assert not bool(found.isinf()[x.abs() < 2.0**126].any())
        assert same(cast.values(torch.float32), found)

    saturating = CASTS.filter(lambda spec: spec.overflow == "saturate")
    ends = st.one_of(st.integers(-150, -120), st.integers(110, 127))
    holds(examples, law, saturating, tensors(), ends)


def repeats(spec: QuantizerSpec) -> str:
    """How Q(Q(x)) = Q(x) holds: 'exactly', 'nearly' (in codes; values but for the order of operations), or 'not'.

    Exactly with a constant scale and with powers of two from amax: what is on a grid is on the next finer one, down to
    which amax may fall. Not where amax may rise and the grid become coarser: where a margin puts its end between two
    grid values, or under mode: floor, where nothing saturates at the next power of two. Not after a prescale, under a
    negative margin (each cast cuts off more), with a mean or deviation, with several maxima to choose from, or where
    scales are given a correction; not on tables, which are on no finer grid of theirs; with real scales only to
    nearest, since amax must come back as the largest value. With scales of a format not: a block's largest value need
    not be that of the grid again.
    """
    scaling: Any = spec.scaling
    if spec.correction != "none" or spec.overflow != "saturate" or not isinstance(spec.format, FloatFormat):
        return "not"
    if not scaling.measures:
        return "exactly" if scaling.power_of_two else "nearly"
    if getattr(scaling, "statistic", "amax") != "amax" or scaling.margin < 0 or getattr(scaling, "choose", ()):
        return "not"
    if scaling.power_of_two:
        end = torch.tensor(float(spec.format.max) * 2.0**-scaling.margin)
        rises = scaling.margin > 0 and (
            getattr(scaling, "mode", "rceil") == "floor"
            or not same(round_units(end, spec.format, Rounding.nearest_even), end)
        )
        return "not" if rises else "exactly"
    plain = scaling.scale == "real" and scaling.kind != "mse" and scaling.margin == 0 and scaling.target == 1
    return "nearly" if plain and spec.rounding.is_nearest else "not"


@daily_and_long
def test_a_cast_of_a_cast_is_the_cast(examples: int) -> None:
    def law(spec: QuantizerSpec, x: Tensor) -> None:
        once = values(spec, x)
        again = values(spec, once)
        if repeats(spec) == "exactly":
            assert same(again, once)
        else:
            torch.testing.assert_close(again, once, rtol=1e-6, atol=0)

    holds(examples, law, CASTS.filter(lambda spec: repeats(spec) != "not"), tensors())


def drawn(spec: QuantizerSpec) -> bool:
    """Whether elements alone are drawn: a choice by what was drawn prefers some draws to others."""
    tried = getattr(spec.scaling, "trial_rounding", "nearest")
    return spec.random_bits is None and spec.correction == "none" and tried == "nearest"


@daily_and_long
def test_stochastic_rounding_has_the_mean_of_x_where_nothing_is_clipped(examples: int) -> None:
    """Given the scale of each pass, which may be drawn itself; z of the mean over passes, all elements together."""
    passes = 30

    def law(spec: QuantizerSpec, x: Tensor) -> None:
        quantizer, errors, variances = made(spec, x), torch.zeros(x.shape), torch.zeros(x.shape)
        quantizer.train()
        for _ in range(passes):
            cast = quantizer.cast(x, True)
            u, low, high = (
                bound_units(part, spec.format).double()
                for part in (cast.exact.clone(),
                             *(round_units(cast.exact, spec.format, way) for way in (
                                 Rounding.toward_negative, Rounding.toward_positive))))  # fmt: skip
            ends = inside(cast.exact, spec.format)
            assert bool(((cast.rounded == low) | (cast.rounded == high))[ends].all())
            errors += torch.where(ends, cast.rounded - u, 0)
            variances += torch.where(ends, (u - low) * (high - u), 0)
        known = variances > 0
        if int(known.sum()) > 30:
            # One number for all elements: a common bias of a tenth of a deviation would be ten deviations here.
            z = float((errors[known] / variances[known].sqrt()).sum() / known.sum().sqrt())
            assert 2 * stats.norm.sf(abs(z)) > 1e-6

    stochastic = specs(rounding="stochastic").filter(drawn)
    holds(max(6, examples // 3), law, stochastic, tensors(rows=12))


@daily_and_long
def test_eden_gives_each_run_its_own_length_along_itself(examples: int) -> None:
    """With real scales <u, c q> = <u, u> in grid units. Scales of a format are drawn beside the corrected ones."""

    def law(spec: QuantizerSpec, x: Tensor) -> None:
        x = torch.nn.functional.pad(x, (0, -x.shape[1] % RUN))  # whole runs: others keep their scales
        cast = made(spec, x).cast(x, True)
        plain = made(QuantizerSpec.made_from(spec.tree() | {"correction": "none"}), x).cast(x, False)  # type: ignore[arg-type]
        assert cast.scale is not None and plain.scale is not None
        assert spec.rounding is Rounding.stochastic or same(cast.rounded, plain.rounded)
        factor = correction(cast.exact, cast.rounded, RUN).repeat_interleave(RUN, -1)
        wanted = plain.scale.double() * factor.double()
        if spec.scaling.scale == "real":  # type: ignore[attr-defined]
            torch.testing.assert_close(cast.scale.double(), wanted, rtol=1e-6, atol=0)
            u, q = cast.exact.double(), cast.rounded.double() * factor.double()
            runs = (len(x), -1, RUN)
            length, along = (u * u).view(runs).sum(-1), (u * q).view(runs).sum(-1)
            counted = (factor.view(runs)[..., 0] != 1) & (length > 0)
            torch.testing.assert_close(along[counted], length[counted], rtol=1e-5, atol=0)

    corrected = specs(correction="eden", scaling={"kind": "block", "size": 16, "scale": "real"}).filter(correctable)
    holds(examples, law, corrected, tensors())


@daily_and_long
def test_the_gradient_passes_as_the_spec_says(examples: int) -> None:
    def law(spec: QuantizerSpec, x: Tensor) -> None:
        given, upstream = x.clone().requires_grad_(), torch.randn(x.shape)
        quantizer = made(spec, x).eval()
        quantizer(given).backward(upstream)
        mask = inside(made(spec, x).cast(x, False).exact, spec.format) | (spec.gradient.kind == "identity")
        assert given.grad is not None and same(given.grad, upstream * mask)

    fixed_scales = CASTS.filter(lambda spec: not spec.scaling.draws)
    holds(examples, law, fixed_scales, tensors())
