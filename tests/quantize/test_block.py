"""Claims about block scales, each against the standard's rule written out block by block in exact arithmetic."""

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.quantize import Quantizer, QuantizerSpec, round_to
from altgrad.quantize.block import MxSpec, block_amax
from altgrad.quantize.chunks import cast_in_slabs, whole_scale
from altgrad.quantize.mse import MseSpec
from altgrad.quantize.scaling import scale_of
from altgrad.spec import SpecError

MX_FORMATS = ["e4m3fn", "e5m2", "e2m1", "e2m3", "e3m2"]
SHAPES = [(3, 64), (2, 5, 70), (1, 1), (33,), (4, 31)]


def sample(*shape: int) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape) * torch.exp2(torch.randint(-30, 30, shape).float())


def cast(x: Tensor, name: str, scaling: Any, **options: Any) -> tuple[Tensor, Tensor]:
    quantizer = Quantizer({"format": name, "scaling": scaling}, **options)  # type: ignore[arg-type]
    made = quantizer.cast(x, False)
    assert made.scale is not None
    return made.values(torch.float32), made.scale


def floor_log2(x: Fraction) -> int:
    k = math.frexp(float(x))[1] - 1
    return k if Fraction(2) ** k <= x else k - 1


def standard_exponent(amax: float, fmt: FloatFormat, mode: str) -> int:
    """The e8m0 exponent of a block by OCP MX v1.0 section 6.3 and the two other modes in use."""
    if amax == 0:
        return -127
    exact = Fraction(amax)
    if mode == "even":
        k = floor_log2(exact)
        steps = exact / Fraction(2) ** (k - fmt.mantissa_bits)
        nearest = math.floor(steps + Fraction(1, 2))
        nearest -= steps + Fraction(1, 2) == nearest and nearest % 2
        exact = nearest * Fraction(2) ** (k - fmt.mantissa_bits)
    if mode == "rceil":
        ratio = exact / Fraction(fmt.max)
        k = floor_log2(ratio)
        found = k if Fraction(2) ** k == ratio else k + 1
    else:
        found = floor_log2(exact) - fmt.max_binade
    return min(max(found, -127), 127)


@pytest.mark.parametrize("mode", ["floor", "rceil", "even"])
@pytest.mark.parametrize("name", MX_FORMATS)
def test_mx_scales_are_the_standards(name: str, mode: Any) -> None:
    fmt = FloatFormat.parse(name)
    edges = [2.0**k * m for k in (-149, -130, -127, -126, -20, 0, 1, 60, 127) for m in (1, 1.25, 1.5, 1.75, 1.9375)]
    edges += [float(np.nextafter(np.float32(e), np.float32(d))) for e in edges for d in (0, np.inf)]
    amax = torch.tensor([0.0, *edges, *sample(500).abs().tolist()]).to(torch.float32)
    amax = amax[amax < math.inf]
    expected = torch.tensor([2.0 ** standard_exponent(value, fmt, mode) for value in amax.tolist()])
    found = MxSpec(mode=mode, size=1).build(fmt, None).scale(amax[:, None], live=False)
    assert found is not None and torch.equal(found.view(-1), expected)
    as_e8m0 = expected.numpy().astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(as_e8m0, expected.numpy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 16, 32])
def test_blocks_are_runs_along_the_last_axis_with_a_ragged_end(shape: tuple[int, ...], size: int) -> None:
    x = sample(*shape).abs()
    found = block_amax(x, size)
    assert found.shape == (*shape[:-1], math.ceil(shape[-1] / size))
    for start in range(0, shape[-1], size):
        assert torch.equal(found[..., start // size], x[..., start : start + size].amax(-1))


@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 70), (7, 7)])
def test_square_blocks_cover_both_axes(shape: tuple[int, ...]) -> None:
    x = sample(*shape)
    scale = cast(x, "e4m3fn", {"kind": "block", "size": 4, "shape": "square"})[1].expand_as(x)
    for row in range(0, shape[-2], 4):
        for column in range(0, shape[-1], 4):
            part = x[..., row : row + 4, column : column + 4]
            expected = scale_of(part.abs().amax((-2, -1), keepdim=True), FloatFormat.parse("e4m3fn"))
            assert torch.equal(scale[..., row : row + 4, column : column + 4], expected.expand_as(part))
    with pytest.raises(ValueError, match="square blocks need two axes"):
        cast(x.flatten(), "e4m3fn", {"kind": "block", "shape": "square"})


