"""Claims about states in a format: the references' codes, the grid after a step, random bits, resume, bad input."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from altgrad.formats import parse_format
from altgrad.monitors import MonitorSpec
from altgrad.optim import SGD, AdamW, Optimizer, OptimizerSpec
from altgrad.optim.packed_states import packed_state, unpacked_state
from altgrad.optim.states import StateCast, StateSpec
from altgrad.quantize.codes import from_codes, to_codes
from altgrad.quantize.noise import fold
from altgrad.spec import SpecError
from altgrad.watching import MonitorSet

RECORDED = Path(__file__).parents[1] / "references" / "states.safetensors"
FUSES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether torch's lerp is a fused multiply-add here, as it was where codes were recorded."""
UP = {"rounding": "nearest_ties_up"}


def block(fmt: str, size: int, target: float = 1.0, **more: Any) -> dict[str, Any]:
    scaling = {"kind": "block", "size": size, "scale": "real", "target": target, "floor": 1e-12}
    return {"format": fmt, "scaling": scaling, "packed": True, **more}


TORCHAO = {
    "fp8": (block("e4m3fn", 256), block("e4m3fn", 256)),
    "8bit": (block("dynamic8", 256, 1 / 0.99296874, **UP), block("dynamic8_unsigned", 256, **UP)),
    "4bit": (block("dynamic4", 128, 1 / 0.8875, **UP), block("linear4_unsigned", 128, **UP)),
}
COAT = {"format": "e4m3fn", "scaling": {"kind": "block", "scale": "real"}, "packed": True, "expansion": True}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(RECORDED)


def gradient(recorded: dict[str, Tensor], name: str, step: int) -> Tensor:
    codes, exponent = recorded[f"{name}.grad.codes"][step], recorded[f"{name}.grad.exponent"][step]
    return (codes.float().view(len(exponent), -1) * 2.0 ** exponent.float()).view(codes.shape)


def codes_of(optimizer: Optimizer, p: Tensor, name: str) -> Tensor:
    cast, state = optimizer.states[0][name], optimizer.state[p]
    beside = {part: state[f"{name}.{part}"] for part in ("scale", "centre", "exponent") if f"{name}.{part}" in state}
    return to_codes(cast.units(state[name], beside), cast.spec.format).view(-1)


@pytest.mark.parametrize("kind", TORCHAO)
def test_trajectories_are_torchaos(recorded: dict[str, Tensor], kind: str) -> None:
    p = nn.Parameter(recorded["torchao_optim.p0"].clone())
    states = dict(zip(("exp_avg", "exp_avg_sq"), TORCHAO[kind], strict=True))
    optimizer = AdamW([("w", p)], lr=1e-3, weight_decay=0.1, states=states)
    for step in range(20):
        p.grad = gradient(recorded, "torchao_optim", step)
        optimizer.step()
        for name in states if step in (0, 19) else ():
            expected = recorded[f"torchao_optim.{kind}.step{step + 1}.{name}.codes"].flatten().int()
            if kind == "4bit":
                expected = torch.stack([expected >> 4, expected & 15], -1).flatten()
            differ = codes_of(optimizer, p, name) != expected
            assert not differ.any() if FUSES else differ.float().mean() <= 1e-3
            scale = recorded[f"torchao_optim.{kind}.step{step + 1}.{name}.scale"]
            assert not FUSES or torch.equal(optimizer.state[p][f"{name}.scale"], scale)
    assert torch.allclose(p, recorded[f"torchao_optim.{kind}.step20.p"], rtol=0, atol=1e-6)


def test_codes_are_coats(recorded: dict[str, Tensor]) -> None:
    """Ten steps of its own; codes that differ are one apart, and would lie within 4 float32 ulp of a midpoint."""
    p = nn.Parameter(recorded["coat_states.p0"].clone())
    lr, beta1, beta2, decay, eps = recorded["coat_states.settings"].tolist()[:5]
    states = {"exp_avg": COAT, "exp_avg_sq": COAT}
    optimizer = AdamW([("w", p)], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, states=states)
    for step in range(10):
        p.grad = gradient(recorded, "coat_states", step)
        optimizer.step()
        for name, theirs in (("exp_avg", "m"), ("exp_avg_sq", "v")) if step in (0, 1, 9) else ():
            expected = recorded[f"coat_states.step{step + 1}.{theirs}.codes"].int()
            found = codes_of(optimizer, p, name)
            differ = found != expected
            assert differ.float().mean() <= 1e-3 and ((found & 127) - (expected & 127)).abs().max() <= 1
            exponent = recorded[f"coat_states.step{step + 1}.{theirs}.exponent"]
            assert torch.equal(optimizer.state[p][f"{name}.exponent"], exponent)
    assert torch.allclose(p, recorded["coat_states.step10.p"], rtol=0, atol=1e-6)


