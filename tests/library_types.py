"""What a type checker knows of the library: mypy reads this file in `make lint`, and nothing runs it."""

from pathlib import Path
from typing import assert_type

import pandas
from torch import nn

import altgrad
from altgrad.conversion.policies.policy_report import PolicyReport
from altgrad.recipes.recipe import Expansion
from altgrad.training.trained_run import TrainedRun


def names_of_the_library_have_their_types(model: nn.Module) -> None:
    run = altgrad.train("spec.yaml", runs="runs", steps=30)
    assert_type(run, TrainedRun)
    assert_type(run.metrics, pandas.DataFrame)
    assert_type(run.sites("range"), pandas.DataFrame)
    assert_type(run.spec, altgrad.RunSpec)
    assert_type(run.resume(until=60), TrainedRun)
    assert_type(altgrad.load_run(Path("runs/p/r")), TrainedRun)
    assert_type(altgrad.runs(project="p"), pandas.DataFrame)
    assert_type(altgrad.compare(run, "p", Path("runs/p/r")), pandas.DataFrame)
    assert_type(altgrad.express_policy("te_mxfp8", to="te", model=model), PolicyReport)
    assert_type(altgrad.recipe("mx", element="e3m2").expansion(), Expansion)
    assert_type(altgrad.quantize_model(model, "te_nvfp4"), nn.Module)
    assert_type(altgrad.save_quantized("model", out="out", format="e4m3fn").tensors, pandas.DataFrame)
