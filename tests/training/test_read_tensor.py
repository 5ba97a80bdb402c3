"""Reading one tensor of a .safetensors file: its values exactly, or one line on what is wrong."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from altgrad.training.weights import read_tensor


@pytest.fixture
def path(tmp_path):
    tensors = {
        "a.weight": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "eight": torch.tensor([1.0, 448.0, -0.5]).to(torch.float8_e4m3fn),
        "wide": torch.ones(2, dtype=torch.float64),
        "count": torch.ones(2, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_float_tensors_come_as_they_are_and_eight_bits_as_their_values(path):
    assert read_tensor(path, "a.weight").shape == (3, 4)
    assert read_tensor(str(path), "b").dtype == torch.bfloat16
    assert torch.equal(read_tensor(path, "eight"), torch.tensor([1.0, 448.0, -0.5]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.weigth", "has no tensor 'a.weigth'. Did you mean 'a.weight'?"),
        ("zzz", "has no tensor 'zzz'. It has a.weight, b, count, eight, wide."),
        ("wide", "'wide' is float64; casts take float32, bfloat16, float16 and narrower floats."),
        ("count", "'count' is int64; casts take"),
    ],
)
def test_a_wrong_name_or_kind_says_what_there_is(path, name, message):
    with pytest.raises(ValueError) as caught:
        read_tensor(path, name)
    assert message in str(caught.value)


def test_a_pickle_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    torch.save(Bomb(), tmp_path / "model.pt")
    (tmp_path / "disguised.safetensors").write_bytes((tmp_path / "model.pt").read_bytes())
    with pytest.raises(ValueError, match=r"model.pt is a pickle, which can run code; convert it"):
        read_tensor(tmp_path / "model.pt", "a")
    with pytest.raises(ValueError, match=r"disguised.safetensors cannot be read"):
        read_tensor(tmp_path / "disguised.safetensors", "a")


def test_a_missing_empty_or_truncated_file_is_one_line(path, tmp_path):
    with pytest.raises(ValueError, match=r"none.safetensors is not there"):
        read_tensor(tmp_path / "none.safetensors", "a")
    whole = path.read_bytes()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    for content in (b"", whole[:7], whole[:40], whole[:-3], struct.pack("<Q", len(header)) + header + b"1234"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read") as caught:
            read_tensor(path, "a.weight")
        assert "\n" not in str(caught.value)