def test_the_codebooks_are_bitsandbytes(recorded: dict[str, Tensor]) -> None:
    """Values to the last bit. Its CPU library looks codes up in a coarse table: 7 and 242 of 4,096 are not nearest."""
    for name, theirs in (("dynamic8", "signed"), ("dynamic8_unsigned", "unsigned")):
        assert list(parse_format(name).values) == recorded[f"bitsandbytes.codebook.{theirs}"].tolist()  # type: ignore[attr-defined]
    for kind, exceptions in (("normal", 7), ("lognormal", 242)):
        x = recorded[f"bitsandbytes.in.{kind}"]
        cast = StateCast(StateSpec.model_validate(block("dynamic8", 256, 1 / 0.99296874)), "exp_avg")
        kept = cast.kept(x, None)
        codes = to_codes(cast.units(kept.values, kept.beside), cast.spec.format).view(x.shape)
        assert (codes != recorded[f"bitsandbytes.signed.256.{kind}.codes"].int()).sum() == exceptions
        book, units = recorded["bitsandbytes.codebook.signed"], x / x.abs().amax(-1, keepdim=True)
        assert torch.equal(book[codes.long()].sub(units).abs(), (book - units[..., None]).abs().amin(-1))


CASTS: dict[str, dict[str, Any]] = {
    "fp8": block("e4m3fn", 16),
    "coat": {**COAT, "scaling": {"kind": "block", "size": 16, "scale": "real"}},
    "bits": block("dynamic8", 16, 1 / 0.99296874, rounding="stochastic"),
    "four": {"format": "e2m1", "scaling": "nvfp4", "packed": True},
    "bf16": {"format": "bf16", "scaling": "unscaled", "rounding": "stochastic", "packed": True},
    "square": {"format": "int8", "scaling": {"kind": "block", "size": 4, "shape": "square"}, "packed": True},
}


def steps(optimizer: Optimizer, params: list[Tensor], first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape) * 0.1
        optimizer.step()


