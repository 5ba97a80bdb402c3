"""Claims about the two engines: the short form has the bits of the general definition, and compiling changes none."""

import math
import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.formats import CATALOG, FloatFormat, Rounding
from altgrad.quantize import Quantizer, round_to
from altgrad.quantize.engine import SMALL, cast_values, ready_compiler, serves

# torch.compile warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

FORMATS = [
    FloatFormat.parse(name) for name in dict.fromkeys([entry.name for entry in CATALOG] + ["e0m7", "e1m6", "e2m5f"])
]
IN_DOMAIN = [fmt for fmt in FORMATS if fmt.in_tensor_domain]
MODES = [Rounding.nearest_even, Rounding.stochastic]


def bits(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), 0x7FC00000, x.view(torch.int32))


def points(fmt: FloatFormat, scale: float) -> Tensor:
    """Every value, midpoint and overflow threshold with its float32 neighbours, random numbers, and the odd ones."""
    values = torch.tensor(fmt.magnitudes[:4096], dtype=torch.float64)
    beyond = torch.tensor([fmt.max * factor for factor in (1.01, 1.25, 1.5, 2, 2.5, 1e6)], dtype=torch.float64)
    exact = torch.cat([values, (values[1:] + values[:-1]) / 2, beyond]).mul(scale).to(torch.float32)
    near = torch.cat([exact, torch.nextafter(exact, torch.tensor(math.inf)), torch.nextafter(exact, torch.tensor(0.0))])
    torch.manual_seed(0)
    wide = torch.randn(4000) * torch.exp2(torch.randint(-150, 128, (4000,)).float())
    odd = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-149), 3.4e38])
    return torch.cat([near, -near, wide, odd])


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("fmt", IN_DOMAIN, ids=str)
def test_the_short_form_has_the_bits_of_the_general_one(fmt: FloatFormat, rounding: Rounding) -> None:
    if not serves(fmt, rounding):
        pytest.skip(f"{fmt} under {rounding} takes the general definition")
    key = torch.tensor(7)
    for scale in (None, 1.0, 2.0**-20, 2.0**30, 2.0**-126, 2.0**127):
        x = points(fmt, 1.0 if scale is None or not 2.0**-40 < scale < 2.0**40 else scale)
        at = None if scale is None else torch.tensor(scale)
        found = cast_values(x, at, fmt, rounding, exact_reciprocal=True, key=key)
        assert torch.equal(bits(found), bits(round_to(x, fmt, rounding, scale=at, key=7))), scale
    at = torch.tensor(0.3)
    found = cast_values(x, at, fmt, rounding, exact_reciprocal=False, key=key)
    assert torch.equal(bits(found), bits(round_to(x, fmt, rounding, scale=at, key=7)))


def test_every_format_of_the_mission_is_served_stochastically_and_all_with_mantissas_nearest() -> None:
    for name in ("e0m7", "e1m6", "e3m4", "e5m2", "e4m3fn"):
        assert all(serves(FloatFormat.parse(name), mode) for mode in MODES)
    assert serves(FloatFormat.parse("e7m0"), Rounding.stochastic)


@pytest.mark.needs("c++")
@pytest.mark.parametrize(
    ("rounding", "whole"),
    [(Rounding.nearest_even, False), *(pytest.param(each, True, marks=pytest.mark.long) for each in MODES)],
)
def test_compiled_casts_have_the_same_bits_for_formats_shapes_dtypes_and_scales(
    rounding: Rounding, whole: bool
) -> None:
    """Many formats in one process: a graph for each kind of scale and dtype, none fallen back.

    Daily of one shape: bfloat16 without a scale and float32 with a scale for each row.
    """
    key = torch.tensor(3)
    rows = torch.exp2(torch.arange(-8.0, 8.0)).view(16, 1)
    for fmt in (f for f in IN_DOMAIN if serves(f, rounding)):
        for shape in ((SMALL,), (16, 321)) if whole else ((16, 321),):
            x = points(fmt, 1.0)
            x = x.repeat(math.ceil(math.prod(shape) / len(x)))[: math.prod(shape)]
            ends = [math.inf, -math.inf]
            x[:2] = torch.tensor(ends)
            x = x.view(shape)
            scales = [None, *([rows] if len(shape) > 1 else []), *([torch.tensor(2.0**-9)] if whole else [])]
            for scale in scales:
                for dtype in [torch.bfloat16] * (scale is None) + [torch.float32] * (whole or scale is not None):
                    made: dict[str, Tensor] = {}
                    for engine in ("eager", "compiled"):
                        made[engine] = cast_values(
                            x.to(dtype), scale, fmt, rounding,
                            exact_reciprocal=True, nonfinite="keep", key=key, engine=engine,
                        )  # fmt: skip
                    assert made["compiled"].flatten()[:2].tolist() == ends
                    assert torch.equal(bits(made["eager"]), bits(made["compiled"])), (str(fmt), shape, dtype)