def test_mx_zero_and_nan_blocks() -> None:
    x = torch.ones(1, 96)
    x[0, :32] = 0
    x[0, 40] = math.nan
    x[0, 70] = math.inf
    y, scale = cast(x, "e4m3fn", "mx")
    assert torch.equal(y[0, :32], torch.zeros(32)) and bool((scale[0, :32] == 2.0**-127).all())
    assert bool(y[0, 32:64].isnan().all())
    assert y[0, 70] == math.inf and y[0, 71] == 1.0


@pytest.mark.parametrize("mode", ["floor", "rceil", "even"])
def test_mx_values_are_rounded_under_the_blocks_scale(mode: str) -> None:
    x = sample(3, 70)
    y, scale = cast(x, "e4m3fn", {"kind": "mx", "mode": mode})
    assert torch.equal(y, round_to(x, "e4m3fn", scale=scale))
    if mode == "rceil":
        assert bool((x.abs() / scale).le(448).all())


def test_nvfp4_is_the_two_level_rule() -> None:
    x = sample(4, 40)
    x[0, :16] *= 2.0**-60
    y, _ = cast(x, "e2m1", "nvfp4")
    tensor_scale = x.abs().amax() / (448 * 6)
    for start in range(0, 40, 16):
        part = x[:, start : start + 16]
        wanted = (part.abs().amax(-1, keepdim=True) / (tensor_scale * 6)).numpy()
        block = torch.from_numpy(wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)) * tensor_scale
        expected = torch.where(block == 0, 0.0, round_to(part, "e2m1", scale=torch.where(block == 0, 1.0, block)) * 1)
        assert torch.equal(y[:, start : start + 16], expected)
    assert bool((y[0, :16] == 0).all())
    assert bool((cast(torch.zeros(2, 16), "e2m1", "nvfp4")[0] == 0).all())


@pytest.mark.parametrize("scale", ["power_of_two", "real"])
@pytest.mark.parametrize("shape", ["row", "square"])
def test_block_scaling_is_current_scaling_of_each_block(scale: str, shape: str) -> None:
    x = sample(8, 12)
    y, _ = cast(x, "e4m3fn", {"kind": "block", "size": 4, "shape": shape, "scale": scale})
    height = 4 if shape == "square" else 1
    for row in range(0, 8, height):
        for column in range(0, 12, 4):
            part = x[row : row + height, column : column + 4]
            whole = Quantizer({"format": "e4m3fn", "scaling": {"kind": "current", "scale": scale}})  # type: ignore[arg-type]
            assert torch.equal(y[row : row + height, column : column + 4], whole(part))


@pytest.mark.parametrize("scaling", ["mx", {"kind": "block", "size": 5}, {"kind": "current", "granularity": "channel"}])
def test_the_first_axis_is_the_last_of_the_transpose(scaling: Any) -> None:
    x = sample(70, 6)
    assert torch.equal(cast(x, "e4m3fn", scaling, reduced="first")[0], cast(x.T, "e4m3fn", scaling)[0].T)


