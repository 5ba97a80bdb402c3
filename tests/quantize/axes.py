"""What a cast can be told, drawn over all its axes at once, and tensors to cast.

`words` draws what a user might write: each axis alone, so pairs without meaning are among them. `specs` are those that
are taken.
"""

from typing import Any, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from altgrad.formats import Rounding
from altgrad.quantize import QuantizerSpec
from altgrad.quantize.arithmetic import Arithmetic
from altgrad.spec import SpecError

TABLE = {"values": [-1.0, -0.25, 0.0, 0.125, 0.5, 2.0]}
FORMATS = (
    "e2m1", "e2m1", "e4m3fn", "e4m3fn", "e5m2", "e2m3", "e3m2", "e0m3", "e0m7", "e1m2b1", "e3m4", "e4m3fnuz", "e6m1",
    "e7m0", "int8", "int4", "nf4", "bnb_fp4", "ternary", "hif8", "posit8", "lns8", TABLE,
)  # fmt: skip
SCALES = ("e4m3fn", "e4m3fn", "e5m2", "e8m0fnu", "e3m4", "bf16", "fp16")
KINDS = ("unscaled", "fixed", "current", "delayed", "mse", "block", "block", "mx", "nvfp4", "nvfp4")


def words(scales: tuple[str, ...] = ("power_of_two", "real", "e8m0", *SCALES)) -> st.SearchStrategy[dict[str, Any]]:
    """A cast, by axes that do not know one another; most are left out."""

    def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.lists(st.sampled_from(sorted(fields) or [""]), max_size=min(4, len(fields)), unique=True).flatmap(
            lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
        )

    one_of = st.sampled_from
    common = {
        "scale": one_of(scales),
        "statistic": one_of(("amax", "amax", "std", "absmean")),
        "margin": one_of((0, 1, -1, 3)),
        "target": one_of((1.0, 0.75, 1.5)),
        "prescale": one_of((1.0, 0.75)),
        "floor": one_of((0.0, 1e-12, 1e-4, 0.5)),
        "arithmetic": one_of(get_args(Arithmetic)),
    }
    granular = {"granularity": one_of(("tensor", "channel"))}
    rounded = {
        "scale_rounding": one_of(("nearest", "up", "stochastic")),
        "least": one_of((0.0, 2.0**-6)),
        "zero_becomes": one_of((0.0, 1.0)),
    }
    blocks = (
        common
        | rounded
        | {
            "size": one_of((1, 4, 16, 32)),
            "shape": one_of(("row", "square")),
            "mode": one_of(("floor", "ceil", "rceil", "even")),
            "outer": one_of(("none", "tensor", "row", 32, 64)),
            "scale_max": one_of((256.0, 448.0)),
            "choose": one_of(((6.0, 4.0), (4.0,), (1.0, 0.5))),
            "by": one_of(("mse", "mae", "amax")),
            "trial_rounding": one_of(("nearest", "stochastic")),
        }
    )
    fields = {
        "unscaled": {},
        "fixed": {"value": one_of((1.0, 0.25, 0.3)), "arithmetic": one_of(("divide", "reciprocal"))},
        "current": common | granular | rounded,
        "delayed": common | granular | {"history": one_of((1, 4)), "reduce": one_of(("max", "most_recent"))},
        "mse": {"scale": one_of(scales), "margin": one_of((0, 1)), "candidates": one_of((1, 5)), **granular},
        "block": blocks,
        "mx": blocks,
        "nvfp4": blocks,
    }
    scaling = one_of(KINDS).flatmap(lambda kind: some(**fields[kind]).map(lambda chosen: {"kind": kind, **chosen}))
    outside = some(
        rounding=one_of([mode.value for mode in Rounding]),
        overflow=one_of(("saturate", "inf")),
        gradient=one_of(("identity", "clipped")),
        random_bits=one_of((1, 8, 24)),
        nonfinite=one_of(("keep", "saturate")),
        source=one_of(("original", "forward", "forward_rotated")),
        correction=one_of(("none", "none", "eden")),
    )
    return st.builds(
        lambda form, scaled, more: {"format": form, "scaling": scaled, **more}, one_of(FORMATS), scaling, outside
    )


def taken(said: dict[str, Any]) -> QuantizerSpec | None:
    """The spec, or None where the words are refused."""
    try:
        return QuantizerSpec.made_from(said)  # type: ignore[arg-type]
    except SpecError:
        return None


@st.composite
def specs(draw: st.DrawFn, **fixed: Any) -> QuantizerSpec:
    """A valid spec: what is drawn, less words for which it is refused. `fixed` and the bare kinds are never dropped."""
    said = {**draw(words()), **{name: value for name, value in fixed.items() if name != "scaling"}}
    scaling = {**said.pop("scaling"), **fixed.get("scaling", {})}
    spare = [("scaling", key) for key in scaling if key not in ("kind", *fixed.get("scaling", {}))]
    spare += [("", key) for key in said if key not in ("format", *fixed)]

    def without(dropped: list[tuple[str, str]]) -> QuantizerSpec | None:
        kept = {key: value for key, value in scaling.items() if ("scaling", key) not in dropped}
        return taken({"scaling": kept, **{key: value for key, value in said.items() if ("", key) not in dropped}})

    for count in range(len(spare) + 1):
        always = spare[:count]
        for one in [[], *([each] for each in spare[count:])]:
            found = without(always + one)
            if found is not None:
                return found
    raise AssertionError(f"refused even bare: {said}, {scaling}")


@st.composite
def tensors(draw: st.DrawFn, rows: int = 20, columns: int = 72, spread: int = 4) -> Tensor:
    """A matrix with rows of sizes 2^-spread to 2^spread, some of zeros, some elements alike."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(draw(st.integers(1, rows)), draw(st.integers(1, columns)), generator=generator)
    sizes = torch.randint(-spread, spread + 1, (len(x), 1), generator=generator)
    x = x * torch.exp2(sizes)
    x[torch.rand(x.shape, generator=generator) < 0.1] = 0
    if draw(st.booleans()):
        x[draw(st.integers(0, len(x) - 1))] = 0
    return x
