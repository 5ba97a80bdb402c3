"""Claims about what monitors report: the numbers are those of the tensors themselves, computed again by other means."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from altgrad.formats import FloatFormat
from altgrad.monitors import Context, MonitorSpec, Replay
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.optim import SGD, AdamW
from altgrad.quantize import Grid, round_to, rung, spacing
from altgrad.watching import MonitorSet
from altgrad.watching.cast_tables import cast_on

FMT = "e4m3fn"


def test_range_sees_every_role_of_every_cast(trial: Callable[..., Any]) -> None:
    first = trial("mlp").run(["range"], 1)[0]["range"].metrics
    sites = {key.rpartition("/")[0] for key in first}
    casts = {f"{layer}/{operand}" for layer in "03" for operand in ("weight", "input", "grad_output")}
    assert sites == casts | {f"{layer}.weight/{role}" for layer in "03" for role in ("requested", "stored")}


def test_range_sees_stored_parameters_that_no_layer_casts(trial: Callable[..., Any]) -> None:
    first = trial("gpt").run(["range"], 1)[0]["range"].metrics
    assert first["blocks.0.norm1.weight/stored/amax"] == pytest.approx(1, abs=2e-3)  # of the weight and its request
    assert "norm.weight/stored/amax" not in first


def test_range_measures_what_was_cast() -> None:
    """The numbers of the first step, computed again from the tensors themselves."""
    net = nn.Sequential(nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(4, 16) * torch.exp2(torch.randint(-15, 5, (4, 16)).float()))
    weight = net[0].weight.detach().clone()
    quantize_model(net, PrecisionPolicy.uniform(weight={"format": FMT, "scaling": "unscaled"}))
    optimizer = AdamW(net.named_parameters(), lr=1e-3, weight_decay=0)
    watch = MonitorSet([MonitorSpec.of("range")], net, optimizer)
    watch.begin(1)
    net(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    metrics = watch.finish()["range"].metrics
    half = spacing(torch.zeros(()), FMT) / 2
    assert metrics["0/weight/underflow_rate"] == float((weight.abs() <= half).float().mean(dtype=torch.float64))
    assert metrics["0/weight/saturation_rate"] == float((weight.abs() > 464).float().mean(dtype=torch.float64))
    assert metrics["0/weight/amax"] == float(weight.abs().max())
    assert metrics["0.weight/requested/amax"] == pytest.approx(1e-3, rel=2e-2)


def test_counts_add_up_over_micro_batches(trial: Callable[..., Any]) -> None:
    net = trial("mlp").net
    watch = MonitorSet([MonitorSpec.of("range")], net, AdamW(net.named_parameters()))
    watch.begin(1)
    for _ in range(3):
        net(torch.randn(8, 16)).square().mean().backward()
    watch.tables.gather()
    passes, finite = watch.tables.sums[watch.tables.rows["0/input"]][:2].tolist()
    assert (passes, finite) == (3, 3 * 8 * 16)


def test_a_tensor_shown_on_a_grid_lies_on_it() -> None:
    x = torch.linspace(-900, 900, 4001)
    cast = cast_on(Grid(FloatFormat.parse(FMT)), x, "w/stored", "stored")
    assert torch.equal(cast.values(torch.float32), round_to(x, FMT)) and (cast.site, cast.role) == (
        "w/stored",
        "stored",
    )


@pytest.fixture
def stepped(trial: Callable[..., Any]) -> tuple[Any, dict[str, float], dict[str, np.ndarray]]:
    """One step of the GPT in 8-bit storage: its metrics, and one weight's tensors as numpy arrays."""
    kinds = ["stall", "flips", "updates", "ulp", "gradient", "alignment", "codes", "stiffness", "rank", "correlation"]
    made = trial("gpt")
    reports = made.run(kinds, 1)[0]
    metrics = {f"{kind}/{key}": value for kind, r in reports.items() for key, value in r.metrics.items()}
    name = "blocks.0.mlp.up.weight"
    p = dict(made.net.named_parameters())[name]
    scale = made.optimizer.state[p]["storage_scale"]
    before, after = made.before[name], p.detach()
    arrays = {
        "before": before.double().numpy(), "after": after.double().numpy(), "gradient": made.gradients[name].numpy(),
        "rung": rung(before, FMT, scale=scale).numpy(), "rung_after": rung(after, FMT, scale=scale).numpy(),
        "spacing": spacing(before, FMT, scale=scale).double().numpy(), "scale": scale.double().numpy(),
    }  # fmt: skip
    return made, metrics, arrays


