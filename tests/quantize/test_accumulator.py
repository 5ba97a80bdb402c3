"""Claims about what products add up in: the recorded instructions, an exact oracle in integers, and IEEE's specials.

The oracle is written from the published model alone and knows nothing but Python's integers; what was recorded, from
where, stands in tests/references/README.md.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from altgrad.formats import FloatFormat, parse_format
from altgrad.quantize.accumulator import INSTRUCTIONS, AccumulatorSpec, Digits, Factor, by_definition, fused
from altgrad.quantize.accumulator_engine import accumulate
from altgrad.quantize.codes import from_codes

RECORDED = Path(__file__).parents[1] / "references" / "mma_sim.safetensors"
WORDS = {"hopper": "hopper_fast", "ada": "ada", "blackwell": "blackwell"}
NAMES = {"e4m3": "e4m3fn", "e5m2": "e5m2", "mxfp8": "e4m3fn", "nvfp4": "e2m1", "mxfp4": "e2m1"}


def floats(name: str) -> FloatFormat:
    found = parse_format(name)
    assert isinstance(found, FloatFormat)
    return found


E4M3, E5M2 = Digits.of(floats("e4m3fn")), Digits.of(floats("e5m2"))


def spec(value: Any) -> AccumulatorSpec:
    return AccumulatorSpec.model_validate(value)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


class Case(NamedTuple):
    name: str
    a: Factor
    b: Factor
    spec: AccumulatorSpec
    start: Tensor | None
    d: Tensor


def recorded() -> list[Case]:
    f, found = load_file(RECORDED), []
    for key in sorted(name.removesuffix(".d") for name in f if name.endswith(".d")):
        chip, words = key.split(".")[:2]
        packed, scaled = words.endswith("fp4"), f"{key}.scale_a" in f
        factors = []
        for side, word in zip("ab", (words.split("_") * 2)[:2], strict=True):
            codes = f[f"{key}.{side}"] if side == "a" else f[f"{key}.b"].T.contiguous()
            if packed:
                codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
            scale, fmt = None, floats(NAMES[word])
            if scaled:
                stored = f[f"{key}.scale_{side}"] if side == "a" else f[f"{key}.scale_b"].T.contiguous()
                kind = torch.float8_e4m3fn if words == "nvfp4" else torch.float8_e8m0fnu
                scale = stored.view(kind).float()
            block = 0 if scale is None else codes.shape[1] // scale.shape[1]
            factors.append(Factor(from_codes(codes, fmt), Digits.of(fmt), scale, block))
        instruction = "blackwell_fp4" if packed else WORDS[chip]
        found.append(Case(key, *factors, spec(instruction), f.get(f"{key}.c"), f[f"{key}.d"]))
    return found


CASES = recorded()


def test_the_record_is_whole() -> None:
    assert sum(case.d.numel() for case in CASES) == 18_176
    assert {case.spec.text for case in CASES} == INSTRUCTIONS.keys() - {"hopper_promote_128"}


@pytest.mark.parametrize("term_by_term", [False, True])
def test_no_recorded_product_differs(term_by_term: bool) -> None:
    wrong = [
        c.name for c in CASES if not same(accumulate(c.a, c.b, c.spec, start=c.start, term_by_term=term_by_term), c.d)
    ]
    assert wrong == []


def test_the_definition_gives_the_recorded_products() -> None:
    for c in CASES:
        start = None if c.start is None else c.start[:8]
        assert same(by_definition(c.a._replace(**first(c.a, 8)), c.b, c.spec, start), c.d[:8]), c.name


def first(factor: Factor, rows: int) -> dict[str, Any]:
    whole = {name: getattr(factor, name) for name in ("units", "within", "after")}
    return {name: x[:rows] for name, x in whole.items() if x is not None and x.ndim and len(x) > 1}


# The oracle: numbers are (n, e), n 2^e, in Python's integers.


def shifted(n: int, by: int) -> int:
    """n 2^by towards zero."""
    magnitude = abs(n) << by if by >= 0 else abs(n) >> -by
    return -magnitude if n < 0 else magnitude


def split(x: float) -> tuple[int, int]:
    numerator, denominator = x.as_integer_ratio()
    return numerator, 1 - denominator.bit_length()


def high(n: int, e: int) -> int:
    return abs(n).bit_length() - 1 + e


def to_float32(n: int, e: int) -> float:
    """To nearest, ties to even."""
    if n == 0:
        return 0.0
    cut = max(high(n, e) - 23, -149) - e
    if cut <= 0:
        return math.ldexp(n, e)
    whole, rest = abs(n) >> cut, abs(n) & ((1 << cut) - 1)
    whole += rest > 1 << (cut - 1) or (rest == 1 << (cut - 1) and whole & 1)
    return math.copysign(math.ldexp(whole, e + cut), n)


def oracle(a: list[float], b: list[float], lows: tuple[int, int], how: AccumulatorSpec, scales: list[float]) -> float:
    """The dot product. scales: s_a s_b of each 32 terms, powers of two that the instruction takes; or none."""
    c, total = (0, 0), 0.0
    for start in range(0, len(a), how.chunk):
        terms = []
        for k in range(start, min(start + how.chunk, len(a))):
            if a[k] and b[k]:
                (n, e), (m, f) = split(a[k]), split(b[k])
                s = high(*split(scales[k // 32])) if scales else 0
                terms.append((n * m, e + f + s, max(high(n, e), lows[0]) + max(high(m, f), lows[1]) + s))
        top = max([-126, *(at for _, _, at in terms), *([high(*c)] if c[0] else [])])
        n = sum(shifted(n, e + how.bits - top) for n, e, _ in [*terms, (*c, 0)])
        last = max(high(n, top - how.bits), -126) if n else 0
        c = shifted(n, top - how.bits + how.result_bits - last), last - how.result_bits
        if c[0] and high(*c) >= 128:
            return math.copysign(math.inf, c[0])
        if how.promote and ((start + how.chunk) % how.promote == 0 or start + how.chunk >= len(a)):
            (n, e), (m, f) = split(total), c
            low = min(e, f)
            total, c = to_float32((n << (e - low)) + (m << (f - low)), low), (0, 0)
    return total if how.promote else math.ldexp(*c)


def drawn(fmt: str, rows: int, k: int, seed: int, low: int = 0) -> Tensor:
    """Codes of every magnitude, sub-normals and zeros among them, or (seed odd) of a narrow range."""
    f, generator = floats(fmt), torch.Generator().manual_seed(seed)
    top = f.max_code + 1
    codes = torch.randint(top // 2 * (seed % 2), top, (rows, k), generator=generator)
    return from_codes(codes | torch.randint(0, 2, (rows, k), generator=generator) << (f.bits - 1), f)


def against_oracle(fmt_a: str, fmt_b: str, how: AccumulatorSpec, m: int, n: int, k: int, seed: int) -> int:
    """How many products differ, of m n."""
    a, b = drawn(fmt_a, m, k, seed), drawn(fmt_b, n, k, 2 * seed + seed % 2)
    lows = floats(fmt_a).e_min, floats(fmt_b).e_min
    scales_a = scales_b = None
    if how.scales == "within":
        generator = torch.Generator().manual_seed(seed)
        powers = [torch.randint(-12, 13, (rows, -(-k // 32)), generator=generator) for rows in (m, n)]
        scales_a, scales_b = (torch.exp2(each.float()) for each in powers)
    x, w = Factor(a, Digits.of(floats(fmt_a)), scales_a, 32), Factor(b, Digits.of(floats(fmt_b)), scales_b, 32)
    found = accumulate(x, w, how)
    assert same(found, accumulate(x, w, how, term_by_term=True)) and same(found, by_definition(x, w, how))
    listed, wrong = (a.tolist(), b.tolist()), 0
    for i in range(m):
        for j in range(n):
            both = [] if scales_a is None or scales_b is None else (scales_a[i] * scales_b[j]).tolist()
            wrong += oracle(listed[0][i], listed[1][j], lows, how, both) != float(found[i, j])
    return wrong


FREE = {"bits": 9, "chunk": 24, "result_bits": 11, "promote": 48}
SORTS = [
    ("e4m3fn", "e4m3fn", "hopper_fast"), ("e4m3fn", "e5m2", "hopper_promote_128"), ("e5m2", "e5m2", "ada"),
    ("e5m2", "e4m3fn", "blackwell"), ("e2m1", "e2m3", "blackwell"), ("e4m3fn", "e3m2", FREE),
    ("bf16", "fp16", {"bits": 24, "chunk": 8}), ("e8m7", "e5m2", {"bits": 30, "chunk": 40, "result_bits": 20}),
]  # fmt: skip


@pytest.mark.parametrize(("fmt_a", "fmt_b", "how"), SORTS, ids=lambda value: str(value)[:18])
def test_the_oracle_in_integers_agrees(fmt_a: str, fmt_b: str, how: Any) -> None:
    for seed, k in ((1, 300), (2, 41)):
        assert against_oracle(fmt_a, fmt_b, spec(how), 5, 7, k, seed) == 0


@pytest.mark.long
@pytest.mark.parametrize("sort", range(len(SORTS)))
def test_a_hundred_thousand_products_agree_with_the_oracle(sort: int) -> None:
    fmt_a, fmt_b, how = SORTS[sort]
    wrong = sum(
        against_oracle(fmt_a, fmt_b, spec(how), 33, 65, k, seed) for seed, k in enumerate((32, 33, 64, 96, 160, 290))
    )
    assert wrong == 0


def operands(k: int = 128, seed: int = 3) -> tuple[Factor, Factor]:
    return Factor(drawn("e4m3fn", 6, k, seed), E4M3), Factor(drawn("e4m3fn", 70, k, seed + 1), E4M3)


def test_order_matters_between_chunks_and_not_within() -> None:
    a, b = operands()
    hopper = spec("hopper_fast")
    found = accumulate(a, b, hopper)
    within = torch.cat([torch.randperm(32, generator=torch.Generator().manual_seed(c)) + 32 * c for c in range(4)])
    between = torch.arange(128).view(4, 32).flip(0).reshape(-1)
    for order, equal in ((within, True), (between, False)):
        turned = [each._replace(units=each.units[:, order]) for each in (a, b)]
        assert same(found, accumulate(turned[0], turned[1], hopper)) is equal


def test_a_last_chunk_is_filled_up_with_zeros_and_no_terms_give_zero() -> None:
    a, b = operands(45)
    padded = [each._replace(units=torch.nn.functional.pad(each.units, (0, 19))) for each in (a, b)]
    for name in ("hopper_fast", "hopper_promote_128", "ada", "blackwell"):
        found = accumulate(a, b, spec(name))
        assert same(found, accumulate(padded[0], padded[1], spec(name)))
        none = accumulate(a._replace(units=a.units[:, :0]), b._replace(units=b.units[:, :0]), spec(name))
        assert same(none, torch.zeros(6, 70))
        assert accumulate(a._replace(units=a.units[:0]), b, spec(name)).shape == (0, 70)


def test_one_huge_term_leaves_nothing_of_small_ones() -> None:
    x = torch.full((1, 32), 2.0**-6)
    x[0, 5] = 448.0
    a, b = Factor(x, E4M3), Factor(torch.ones(1, 32), E4M3)
    assert accumulate(a, b, spec("hopper_fast")).item() == 448.0  # exact: 448 + 31 / 64
    assert accumulate(a, b, spec("blackwell")).item() == 448 + 31 / 64
    told: list[int] = []
    by_definition(a, b, spec("hopper_fast"), lost=told)
    assert told == [32, 31]


def test_a_term_is_aligned_to_the_sum_of_the_exponents() -> None:
    """1.875^2 = 3.515625 has exponent 1, and its operands' sum is 0: aligned by that one bit of the product is kept."""
    units = torch.tensor([[1.875, 0.001953125]])
    for alignment, kept in (("exponents", 3.515625), ("product", 3.5)):
        how = {"bits": 6, "alignment": alignment}
        assert accumulate(Factor(units, E4M3), Factor(torch.tensor([[1.875, 1.0]]), E4M3), spec(how)).item() == kept


