"""`altgrad formats compare`: what it prints, what it marks, how it fails."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from altgrad.cli.formats import COLUMNS, app
from altgrad.conversion.format_comparison import MORE_IS_BETTER, best_of


@pytest.fixture
def cli():
    return lambda *arguments: CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture
def model(tmp_path):
    tensors = {
        "layer:0": torch.randn(64, 64, generator=torch.Generator().manual_seed(0)),
        "broken": torch.tensor([math.nan, 1.0, math.inf, 2.0]),
        "nothing": torch.empty(0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_distribution_gives_one_table_with_the_best_of_each_column_marked(cli):
    result = cli("e4m3fn", "e2m1", "e4m3fn", "--dist", "normal")
    assert result.exit_code == 0, result.output
    title, header, first, second, *rest = result.stdout.splitlines()
    assert title == "normal: 1,048,576 values"
    assert header.split()[:5] == ["format", "amax", "2^k", "amax", "real"]
    assert first.split()[:2] == ["e4m3fn", "31.52*"]
    assert second.split()[:2] == ["e2m1", "16.34"]
    assert second.rstrip().endswith("*")
    assert rest[-1] == "* best of its column."
    assert max(map(len, result.stdout.splitlines())) <= 130
    assert "\x1b" not in result.stdout


def test_json_has_every_figure_under_every_scale(cli):
    (found,) = json.loads(cli("e3m4", "e0m7", "--dist", "laplace", "--json").stdout)
    assert (found["name"], found["count"], found["finite_count"]) == ("laplace", 1 << 20, 1 << 20)
    assert list(found["formats"]) == ["e3m4", "e0m7"]
    for fits in found["formats"].values():
        assert list(fits) == ["amax_power_of_two", "amax_real", "best_power_of_two", "best_real"]
        assert all(set(fit) == {"scale", *MORE_IS_BETTER} for fit in fits.values())
    assert found["best"]["amax_power_of_two"]["sqnr_db"] == ["e3m4"]


def test_a_tensor_of_a_file_is_compared_and_colons_may_be_in_its_path(cli, model):
    moved = model.rename(model.with_name("a:b.safetensors"))
    (found,) = json.loads(cli("e4m3fn", "--tensor", f"{moved}:broken", "--json").stdout)
    assert (found["name"], found["count"], found["finite_count"]) == ("broken", 4, 2)
    assert found["formats"]["e4m3fn"]["amax_power_of_two"]["sqnr_db"] == "inf"
    assert "broken: 4 values, 2 of them not finite and left out" in cli("e5m2", "--tensor", f"{moved}:broken").stdout


def test_the_best_are_all_that_tie_and_none_where_all_are_alike():
    fits = {
        name: {"amax_real": {"sqnr_db": value, "underflow_rate": rate}}
        for name, value, rate in (("a", 3.0, 0.1), ("b", 3.0, 0.0), ("c", 1.0, math.nan))
    }
    assert best_of(fits, "amax_real", "sqnr_db") == ["a", "b"]
    assert best_of(fits, "amax_real", "underflow_rate") == ["b"]
    same = dict.fromkeys("ab", fits["a"])
    assert best_of(same, "amax_real", "sqnr_db") == []


def test_every_column_knows_which_end_is_better():
    assert {column.measure for column in COLUMNS} == set(MORE_IS_BETTER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["e9m9"], "e9m9 has 19 bits; AltGrad emulates 2 to 16."),
        (["e4m3"], "e4m3 means different formats"),
        (["e8m0fnu"], "e8m0fnu is an unsigned scale format, not one for values"),
        (["e10m5", "--dist", "normal"], "e10m5 spans 2^-515..2^512; casts run in float32"),
        (["e5m2", "--dist", "cauchy"], "'cauchy' is not a distribution here; choose from normal, laplace, t5."),
        (["e5m2", "--dist", ""], "'' is not a distribution here"),
        (["e5m2", "--dist", "normal", "--tensor", "a:b"], "--dist and --tensor name two different things"),
        (["e5m2", "--tensor", "model.safetensors"], "--tensor model.safetensors names no tensor; write FILE:NAME"),
        (["e5m2", "--tensor", "nowhere.safetensors:a"], "nowhere.safetensors is not there"),
        (["e5m2", "--tensor", "model.pt:a"], "model.pt is a pickle, which can run code"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(cli, arguments, message):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_an_empty_tensor_is_one_line_too(cli, model):
    result = cli("e5m2", "--tensor", f"{model}:nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("a tensor without finite values")
