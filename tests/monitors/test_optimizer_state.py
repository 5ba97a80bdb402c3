"""What the optimizer keeps is measured against the weight's format, by plain numpy."""

import numpy
import torch
from torch import nn

from altgrad.monitors import MonitorSpec
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.quantize import round_to
from altgrad.watching import MonitorSet


def test_moments_are_counted_as_if_kept_in_the_weights_format() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8))
    quantize_model(model, PrecisionPolicy.uniform(match="0", weight="e4m3fn"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = MonitorSet([MonitorSpec.of({"kind": "optimizer_state", "every": 1})], model, optimizer)
    watch.begin(1)
    (model(torch.randn(4, 16)) ** 2).mean().backward()
    optimizer.step()
    metrics = watch.finish()["optimizer_state"].metrics
    state = optimizer.state[model[0].weight]
    assert {key.split("/")[0] for key in metrics} == {"0.weight"}
    for entry in ("exp_avg", "exp_avg_sq"):
        s = state[entry].numpy().astype(numpy.float64)
        amax = numpy.abs(s).max()
        scale = 2.0 ** numpy.ceil(numpy.log2(amax / 448))
        cast = round_to(state[entry], "e4m3fn", scale=float(scale)).numpy()
        used = s != 0
        assert metrics[f"0.weight/{entry}/amax"] == numpy.float32(amax)
        assert metrics[f"0.weight/{entry}/underflow_rate"] == ((cast == 0) & used).sum() / used.sum()
        expected = numpy.log2(amax / numpy.abs(s[used]).min())
        assert abs(metrics[f"0.weight/{entry}/binades"] - expected) < 1e-5
        assert metrics[f"0.weight/{entry}/nonfinite_count"] == 0
    assert metrics["0.weight/exp_avg_sq/binades"] > metrics["0.weight/exp_avg/binades"]