def test_update_monitors_say_what_the_weights_did(stepped: Any) -> None:
    _, metrics, a = stepped
    name = "blocks.0.mlp.up.weight"
    flips = a["rung"] != a["rung_after"]
    # The first step of Adam asks for lr times the sign of every gradient, plus decay.
    assert metrics[f"updates/{name}/attempted_share"] == 1
    assert metrics[f"flips/{name}/flip_rate"] == flips.mean()
    assert metrics[f"stall/{name}/stall_ratio"] == 1 - flips.mean() == metrics[f"updates/{name}/stall_ratio"]
    assert metrics[f"updates/{name}/zero_update_fraction"] == (a["before"] == a["after"]).mean()
    assert metrics[f"updates/{name}/flip_count"] == flips.sum()
    travelled = np.abs(a["rung_after"] - a["rung"]).sum()
    assert metrics[f"flips/{name}/gross_rungs"] == travelled == metrics[f"flips/{name}/net_rungs"]
    requested = -1e-3 * np.sign(a["gradient"]) - 1e-4 * a["before"]
    realised = a["after"] - a["before"]
    ratio = (requested * realised).sum() / (requested**2).sum()
    assert metrics[f"updates/{name}/effective_update_ratio"] == pytest.approx(ratio, rel=1e-3)
    ulps = np.abs(requested / a["spacing"])
    assert metrics[f"ulp/{name}/requested_q50_ulp"] == pytest.approx(np.quantile(ulps, 0.5), rel=1e-3)
    assert metrics[f"ulp/{name}/requested_below_half"] == pytest.approx((ulps < 0.5).mean(), abs=2e-3)
    slope = np.corrcoef(np.log2(np.abs(a["gradient"])).ravel(), np.log2(a["spacing"]).ravel())[0, 1]
    assert metrics[f"correlation/{name}/gradient_pearson"] == pytest.approx(slope, abs=1e-6)


