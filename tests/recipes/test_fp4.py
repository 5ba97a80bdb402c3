"""Claims about FP4 recipes: what of them is no cast with scales alone."""

import pytest
import torch
from safetensors.torch import load_file

from altgrad.formats import parse_format
from altgrad.quantize import Quantizer
from altgrad.quantize.correction import correction
from altgrad.quantize.gradient import Dge
from bench.reference_casts import recorded
from tests.recipes.vendor import FOLDER, Step, data, rule, slots

TOO_SMALL_A_SCALE = {("edge", 0.99): [18], ("edge", 0.97): [26]}
"""Rows of an amax 0.5 % above 6 times a power of two, of which MS-AMP takes log2 in bfloat16."""


def test_quartet_two_forward() -> None:
    """Both operands in NVFP4, each block to 6 or 4 by squared error."""
    found = load_file(FOLDER.parent / "recipes.safetensors")
    x, w, y = (found[f"quartet2.linear.{each}"].float() for each in ("x", "w", "y"))
    casts = rule("quartet2")
    step = Step({each: casts[each] for each in ("weight", "input")}, x, w, torch.ones_like(y), torch.float32)
    step.compare(y, None, None, steps=4)


@pytest.mark.parametrize("name", ["normal", "lognormal", "t2", "edge"])
def test_eden_before_its_draw(name: str) -> None:
    """No value and no scale differs; corrections to the order of summation, and 1 where the torch code has inf."""
    found, spec = data("quartet2"), slots("quartet2")["grad_weight.grad_output"]
    x, scale = found[f"eden.{name}.transformed"], found[f"eden.{name}.scale"]
    plain = Quantizer({**spec.tree(), "correction": "none"}).cast(x, False)  # type: ignore[arg-type]
    assert plain.scale is not None and spec.correction == "eden"
    assert torch.equal(plain.rounded, found[f"eden.{name}.values"] / 2)
    assert torch.equal(plain.scale[:, ::16], scale * found[f"eden.{name}.tensor_scale"])
    expected = found[f"eden.{name}.correction"]
    expected = torch.where(expected.isfinite(), expected, 1.0)
    torch.testing.assert_close(correction(plain.exact, plain.rounded, 32), expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("name", ["normal", "t2", "edge"])
def test_eden_with_real_scales(name: str) -> None:
    """The class as a whole: turned, cast and corrected, with real scales, to an end without the draw's room above it.

    Its kernel and ours add in another order.
    """
    x = load_file(FOLDER / "quartet2.safetensors")[f"eden.{name}.transformed"].float()
    scaling = {"kind": "block", "scale": "real", "size": 16, "target": 1 / 0.93}
    spec = {**slots("quartet2")["grad_weight.input"].tree(), "source": "original", "scaling": scaling}
    y = Quantizer(spec, run=32)(x)  # type: ignore[arg-type]
    expected = load_file(FOLDER.parent / "recipes.safetensors")[f"quartet2.eden_real_scale.{name}.out"].float()
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["normal", "lognormal", "edge"])
@pytest.mark.parametrize(("entry", "quantile"), [("token_clamp_99", 0.99), ("token_clamp_97_residual", 0.97)])
def test_clamping_with_compensation(name: str, entry: str, quantile: float) -> None:
    """All but the rows whose scale the reference finds one power too small. One recording is without what the clamp
    took off, the other rounds it to bfloat16."""
    found = load_file(FOLDER.parents[1] / "quantize" / "outlier_references.safetensors")
    x, expected = found[f"in.{name}"], found[f"{entry}.{name}"]
    spec = slots("wang_fp4", quantile=quantile)["forward.input"].tree()
    if "residual" in entry:
        spec["outliers"]["cast"] = {"format": "bf16", "scaling": "unscaled"}
    cast = Quantizer(spec, "s").cast(x, False)  # type: ignore[arg-type]
    if "residual" not in entry:
        assert cast.parts is not None
        cast = Quantizer({**spec, "outliers": None}, "s").cast(cast.parts.rest.to(x.dtype), False)  # type: ignore[arg-type]
    differing = (cast.values(torch.bfloat16) != expected).any(1).nonzero().flatten().tolist()
    assert differing == TOO_SMALL_A_SCALE.get((name, quantile), [])


def test_slopes() -> None:
    """Bit for bit once rounded to bfloat16, in which MS-AMP writes them; its kernel has no lower end."""
    spec, found = slots("wang_fp4")["forward.weight"], recorded()["msamp_fp4"]
    estimator, fmt = spec.gradient, parse_format("e2m1")
    assert isinstance(estimator, Dge) and (estimator.k, estimator.clamp) == (5, 3.0)
    x = found["slope.in"].float()
    slope = estimator.factor(x, fmt)
    assert slope is not None
    unequal = slope.bfloat16().float() != found["slope.k5_clamp3"].float()
    assert torch.equal(unequal, x < -6) and len(x) > 4_000
    x = found["in.normal"].bfloat16().T.contiguous()
    slope = estimator.factor(Quantizer(spec).cast(x, False).exact, fmt)
    assert slope is not None and torch.equal(slope.bfloat16().float().T, found["channel.normal.slope"].float())