def test_subnormals_count_with_the_exponent_of_the_least_normal_number() -> None:
    """Each is 2^-9, and e_min -6: at 2 bits below 2^-12 their product is nothing, by its own exponent all of it."""
    x = Factor(torch.full((1, 8), 2.0**-9), E4M3)
    assert accumulate(x, x, spec({"bits": 2})).item() == 0.0
    assert accumulate(x, x, spec({"bits": 2, "alignment": "product"})).item() == 8 * 2.0**-18


@pytest.mark.parametrize("name", ["hopper_fast", "hopper_promote_128", "ada", "blackwell"])
def test_specials_follow_ieee(name: str) -> None:
    inf, nan = math.inf, math.nan
    rows = [[inf, 1.0], [inf, -inf], [nan, 1.0], [inf, 0.0], [-inf, 3.0], [1.0, 1.0]]
    a, b = torch.zeros(6, 70), torch.ones(2, 70)
    a[:, [0, 69]] = torch.tensor(rows)
    b[1, 0] = 0.0
    found = accumulate(Factor(a, E5M2), Factor(b, E5M2), spec(name))
    expected = torch.tensor([[inf, nan], [nan, nan], [nan, nan], [inf, nan], [-inf, nan], [2.0, 1.0]])
    assert torch.equal(found.nan_to_num(7.0, 8.0, 9.0), expected.nan_to_num(7.0, 8.0, 9.0))