def test_weight_monitors_say_what_the_weights_are(stepped: Any) -> None:
    _, metrics, a = stepped
    name = "blocks.0.mlp.up.weight"
    sigma = np.linalg.svd(a["after"], compute_uv=False)
    assert metrics[f"rank/{name}/stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=0.05)
    share = sigma / sigma.sum()
    assert metrics[f"rank/{name}/effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert metrics[f"alignment/{name}/aligned_share"] == 1 and metrics[f"alignment/{name}/mean_offset"] == 0
    _, counts = np.unique(a["rung_after"], return_counts=True)
    entropy = -(counts / counts.sum() * np.log(counts / counts.sum())).sum() / np.log(254)
    zeros = (a["rung_after"] == 0).mean()
    assert metrics[f"codes/{name}/utilisation"] == pytest.approx(entropy, abs=0.02 + zeros)  # two codes for zero
    assert metrics[f"codes/{name}/zero_share"] == pytest.approx(zeros)
    shares = {k: v for k, v in metrics.items() if k.startswith(f"stiffness/{name}/binade_")}
    assert sum(shares.values()) == pytest.approx(1)
    common = max(shares, key=shares.__getitem__)
    exponent = float(common.rpartition("binade_")[2].removesuffix("_share"))
    after = spacing(torch.from_numpy(a["after"]).float(), FMT, scale=float(a["scale"])).double().numpy()
    assert shares[common] == pytest.approx((after == a["scale"] * 2.0**exponent).mean())
    assert metrics[f"stiffness/{name}/spacing_cv"] == pytest.approx(after.std() / after.mean())
    beta = FloatFormat.parse(FMT).min_normal * a["scale"] / np.sqrt((a["after"].astype(float) ** 2).mean())
    assert metrics[f"stiffness/{name}/beta_over_rms"] == pytest.approx(beta)


def test_gradient_monitor_gives_two_norms(stepped: Any) -> None:
    _, metrics, a = stepped
    key = "gradient/blocks.0.mlp.up.weight"
    assert metrics[f"{key}/l2"] == pytest.approx(np.linalg.norm(a["gradient"].astype(float)))
    assert metrics[f"{key}/linf"] == np.abs(a["gradient"]).max()


def test_the_amax_average_is_that_of_pandas(trial: Callable[..., Any]) -> None:
    reports = trial("mlp").run(["amax", "range"], 12, every=1)
    amaxes = pd.Series([r["range"].metrics["0/input/amax"] for r in reports])
    ours = [r["amax"].metrics["0/input/amax_average"] for r in reports]
    np.testing.assert_allclose(ours, amaxes.ewm(alpha=0.1, adjust=True).mean(), rtol=1e-12)


def test_the_shadow_of_a_plain_model_is_its_gradient_and_of_a_coarse_one_is_not(trial: Callable[..., Any]) -> None:
    exact = trial("plain").run(["shadow"], 1)[0]["shadow"].metrics
    assert all(value == math.inf for key, value in exact.items() if key.endswith("sqnr_db"))
    assert all(value == pytest.approx(1) for key, value in exact.items() if key.endswith("cosine"))
    cast = trial("mlp").run(["shadow"], 1)[0]["shadow"].metrics
    assert all(0.5 < value < 1 for key, value in cast.items() if key.endswith("weight/cosine"))


def test_products_are_compared_with_those_of_the_same_operands_uncast() -> None:
    """By hand, of a layer whose input is rounded to integers and whose weight gradient is left alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4, bias=False))
    whole = {"format": "e0m3", "scaling": {"kind": "fixed", "value": 8.0}}
    rule = {
        "match": "1",
        "input": whole,
        "grad_output": "e5m2",
        "grad_weight": {"input": "none", "grad_output": "none"},
    }
    quantize_model(net, PrecisionPolicy.made_from({"rules": (rule,)}))
    batches = [torch.randn(32, 16) * 4 for _ in range(2)]
    watch = MonitorSet([MonitorSpec.of("products")], net, torch.optim.SGD(net.parameters(), lr=0.1))
    watch.begin(1)
    replay = Replay(net, {}, lambda: (net(x).square().sum() for x in batches))
    watch.gradients(torch.zeros(()), torch.zeros(()), {}, replay)
    metrics = watch.finish()["products"].metrics
    signal = noise = 0.0
    for x in batches:
        inner, w = net[0](x).detach().double(), net[1].weight.detach().double()
        error = (inner.round().clamp(-7, 7) - inner) @ w.T
        signal, noise = signal + float((inner @ w.T).square().sum()), noise + float(error.square().sum())
    assert metrics["1/forward_sqnr_db"] == pytest.approx(10 * math.log10(signal / noise), abs=1e-4)
    assert 15 < metrics["1/grad_input_sqnr_db"] < 30 and metrics["1/grad_weight_sqnr_db"] == math.inf
    assert len(metrics) == 3


def test_gsnr_is_that_of_the_micro_batches_own_gradients(trial: Callable[..., Any]) -> None:
    few = trial("plain").run(["gsnr"], 3, every=1)
    assert [len(each["gsnr"].notices) for each in few] == [1, 0, 0]
    assert "needs 6 micro-batches" in few[0]["gsnr"].notices[0]
    assert all(math.isnan(value) for value in few[0]["gsnr"].metrics.values())
    made, apart = trial("plain"), trial("plain")
    made.micro_batches = apart.micro_batches = 6
    report = made.run(["gsnr"], 1)[0]["gsnr"]
    metrics = report.metrics
    assert not report.notices
    each = []
    for micro in range(6):
        apart.net.zero_grad()
        apart.micro(1, micro).backward()
        each.append(apart.net[0].weight.grad.double().numpy().copy())
    mean, variance = np.mean(each, axis=0), np.var(each, axis=0, ddof=1)
    freedom = 5 * mean.size
    expected = (freedom - 2) / freedom * (mean**2).sum() / variance.sum() - 1 / 6
    assert metrics["0.weight/pooled"] == pytest.approx(expected)


def test_dead_counts_features_before_and_after_their_cast_and_rows_without_gradient() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-1e9, -1e9, 1.0, 1, 1, 1, 1, 1e9]))  # two dead, and one that swamps the rest
        net[0].weight.mul_(0.1)
    quantize_model(net, PrecisionPolicy.uniform(input=FMT))
    watch = MonitorSet([MonitorSpec.of("dead")], net, torch.optim.SGD(net.parameters(), lr=0.1))
    watch.begin(1)
    x = torch.randn(64, 4)
    (loss := net(x).square().mean()).backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    watch.gradients(loss, loss, grads, Replay(net, grads, lambda: iter([net(x).square().mean()])))  # type: ignore[arg-type]
    report = watch.finish()["dead"]
    assert report.metrics["2/dead_share"] == 2 / 8 and report.metrics["2/cast_dead_share"] == 7 / 8
    assert report.metrics["2/dormant_share"] == 7 / 8 and report.metrics["0/grad_dead_share"] == 2 / 8
    assert [str(alarm) for alarm in report.alarms] == ["2: 88% of its units are cast-dead."]


def test_finite_names_what_went_bad_and_stops_after_patience(trial: Callable[..., Any]) -> None:
    def spoil(step: int, made: Any) -> None:
        if step == 3:
            made.net[3].weight.grad[0, 0] = math.nan

    report = trial("mlp").run(["finite"], 3, between=spoil)[2]["finite"]
    assert report.skip and report.stop == "the gradient of 3.weight is not finite."
    monitor = MonitorSpec.of({"kind": "finite", "patience": 2}).build()
    first, second = (monitor.report_all(math.nan, {"w": {"linf": 1.0}}) for _ in range(2))  # type: ignore[attr-defined]
    assert first.skip and first.stop is None and second.stop == "the loss is not finite, 2 steps in a row."
    monitor.report_all(1.0, {"w": {"linf": 1.0}})  # type: ignore[attr-defined]
    assert monitor.state() == {"bad_steps": 0, "first": {"step": 0, "tensor": "the loss"}}


@pytest.mark.parametrize(
    ("plant", "origin"),
    [
        ("weights", "the weights blocks.0.mlp.up.weight"),
        ("forward", "the output of blocks.0.mlp.down"),
        ("backward", "the gradient of blocks.0.attention.proj.weight"),
    ],
)
def test_finite_puts_the_first_bad_tensor_on_record(plant: str, origin: str, trial: Callable[..., Any]) -> None:
    made = trial("gpt")
    block = made.net.blocks[0]
    if plant == "weights":
        with torch.no_grad():
            block.mlp.up.weight[0, 0] = math.nan
    elif plant == "forward":
        block.mlp.down.register_forward_hook(lambda module, given, output: output * math.inf)
    else:
        block.attention.proj.register_forward_hook(lambda module, given, output: Poison.apply(output))
    report = made.run(["finite"], 1)[0]["finite"]
    assert report.stop is not None and report.stop.endswith(f"It began in {origin}.")
    assert made.watch.monitors["finite"].state()["first"] == {"step": 1, "tensor": origin}


class Poison(torch.autograd.Function):
    """Nothing forward, NaN backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * math.nan


def test_flip_totals_start_again_with_each_epoch(trial: Callable[..., Any]) -> None:
    made = trial("gpt")
    watch = MonitorSet([MonitorSpec.of({"kind": "flips", "every": 1})], made.net, made.optimizer, Context(epoch=5))
    rates, sums = [], []
    for step in range(1, 11):
        metrics = made.step(step, watch, lambda step, made: None)["flips"].metrics
        rates.append(metrics["blocks.0.mlp.up.weight/flip_rate"])
        sums.append(metrics["blocks.0.mlp.up.weight/epoch_flip_rate"])
    assert sums[4] == pytest.approx(np.mean(rates[:5])) and sums[5] == rates[5]
    assert sums[9] == pytest.approx(np.mean(rates[5:]))


def test_the_rank_alarm_needs_a_twin_and_comes_once() -> None:
    """A rank that falls 10 -> 1 beside a twin that stays: an alarm before half of it; alone: a notice; each once."""
    steps = range(1, 65)
    twin = [{"step": s, "rank/w/stable_rank": 10.0, "rank/lm_head.weight/stable_rank": 10.0} for s in steps]

    def told(beside: bool, site: str, ranks: list[float]) -> tuple[list[int], list[int]]:
        monitor: Any = MonitorSpec.of("rank").build(Context(twin=(lambda keys: twin) if beside else None))
        alarms, notices = [], []
        for monitor.step, rank in zip(steps, ranks, strict=True):
            report = monitor.report(site, {"stable_rank": rank})
            alarms += [monitor.step] * len(report.alarms)
            notices += [monitor.step] * len(report.notices)
        return alarms, notices

    ramp = [10 - 9 * (s - 1) / 63 for s in steps]
    alarms, notices = told(True, "w", ramp)
    assert len(alarms) == 1 and alarms[0] <= 32 and not notices
    assert told(False, "w", ramp)[0] == [] and len(told(False, "w", ramp)[1]) == 1
    slight = [10 - 1.5 * (s - 1) / 63 for s in steps]
    assert told(True, "w", slight) == ([], [])
    assert len(told(True, "lm_head.weight", slight)[0]) == 1
    with pytest.raises(ValueError, match="has no rank metrics"):
        MonitorSpec.of("rank").build(Context(twin=lambda keys: []))


def test_saturation_of_storage_is_counted_before_it_clips() -> None:
    """A weight that grows by half a step out of a fixed scale; the alarms come when it does, under `tracked` none."""
    for scale, clips in (("fixed", True), ("tracked", False)):
        torch.manual_seed(0)
        net = nn.Linear(64, 64, bias=False)
        storage = {"kind": "stochastic", "format": "e4m3fn", "scale": scale}
        optimizer = SGD(net.named_parameters(), lr=1.0, storage=storage)
        watch = MonitorSet([MonitorSpec.of({"kind": "range", "every": 1})], net, optimizer)
        reports = []
        for step in range(1, 7):
            watch.begin(step)
            wanted = net.weight.detach() * 1.5
            net.weight.grad = -wanted / 3
            optimizer.step()
            top = 448 * float(optimizer.state[net.weight]["storage_scale"])
            reports.append(watch.finish()["range"])
            metrics = reports[-1].metrics
            beyond = float((wanted.abs() >= top * (1 + 2**-4)).double().mean())
            assert metrics["weight/stored/saturation_rate"] == pytest.approx(beyond, abs=1e-3), step
            assert metrics["weight/stored/pinned_rate"] == float((net.weight.abs() >= top).double().mean())
        alarms = [alarm for report in reports for alarm in report.alarms]
        assert len(alarms) == (2 if clips else 0), alarms
        assert not clips or any(alarm.quantity == "pinned_rate" for alarm in alarms)


def test_a_pinned_weight_that_is_asked_for_little_is_found_though_nothing_saturates() -> None:
    """Requests of a tenth of a gap at +-max round back to it: saturation rate 0, and 5 % of the weight is stuck."""
    net = nn.Linear(100, 10, bias=False)
    storage = {"kind": "nearest", "format": "e4m3fn", "scaling": {"kind": "current", "margin": 0}}
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.weight[:, :5] = 448.0
    optimizer = SGD(net.named_parameters(), lr=1.0, storage=storage)
    watch = MonitorSet([MonitorSpec.of({"kind": "range", "every": 1, "patience": 1})], net, optimizer)
    watch.begin(1)
    net.weight.grad = torch.full_like(net.weight, -3.2) * (net.weight.detach() > 400)
    optimizer.step()
    report = watch.finish()["range"]
    assert report.metrics["weight/stored/saturation_rate"] == 0
    assert report.metrics["weight/stored/pinned_rate"] == pytest.approx(0.05)
    assert len(report.alarms) == 1 and "5.0% of its weights at the largest value, above 1%" in str(report.alarms[0])


def test_outliers_are_a_share_of_their_operand_and_counted_by_no_other_monitor() -> None:
    """The range is that of the rest."""
    net = nn.Sequential(nn.Linear(64, 8))
    cast = {"format": "e2m1", "outliers": {"kind": "columns", "largest": 3}}
    quantize_model(net, PrecisionPolicy.uniform(weight="e2m1", input=cast))
    watch = MonitorSet([MonitorSpec.of(kind) for kind in ("outliers", "range")], net, AdamW(net.named_parameters()))
    watch.begin(1)
    x = torch.randn(16, 64)
    x[:, [3, 10, 60]] *= 1000
    net(x).square().mean().backward()
    found = watch.finish()
    assert found["outliers"].metrics == {"0/input/outlier_rate": 3 / 64}
    x[:, [3, 10, 60]] = 0
    assert found["range"].metrics["0/input/amax"] == float(x.abs().max())
