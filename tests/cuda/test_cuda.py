"""Claims about GPUs: a cast has the same bits there, and a run there resumes, watches and learns as it does on a CPU.

Skipped where torch sees no GPU. `make cuda` runs these alone.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import altgrad
from altgrad.formats import CATALOG, FloatFormat, Rounding
from altgrad.quantize import Quantizer, round_to
from altgrad.quantize.engine import cast_values, serves
from altgrad.training import RunSpec, train_run
from tests.training.running import after, lines
from tests.training.test_optimizers import LEGAL, SMALL, dataset, spec_of, trains_and_resumes  # noqa: F401
from tests.training.test_watched_runs import ALL, start, weights

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore"),  # what torch says of its compiler and of CUDA is no claim of ours
]
DEVICE = "cuda"
FAMILY = [f"e{e}m{7 - e}f" for e in range(8)]
FORMATS = [FloatFormat.parse(name) for name in dict.fromkeys([entry.name for entry in CATALOG] + FAMILY)]
IN_DOMAIN = [fmt for fmt in FORMATS if fmt.in_tensor_domain]
NATIVE = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
CHUNK = 1 << 26


def bits(x: Tensor) -> Tensor:
    """The patterns of float32 values, one for all NaNs, on the host."""
    return torch.where(x.isnan(), 0x7FC00000, x.float().view(torch.int32)).cpu()


def every_kind() -> Tensor:
    """All 2^16 bfloat16 patterns as float32, and as many random float32 patterns."""
    torch.manual_seed(0)
    coarse = torch.arange(1 << 16, dtype=torch.int32) << 16
    return torch.cat([coarse, torch.randint(-(1 << 31), 1 << 31, (1 << 16,)).to(torch.int32)]).view(torch.float32)


@pytest.mark.parametrize("fmt", IN_DOMAIN, ids=str)
def test_casts_have_the_bits_of_the_cpu_in_every_rounding_and_engine(fmt: FloatFormat) -> None:
    x = every_kind()
    there, key = x.to(DEVICE), torch.tensor(7)
    for rounding in Rounding:
        for scale in (1.0, 2.0**-9, 0.3):
            at = torch.tensor(scale)
            told = bits(round_to(x, fmt, rounding, scale=at, key=7, average=x.flip(0)))
            found = round_to(there, fmt, rounding, scale=at.to(DEVICE), key=7, average=there.flip(0))
            assert torch.equal(bits(found), told), (rounding, scale)
            if not serves(fmt, rounding):
                continue
            for engine in ("eager", "compiled"):
                exact = math.frexp(scale)[0] == 0.5
                found = cast_values(
                    there, at.to(DEVICE), fmt, rounding, exact_reciprocal=exact, key=key.to(DEVICE), engine=engine
                )
                assert torch.equal(bits(found), told), (rounding, scale, engine)


@pytest.mark.parametrize("name", NATIVE)
def test_all_float32_patterns_are_rounded_as_the_chip_rounds_them(name: str) -> None:
    """Equal to torch's own conversion there where that is finite; where it gives NaN or infinity, ours saturates."""
    fmt = FloatFormat.parse(name)
    for at in range(0, 1 << 32, CHUNK):
        x = torch.arange(at, at + CHUNK, device=DEVICE).to(torch.int32).view(torch.float32)
        native = x.to(NATIVE[name]).float()
        ours = cast_values(x, None, fmt, Rounding.nearest_even, exact_reciprocal=True, key=None, engine="compiled")
        inside = native.isfinite()
        assert torch.equal(ours[inside].view(torch.int32), native[inside].view(torch.int32)), hex(at)
        beyond = x[~inside & ~x.isnan()]
        assert bool((ours[~inside & ~x.isnan()] == torch.copysign(torch.tensor(fmt.max), beyond)).all()), hex(at)