def test_a_nan_scale_makes_nan_and_what_overflows_stays_infinite() -> None:
    units, scale = torch.full((1, 64), 448.0), torch.tensor([[2.0**127, 1.0]])
    a = Factor(units, E4M3, scale, 32)
    b = Factor(-units, E4M3, torch.ones(1, 1), 64)
    for one in (True, False):
        assert accumulate(a, b, spec("blackwell"), term_by_term=one).item() == -math.inf
    assert accumulate(a._replace(within=torch.tensor([[1.0, math.nan]])), b, spec("blackwell")).isnan()


def test_scales_after_enter_as_products_of_float32() -> None:
    """Of the whole sum: once at the end; of 128 terms: by a fused multiply-add at each promotion."""
    a, b = operands(256)
    row, tensor = torch.rand(6, 1) + 0.1, torch.tensor(0.3)
    bare = accumulate(a, b, spec("hopper_fast"))
    scaled = accumulate(a._replace(after=row), b._replace(after=tensor), spec("hopper_fast"))
    assert same(scaled, bare * (row * tensor))
    blocks = torch.rand(6, 2) + 0.1
    halves = [
        accumulate(*(each._replace(units=each.units[:, part]) for each in (a, b)), spec("hopper_fast"))
        for part in (slice(0, 128), slice(128, 256))
    ]
    total = torch.zeros(6, 70, dtype=torch.float64)
    for number, half in enumerate(halves):
        total = fused((blocks * tensor)[:, number : number + 1], half.double(), total)
    promoted = (a._replace(after=blocks, after_block=128), b._replace(after=tensor), spec("hopper_promote_128"))
    assert same(accumulate(*promoted), total.float()) and same(by_definition(*promoted), total.float())