@pytest.mark.parametrize("scale", ["power_of_two", "real"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_mse_scale_is_the_best_of_its_candidates(scale: Any, granularity: Any) -> None:
    torch.manual_seed(0)
    x = torch.distributions.StudentT(2.0).sample((6, 200)).float()
    spec = MseSpec(scale=scale, granularity=granularity, candidates=8)
    y, chosen = cast(x, "e2m1", spec.tree())
    rows = [(x, y, chosen)] if granularity == "tensor" else list(zip(x, y, chosen.flatten(), strict=True))
    for values, rounded, own in rows:
        largest = spec.scale_of(values.abs().amax(), FloatFormat.parse("e2m1"))
        factors = [0.5**n if scale == "power_of_two" else 1 - 0.75 * n / 8 for n in range(8)]
        errors = [float((round_to(values, "e2m1", scale=largest * f) - values).square().sum()) for f in factors]
        assert float(own) == pytest.approx(float(largest * factors[int(np.argmin(errors))]))
        assert float((rounded - values).square().sum()) == pytest.approx(min(errors), rel=1e-6)


def test_mse_beats_amax_on_heavy_tails() -> None:
    torch.manual_seed(0)
    x = torch.distributions.StudentT(2.0).sample((20_000,)).float()
    error = {kind: float((cast(x, "e2m1", kind)[0] - x).square().sum()) for kind in ("mse", "current")}
    assert error["mse"] < 0.75 * error["current"]


@pytest.mark.parametrize("format", ["e2m1", "e4m3fn", "e3m2", "e5m2", "e4m3fnuz"])
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("nonfinite", ["keep", "saturate"])
def test_the_short_form_of_nvfp4_is_the_general_one(format: str, rounding: str, nonfinite: str) -> None:
    """Blocks that are given up (scale 0), zeros of both signs, sub-normals, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 48, generator=generator) * 2.0 ** torch.randint(-60, 3, (64, 1), generator=generator)
    x[0, :16] = 0.0
    x[1, :16] = -0.0
    x[2, 0], x[3, 1], x[4, 2], x[5, 3] = torch.inf, -torch.inf, torch.nan, 1e-40
    spec: Any = {"format": format, "scaling": "nvfp4", "rounding": rounding, "nonfinite": nonfinite}
    for quantizer, given in ((Quantizer(spec, "s"), x), (Quantizer(spec, "s", reduced="first"), x.T.contiguous())):
        assert quantizer.short
        found = quantizer.find_scale(given)
        assert found is not None and bool((found.entries == 0).any())
        short = quantizer.values(given, live=False, dtype=torch.float32)
        general = quantizer.cast(given, live=False).values(torch.float32)
        assert torch.equal(short.view(torch.int32), general.view(torch.int32))


def test_the_tensor_scale_of_nvfp4_is_one_division() -> None:
    """s_t = amax / 2688 in float32: the block that holds the amax has scale 448 s_t. In two it is often another."""
    quantizer = Quantizer({"format": "e2m1", "scaling": "nvfp4"}, "s")
    twice = 0
    for x in torch.randn(500, 1, 16, generator=torch.Generator().manual_seed(0)):
        amax = x.abs().max()
        tensor = torch.tensor(np.float32(amax) / np.float32(2688))
        assert torch.equal(quantizer.find_scale(x).entries, 448 * tensor.reshape(1, 1))
        twice += int(amax / torch.tensor(6.0) / torch.tensor(448.0) != tensor)
    assert twice > 50


def test_nvfp4_of_a_format_near_the_end_of_float32_divides_twice() -> None:
    x = torch.tensor([[3e38, 1e38]])
    entries = Quantizer({"format": "e8m7", "scaling": "nvfp4"}, "s").find_scale(x).entries
    assert bool((entries > 0).all() and entries.isfinite().all())


REFUSED = [
    ({"kind": "block", "target": 0.5}, "target: 0.5 needs scale: real"),
    ({"kind": "nvfp4", "prescale": 0.75}, "prescale: 0.75 needs scale: power_of_two or e8m0"),
    ({"kind": "mx", "outer": "tensor"}, "outer: tensor needs scales of a format"),
    ({"kind": "block", "scale": "real", "least": 0.5}, "least: 0.5 needs scales of a format"),
    ({"kind": "nvfp4", "scale": "real"}, "outer: tensor needs scales of a format, .* not real"),
    ({"kind": "mx", "scale": "real"}, "mode: floor makes powers of two; scale: real has others"),
    ({"kind": "nvfp4", "choose": [6], "margin": 1}, "choose says where .* and so does margin: 1"),
    ({"kind": "nvfp4", "mode": "floor"}, "mode: floor makes powers of two; scale: e4m3fn has others"),
    (
        {"kind": "nvfp4", "outer": "none", "scale_max": 256},
        "scale_max: 256.0 is where an outer amax goes, and outer is",
    ),
    ({"kind": "nvfp4", "scale": "bf16"}, "outer: tensor over scale: e8m7 would take an amax to 3.39e\\+38"),
    ({"kind": "nvfp4", "outer": 40}, "outer: 40 is not a multiple of size: 16"),
    ({"kind": "nvfp4", "outer": "row", "shape": "square"}, "outer: row cuts rows, and shape: square spans several"),
    ({"kind": "nvfp4", "by": "mae"}, "by: mae has nothing to choose from"),
    ({"kind": "nvfp4", "trial_rounding": "stochastic"}, "trial_rounding: stochastic has nothing to choose from"),
    (
        {"kind": "nvfp4", "choose": [6, 4], "trial_rounding": "stochastic"},
        "trial_rounding: stochastic tries values that the cast draws, and rounding is nearest_even",
    ),
    ({"kind": "nvfp4", "choose": [6, 4], "target": 0.9}, "choose says where .* and so does target: 0.9"),
    ({"kind": "mx", "choose": [6, 4]}, "mode: floor has none"),
    ({"kind": "nvfp4", "statistic": "std"}, "statistic: std takes scale: power_of_two, e8m0 or real, not e4m3fn"),
    ({"kind": "block", "statistic": "std", "margin": 1}, "std has a rule of its own"),
    ({"kind": "delayed", "statistic": "absmean"}, "delayed scaling keeps amaxes, not statistic: absmean"),
]


@pytest.mark.parametrize(("scaling", "message"), REFUSED)
def test_pairs_without_meaning_are_refused_by_both_names(scaling: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        Quantizer({"format": "e2m1", "scaling": scaling})  # type: ignore[arg-type]
    assert len(str(raised.value).splitlines()) == 1


TREES = {
    "mx": {"kind": "mx", "size": 32, "mode": "floor"},
    "nvfp4": {"kind": "nvfp4", "size": 16},
    "block": {"kind": "block", "scale": "power_of_two", "margin": 0, "size": 128, "shape": "row"},
    "current": {"kind": "current", "scale": "power_of_two", "margin": 0, "granularity": "tensor"},
}


@pytest.mark.parametrize("kind", TREES)
def test_what_was_not_asked_for_is_not_in_the_tree(kind: str) -> None:
    """So run ids of the first edition stay."""
    assert QuantizerSpec.made_from({"format": "e4m3fn", "scaling": kind}).scaling.tree() == TREES[kind]


@pytest.mark.parametrize(("preset", "long"), [
    ("mx", {"kind": "block", "size": 32, "scale": "e8m0", "mode": "floor"}),
    ("nvfp4", {"kind": "block", "size": 16, "scale": "e4m3fn", "outer": "tensor"}),
])  # fmt: skip
def test_presets_are_blocks_with_other_defaults(preset: str, long: Any) -> None:
    x = sample(5, 70)
    assert torch.equal(cast(x, "e2m1", preset)[0], cast(x, "e2m1", long)[0])


@pytest.mark.parametrize("scaling", [
    {"kind": "nvfp4", "shape": "square"}, {"kind": "nvfp4", "shape": "square", "choose": [6, 4], "arithmetic": "te"},
    {"kind": "mx", "shape": "square", "mode": "rceil"}, {"kind": "block", "shape": "square", "scale": "real"},
])  # fmt: skip
def test_squares_give_a_matrix_and_its_transpose_the_same_values(scaling: Any) -> None:
    x = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cast(x, "e2m1", scaling)[0].T, cast(x.T.contiguous(), "e2m1", scaling)[0])


@pytest.mark.parametrize(
    "more", [{}, {"outer": "tensor", "scale": "e4m3fn"}, {"choose": [6, 4]}, {"statistic": "absmean", "scale": "real"}]
)
def test_what_goes_for_the_transpose_unasked_is_what_looking_at_it_gives(more: Any) -> None:
    """Scales, counts and values of ragged squares, found along either axis."""
    spec: Any = {"format": "e2m1", "scaling": {"kind": "block", "size": 16, "shape": "square", **more}}
    quantizer, x = Quantizer(spec, reduced="first"), sample(70, 41)
    assert quantizer.scaling.either_way == (not {"choose", "statistic"} & set(more))
    found, asked = quantizer.find_scale(x, count=True), quantizer.scaling.find((x.mT,), count=True)
    assert found is not None and asked is not None and asked.clamped is not None
    assert torch.equal(found.spread((70, 41)), asked.turned.spread((70, 41)))
    assert found.clamped == asked.clamped


def test_of_several_maxima_each_block_keeps_the_one_of_least_error() -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    alone = [cast(x, "e2m1", {"kind": "nvfp4", "choose": [c], "outer": "none"})[0] for c in (6, 4)]
    both = cast(x, "e2m1", {"kind": "nvfp4", "choose": [6, 4], "outer": "none"})[0]
    errors = [(y - x).view(40, 4, 16).square().sum(-1) for y in (*alone, both)]
    assert torch.allclose(errors[2], torch.minimum(errors[0], errors[1]))
    assert 0 < int((errors[1] < errors[0]).sum()) < 160


def test_a_format_too_wide_for_a_factor_of_the_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="arithmetic: te multiplies format e8m7's largest value by 448.*divide"):
        Quantizer({"format": "bf16", "scaling": {"kind": "nvfp4", "arithmetic": "te"}})  # type: ignore[arg-type]


@pytest.mark.parametrize("reduced", ["last", "first"])
def test_a_choice_by_drawn_values_keeps_the_draw_of_least_error(reduced: Any) -> None:
    """All candidates meet the same random bits, along either axis, and so does a tensor that is cast in slabs."""
    x = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))

    def made(**scaling: Any) -> Quantizer:
        spec: Any = {"format": "e2m1", "rounding": "stochastic"}
        return Quantizer(spec | {"scaling": {"kind": "nvfp4", "outer": "none", **scaling}}, "s", reduced=reduced)

    tried = made(choose=[6, 4], trial_rounding="stochastic")
    *alone, both, nearest = (
        each.values(x, False, torch.float32)
        for each in (made(choose=[6]), made(choose=[4]), tried, made(choose=[6, 4]))
    )
    blocks = [(y - x) if reduced == "last" else (y - x).T for y in (*alone, both, nearest)]
    errors = [part.reshape(len(part), -1, 16).square().sum(-1) for part in blocks]
    assert torch.allclose(errors[2], torch.minimum(errors[0], errors[1]))
    assert 0 < int((errors[1] < errors[0]).sum()) < errors[0].numel()
    assert bool((errors[2] <= errors[3] * (1 + 1e-6)).all()) and not torch.equal(both, nearest)
    assert torch.equal(tried.cast(x, False).values(torch.float32), both)
    slabs = [cast.values(torch.float32) for _, cast in cast_in_slabs(x, tried, whole_scale(x, tried))]
    assert torch.equal(torch.cat(slabs), both)


@pytest.mark.parametrize("rounding", ["up", "stochastic"])
def test_scales_can_be_rounded_up_or_drawn(rounding: str) -> None:
    """Up nothing is clipped; drawn, a scale is right on average, with other bits than the elements."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    scaling: Any = {"kind": "nvfp4", "scale_rounding": rounding}
    quantizer = Quantizer({"format": "e2m1", "scaling": scaling}, "s")
    if rounding == "up":
        assert float(quantizer.cast(x, False).exact.abs().max()) <= 6 * (1 + 2**-20)
        return
    drawn = []
    for _ in range(80):
        made = quantizer.cast(x, True)
        assert made.scale is not None
        drawn.append(made.scale[:, ::16])
        quantizer.commit()
    exact = x.view(64, 16, 16).abs().amax(-1) / 6
    mean, deviation = torch.stack(drawn).mean(0), torch.stack(drawn).std(0)
    moved = deviation > 0.001 * exact
    error = (mean - exact)[moved] / deviation[moved] * 80**0.5
    assert int(moved.sum()) > 900 and 0.8 < float(error.square().mean()) < 1.3


def test_a_fixed_scale_is_its_value() -> None:
    x = sample(4, 9)
    y, scale = cast(x, "e4m3fn", {"kind": "fixed", "value": 0.00357})
    assert float(scale) == float(np.float32(0.00357)) and torch.equal(y, round_to(x, "e4m3fn", scale=scale))


@pytest.mark.parametrize("arithmetic", ["te", "torchao"])
def test_a_delayed_scale_keeps_the_number_of_its_arithmetic(arithmetic: str) -> None:
    """The step after one tensor uses, bit for bit, what `current` finds for that tensor."""
    x, y = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(3))
    delayed: Any = {"kind": "delayed", "scale": "real", "arithmetic": arithmetic, "history": 1}
    quantizer = Quantizer({"format": "e4m3fn", "scaling": delayed}, "s")
    quantizer.cast(x.requires_grad_(), True)
    quantizer.commit()
    current: Any = {key: value for key, value in delayed.items() if key != "history"} | {"kind": "current"}
    expected = Quantizer({"format": "e4m3fn", "scaling": current}, "s").find_scale(x.detach())
    found = quantizer.find_scale(y)
    assert torch.equal(found.factor, expected.factor) and torch.equal(found.entries, expected.entries)