@pytest.mark.parametrize("scale", ["power_of_two", "real"])
@pytest.mark.parametrize("kind", ["current", "delayed", "mse", "block", "mx", "nvfp4"])
def test_scales_are_those_of_the_cpu(kind: str, scale: str) -> None:
    scaling: Any = {"kind": kind} | ({} if kind in ("mx", "nvfp4") else {"scale": scale})
    made = {}
    for device in ("cpu", DEVICE):
        cast: Any = {"format": "e4m3fn", "scaling": scaling}
        quantizer = Quantizer(cast, "site").to(device)
        torch.manual_seed(1)
        for _ in range(3):
            x = torch.randn(64, 256) * torch.exp2(torch.randint(-6, 6, (64, 1)).float())
            made[device] = quantizer(x.to(device))
            quantizer.commit()
    assert torch.equal(bits(made[DEVICE]), bits(made["cpu"]))


@pytest.mark.parametrize("fmt", ["e0m7f", "e3m4f", "e5m2f"])
@pytest.mark.parametrize(("optimizer", "storage"), LEGAL)
def test_every_legal_combination_trains_and_resumes_bit_for_bit(
    tmp_path: Path,
    dataset: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    storage: str,
    fmt: str,
) -> None:
    on_gpu: Callable[..., Any] = lambda *a, **k: train_run(*a, **k, device=DEVICE)  # noqa: E731
    monkeypatch.setattr("tests.training.test_optimizers.train", on_gpu)
    spec = spec_of(optimizer, storage, fmt, *SMALL, "steps=5", "checkpoint_every=3")
    trains_and_resumes(spec, dataset, tmp_path, 3)


def test_a_run_with_every_monitor_resumes_to_the_same_numbers_and_tells_what_it_tells_on_a_cpu(
    tmp_path: Path,
    dataset: Any,  # noqa: F811
) -> None:
    spec, whole = start(tmp_path / "whole", ALL)
    assert train_run(spec, whole, dataset, device=DEVICE).status == "completed"
    spec, stopped = start(tmp_path / "stopped", ALL)
    assert train_run(spec, stopped, dataset, device=DEVICE, interrupted=after(5)).status == "interrupted"
    assert train_run(spec, stopped, dataset, device=DEVICE).status == "completed"
    assert lines(stopped) == lines(whole)
    assert weights(stopped, "model", "optimizer", "monitors") == weights(whole, "model", "optimizer", "monitors")
    spec, here = start(tmp_path / "here", ALL)
    train_run(spec, here, dataset)
    there, known = (
        {re.sub(r"binade_-?\d+", "binade", key) for row in run.metrics() for key in row if not key.startswith("time/")}
        for run in (whole, here)
    )
    assert there == known


@pytest.mark.parametrize("precision", ["none", "rules"])
def test_a_run_without_dropout_has_the_losses_of_the_cpu(tmp_path: Path, short_data: Any, precision: str) -> None:
    rules = "{rules: [{match: 'blocks.*', weight: e4m3fn, input: e4m3fn, grad_output: e5m2}]}"
    chosen = f"precision={rules if precision == 'rules' else 'none'}"
    spec = spec_of("adamw", "master", "e4m3f", *SMALL, "steps=10", "model.dropout=0.0", chosen)
    held = short_data(spec, 2)
    found = {}
    for device in ("cpu", DEVICE):
        run = _run(tmp_path / device, spec)
        assert train_run(spec, run, held, device=device).status == "completed"
        found[device] = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
    assert found[DEVICE] == pytest.approx(found["cpu"], abs=2e-3 if precision == "rules" else 2e-5)


def _run(folder: Path, spec: RunSpec) -> Any:
    from altgrad.store import Run

    return Run(folder).create(spec.to_yaml(), {"steps": spec.steps})


@pytest.mark.parametrize("scaling", ["current", "delayed", "mx"])
def test_a_quantised_model_on_a_gpu_is_saved_as_its_forward_has_it(tmp_path: Path, scaling: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32)).to(DEVICE)
    spec = {"format": "e4m3fn", "rounding": "stochastic", "scaling": scaling}
    altgrad.quantize_model(model, altgrad.PrecisionPolicy.uniform(weight=spec))
    model(torch.randn(4, 64, device=DEVICE))
    altgrad.commit(model)
    model.eval()
    altgrad.save_quantized(model, tmp_path / "out")
    used = model[0].operands(model[0].weight.detach(), "weight", False, torch.float32, {}).values
    assert torch.equal(altgrad.load_quantized(tmp_path / "out")["0.weight"], used["forward"].cpu())
