"""Models at rest in tables of values: written, read back, measured."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from altgrad import load_quantized, save_quantized
from altgrad.conversion.source import formats_named
from altgrad.formats import TABLES, parse_format
from altgrad.quantize import round_to


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 8))


@pytest.mark.parametrize("name", [*(line.name for line in TABLES), "[-1,0,1]"])
def test_a_packed_file_gives_back_the_values_of_the_cast(name: str, model: nn.Module, tmp_path: Path) -> None:
    report = save_quantized(model, tmp_path / "out", format=name, match="0")
    read = load_quantized(tmp_path / "out")
    weight = model.get_submodule("0").weight.detach()
    with safe_open(next((tmp_path / "out").glob("*.safetensors")), framework="pt") as opened:
        scale, codes = opened.get_tensor("0.weight.scale"), opened.get_tensor("0.weight")
    assert codes.dtype == (torch.int8 if name == "int8" else torch.uint8)
    assert read["0.weight"].equal(round_to(weight, parse_format(name), scale=scale))
    assert read["1.weight"].equal(model.get_submodule("1").weight)
    (result,) = report.results
    clips = parse_format(name).lowest >= 0  # of weights, half of which are negative
    assert result["name"] == name and 0 < result["utilisation"] <= 1 and bool(result["saturation_rate"]) == clips


def test_a_policy_may_hold_the_values_themselves(model: nn.Module, tmp_path: Path) -> None:
    values = {"values": [-1, -0.25, 0, 0.25, 1]}
    policy = {"rules": [{"match": "*", "weight": {"format": values, "scaling": {"kind": "block", "size": 8}}}]}
    report = save_quantized(model, tmp_path / "out", policy=policy)
    read = load_quantized(tmp_path / "out")["0.weight"]
    assert len(read.view(-1, 8)[0].abs().unique()) <= 3
    assert report.results[0]["tensors"][0]["cast"] == "[-1,-0.25,0,0.25,1] block/8"


def test_commas_within_a_tables_values_part_no_formats() -> None:
    found = [str(fmt) for fmt in formats_named('nf4, [-1, 0, 1], e4m3fn,{"values": [0, 1]}')]
    assert found == ["nf4", "[-1,0,1]", "e4m3fn", "[0,1]"]