def test_a_fused_multiply_add_is_rounded_once() -> None:
    """c s + total = 1 + 2^-24 + 2^-70, above the tie that float64 would see."""
    one = torch.ones(1, dtype=torch.float64)
    scale, c = torch.tensor([1 + 2.0**-23]), one * 2.0**-24 * (1 - 2.0**-23)
    assert fused(scale, c, one).item() == 1.0
    assert fused(torch.tensor([2.0**-30]), one * 2.0**-40, one + 2.0**-23).item() == 1 + 2.0**-23
    assert fused(torch.tensor([1.0]), one * (2.0**-24 + 2.0**-46), one).item() == 1 + 2.0**-23


def test_result_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Factor(drawn("e4m3fn", 300, 64, 5), E4M3), Factor(drawn("e4m3fn", 200, 64, 6), E4M3)
    found = accumulate(a, b, spec("hopper_fast"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert same(found, accumulate(a, b, spec("hopper_fast")))


@pytest.mark.parametrize("how", [{"bits": 13, "rounding": "nearest_even"}, {"bits": 5, "alignment": "product"}])
def test_free_rules_run_by_the_definition(how: dict[str, Any]) -> None:
    a, b = operands(96)
    found = accumulate(a, b, spec(how))
    assert same(found, by_definition(a, b, spec(how)))
    truncated = accumulate(a, b, spec({"bits": how["bits"]}))
    exact = a.units.double() @ b.units.double().T
    if "rounding" in how:
        assert (found - exact).square().mean() < (truncated - exact).square().mean()


BAD = {
    "hoper_fast": "Did you mean 'hopper_fast'?",
    "float32": "float32 is what torch's own products add up in; leave out the accumulator.",
    "promote": "promote: 100 is not a multiple of chunk: 32, and an instruction adds a whole chunk; use 96.",
    "bits": "bits: 48 with chunk: 32 needs sums of 56 bits, and at most 52 are exact; use bits: 44 or fewer.",
    "group": "group sums fixed-point numbers of e2m1; use scales: within and formats: [e2m1].",
    "group 5": "group: 5 does not divide chunk: 32; use a divisor.",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_accumulator_is_refused_in_one_line(name: str) -> None:
    given: dict[str, Any] = {
        "promote": {"bits": 13, "promote": 100}, "bits": {"bits": 48}, "group": {"bits": 13, "group": 16},
        "group 5": {"bits": 13, "group": 5},
    }  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(BAD[name])) as caught:
        AccumulatorSpec.made_from(given.get(name, name))
    assert "\n" not in str(caught.value)


def test_names_are_short_for_their_numbers() -> None:
    for name, fields in INSTRUCTIONS.items():
        assert spec(name).text == name and spec(name).tree() == {"instruction": name}
        assert spec(spec(name).tree()) == spec(name) == AccumulatorSpec(instruction=name, **fields)
    own = spec({"instruction": "hopper_fast", "promote": 64})
    assert own.text == "hopper_fast (promote 64)" and spec(own.tree()) == own
    assert spec({"bits": 9, "chunk": 24}).text == "bits 9, chunk 24" and spec({"bits": 9}).tree() == {"bits": 9}


def peak(run: Callable[[], Any]) -> int:
    """Bytes that this process holds at most while it runs, beyond those it held before."""

    def held(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = held("VmRSS")
    run()
    return held("VmHWM") - before


@pytest.mark.needs("c++")
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell a peak")
@pytest.mark.parametrize("turned", [0, 1, 2])
def test_a_product_takes_no_more_memory_than_its_operands_again(turned: int) -> None:
    """And no more than those of them that lie turned, which are copied, beside some megabytes."""
    k, rows = 1 << 18, 40  # 40 MiB each: such memory goes back to the system at once, so that a peak shows it
    a, b = (
        Factor(torch.empty(k, rows).fill_(1.5).T if each < turned else torch.empty(rows, k).fill_(1.5), E4M3)
        for each in range(2)
    )
    small = Factor(torch.ones(rows, 64), E4M3)
    accumulate(small, small, spec("hopper_promote_128"))
    size = a.units.nbytes
    made = peak(lambda: accumulate(a, b, spec("hopper_promote_128")))
    assert made < turned * size + size // 4 <= 2.25 * size