@pytest.mark.needs("c++")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(threads: int) -> None:
    torch.set_num_threads(threads)
    x = torch.linspace(-3, 3, 200_001)
    spec: Any = {"format": "e4m3fn", "rounding": "stochastic"}
    made = []
    for engine in ("eager", "compiled"):
        quantizer = Quantizer(spec, "site")
        quantizer.engine = engine  # type: ignore[assignment]
        made.append(quantizer(x))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], round_to(x, "e4m3fn", "stochastic", scale=2.0**-7, key=_key("site")))


def _key(site: str) -> Tensor:
    from altgrad.quantize.noise import fold, site_key

    return fold(site_key(0, site), torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize("cast", ["e4m3fn", {"format": "e5m2", "rounding": "stochastic"}, {"format": "e7m0"}])
def test_what_observers_see_is_what_the_short_form_gives(cast: Any) -> None:
    seen: list[Tensor] = []
    x = torch.randn(100, 100) * torch.exp2(torch.randint(-12, 3, (100, 100)).float())
    watched, alone = Quantizer(cast, "s"), Quantizer(cast, "s")
    watched.watching = True
    watched.observers.append(lambda made: seen.append(made.values(torch.float32)))
    assert torch.equal(watched(x), alone(x))
    assert torch.equal(seen[0], alone.eval()(x)) or watched.spec.rounding is Rounding.stochastic


def test_graphs_for_a_gpu_divide_as_eager_does() -> None:
    """Inductor's own default there is within 2 ulp, and a cast at a scale like 0.3 rounded some ties otherwise."""
    import torch._inductor.config

    assert torch._inductor.config.eager_numerics.division_rounding


CAST = """
import torch
from altgrad.formats import FloatFormat, Rounding
from altgrad.quantize.engine import cast_values
x = torch.linspace(-3, 3, 8192)
fmt, scale, MODES = FloatFormat.parse("e4m3fn"), torch.tensor(0.5), ("eager", "compiled")
cast = [cast_values(x, scale, fmt, Rounding.nearest_even, exact_reciprocal=True, engine=e) for e in MODES]
print(torch.equal(*cast))
"""


@pytest.mark.long
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs a processor of two vector widths"
)
def test_a_cache_written_for_other_vectors_is_not_read(tmp_path):
    for capability in ("avx512", "avx2"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        found = subprocess.run([sys.executable, "-c", CAST], env=environment, capture_output=True, text=True)
        assert found.stdout == "True\n", (capability, found.stderr)


@pytest.mark.needs("c++")
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="vectors of x86-64")
def test_what_is_compiled_uses_vectors_whole() -> None:
    """In halves, each look at a float's bits waits for memory: five times the time of a cast."""
    from torch._inductor.cpu_vec_isa import VecAVX512

    ready_compiler()
    kinds: list[type[VecAVX512]] = [VecAVX512]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert kind._arch_flags.split().count("-mprefer-vector-width=512") == 1


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="vectors of x86-64")
def test_casts_in_a_graph_that_someone_else_compiles_use_vectors_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr("altgrad.quantize.engine.whole_vectors", lambda: told.append(True) or True)
    fmt, x = FloatFormat.parse("e4m3fn"), torch.linspace(-3, 3, 64)

    def cast(x: Tensor) -> Tensor:
        return cast_values(x, None, fmt, Rounding.nearest_even, exact_reciprocal=True)

    plain = cast(x)
    assert not told
    assert torch.equal(torch.compile(cast, backend="eager", fullgraph=True)(x), plain) and told