def made(cast: dict[str, Any], *, kind: str = "adamw", seed: int = 0, **more: Any) -> tuple[Optimizer, list[Tensor]]:
    torch.manual_seed(0)
    params: list[Tensor] = [nn.Parameter(torch.rand(shape) - 0.5) for shape in ((7, 20), (9,))]
    rule = OptimizerSpec.of({"kind": kind}).product()
    names = rule.keeps(dict(OptimizerSpec.of({"kind": kind})))
    spec = OptimizerSpec.of({"kind": kind, "states": dict.fromkeys(names, cast)})
    return spec.build([{"params": list(zip("wb", params, strict=True)), **more}], seed=seed), params


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("taken", ["unrounded", "rounded"])
def test_the_state_after_a_step_is_on_its_grid(name: str, taken: str) -> None:
    for storage in ({"kind": "master"}, {"kind": "eco", "format": "e4m3fn"}):
        optimizer, params = made({**CASTS[name], "step_takes": taken}, storage=storage)
        steps(optimizer, params, 0, 3)
        for p in params:
            written = packed_state(optimizer.state[p], optimizer.states[0])
            for state, cast in optimizer.states[0].items():
                assert state not in written and f"{state}.codes" in written  # every value has a code
                assert written[f"{state}.codes"].nbytes == -(-p.numel() * cast.spec.format.bits // 8)
            back = unpacked_state(written, optimizer.states[0], p.shape)
            assert all(torch.equal(back[key], value) for key, value in optimizer.state[p].items())


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("kind", list(OptimizerSpec.kinds()))
def test_a_gradient_of_zero_moves_nothing(name: str, kind: str) -> None:
    optimizer, params = made(CASTS[name], kind=kind)
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


@pytest.mark.parametrize("name", ["bits", "bf16"])
def test_stochastic_rounding_is_unbiased_and_counted(name: str) -> None:
    cast = StateCast(StateSpec.model_validate(CASTS[name]), "exp_avg")
    torch.manual_seed(1)
    x = torch.randn(4, 16)
    x[:, 0] = 4.0  # within the range: the codebook's lowest value is -0.993 of its highest
    many = cast.kept(x.expand(2000, 4, 16), fold(7, 0)).values.double()
    error = (many.mean(0) - x.double()).abs()
    assert bool((error <= 4 * many.std(0) / math.sqrt(2000) + 1e-9).all()) and bool((many.std(0) > 0).any())
    assert not torch.equal(many[0], cast.kept(x, fold(7, 1)).values.double())
    found = []
    for seed in (0, 0, 1):
        optimizer, params = made(CASTS[name], seed=seed)
        steps(optimizer, params, 0, 2)
        found.append(optimizer.state[params[0]]["exp_avg"].clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert int(optimizer.state[params[0]]["state_step"]) == 2


@pytest.mark.parametrize("name", CASTS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str) -> None:
    whole, one = made(CASTS[name])
    steps(whole, one, 0, 5)
    begun, other = made(CASTS[name])
    steps(begun, other, 0, 3)
    again, third = made(CASTS[name])
    again.load_state_dict(copy.deepcopy(begun.state_dict()))
    for p, q in zip(third, other, strict=True):
        p.data.copy_(q)
    steps(again, third, 3, 5)
    for p, q in zip(one, third, strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(whole.state[p][key], again.state[q][key]) for key in whole.state[p])


def test_small_states_stay_as_they_are() -> None:
    cast, (free, q) = {**block("e4m3fn", 16), "min_size": 100}, made(block("bf16", 16))
    optimizer, (w, b) = made(cast)
    free = AdamW([("w", q[0]), ("b", q[1])], betas=(0.9, 0.95), weight_decay=0.0)
    steps(optimizer, [w, b], 0, 2)
    steps(free, q, 0, 2)
    assert torch.equal(optimizer.state[b]["exp_avg"], free.state[q[1]]["exp_avg"])
    assert not torch.equal(optimizer.state[w]["exp_avg"], free.state[q[0]]["exp_avg"])
    assert optimizer.states[0]["exp_avg"].bytes_of(w) == 140 + 4 * 9


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("{kind: adamw, states: {exp_av: e4m3fn}}", "states.exp_av", "'exp_av' is not a state of adamw"),
        (
            "{kind: sgd, momentum: 0, states: {momentum_buffer: e4m3fn}}",
            "",
            "not a state of sgd as it is set; it keeps none",
        ),
        ("{kind: adamw, states: {max_exp_avg_sq: e4m3fn}}", "", "it keeps exp_avg and exp_avg_sq."),
        ("{kind: adamw, states: {exp_avg: dynamic8_unsigned}}", "", "exp_avg has both signs"),
        ("{kind: adamw, states: {exp_avg: {format: e4m3fn, scaling: delayed}}}", "", "scaling: delayed belongs to"),
        ("{kind: adamw, states: {exp_avg: {format: e4m3fn, expansion: true}}}", "", "expansion stretches blocks"),
        ("{kind: adamw, states: {exp_avg: {format: e4m3fn, min_sise: 1}}}", "", "Did you mean 'min_size'?"),
    ],
)
def test_bad_input_is_one_line_with_its_place(text: str, place: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        OptimizerSpec.parse(text)
    said = str(caught.value)
    assert message in said and "\n" not in said and ":1:" in said
    with pytest.raises(ValueError, match="not a state of SGD as it is set; it keeps none"):
        SGD([nn.Parameter(torch.ones(2))], states={"momentum_buffer": "e4m3fn"})


def test_what_rounding_makes_of_states_is_measured() -> None:
    model = nn.Linear(16, 8)
    optimizer = AdamW(model.named_parameters(), states={"exp_avg": block("e4m3fn", 16), "exp_avg_sq": "e2m1"})
    watch = MonitorSet([MonitorSpec.of({"kind": "optimizer_state", "every": 1})], model, optimizer)
    watch.begin(1)
    (model(torch.randn(4, 16)) ** 2).mean().backward()
    optimizer.step()
    metrics = watch.finish()["optimizer_state"].metrics
    g, state = model.weight.grad, optimizer.state[model.weight]
    assert g is not None
    exact, kept = 0.001 * g.double().square(), state["exp_avg_sq"].double()
    expected = 10 * torch.log10(exact.square().sum() / (kept - exact).square().sum())
    assert metrics["weight/exp_avg_sq/sqnr_db"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["weight/exp_avg_sq/zeroed_rate"] == float((kept == 0).double().mean()) > 0
    assert metrics["weight/exp_avg_sq/drift"] == pytest.approx(float((kept - exact).sum() / exact.sum()), rel=1e-4)
    unguarded = ((state["exp_avg"] != 0) & (kept == 0)).sum() / (state["exp_avg"] != 0).sum()
    assert metrics["weight/exp_avg_sq/unguarded_rate"] == pytest.approx(float(unguarded))
    assert metrics["weight/exp_avg/sqnr_db"] > 25 and "weight/exp_avg/amax" not in metrics
    watch.begin(2)
    assert from_codes(torch.zeros(1), parse_format("e2m1")) == 0 and optimizer.measuring
