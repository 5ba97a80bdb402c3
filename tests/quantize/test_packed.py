"""Claims about packed files: what comes back is what went in, an ordinary reader can read them, damage is refused."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from altgrad.formats import CATALOG, FloatFormat
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.codes import to_codes, to_storage
from altgrad.quantize.packed import DTYPES, NAMES, PackedWriter, PlannedTensor, load_quantized

FORMATS = [entry.name for entry in CATALOG if FloatFormat.parse(entry.name).in_tensor_domain]
SCALINGS: dict[str, Any] = {
    "unscaled": "unscaled",
    "real": {"kind": "current", "scale": "real"},
    "channel": {"kind": "current", "granularity": "channel", "scale": "real"},
    "block": {"kind": "block", "size": 8, "scale": "real"},
    "square": {"kind": "block", "size": 8, "shape": "square"},
    "mx": "mx",
    "nvfp4": "nvfp4",
}


def write(path: Path, tensors: dict[str, Tensor], casts: dict[str, QuantizerSpec]) -> dict[str, Tensor]:
    """Write tensors with casts, two rows at a time; returns the values of the casts."""
    plan = [PlannedTensor(name, NAMES[x.dtype], tuple(x.shape), casts.get(name)) for name, x in tensors.items()]
    values = {}
    with PackedWriter(path, plan, {"rules": []}) as writer:
        for name, x in tensors.items():
            writer.begin(name)
            if name not in casts:
                writer.write(x)
                continue
            quantizer = Quantizer(casts[name], name, "weight", rows=len(x))
            made, scale = quantizer.cast(x, live=False), quantizer.find_scale(x)
            values[name] = made.values(torch.float32)
            for rows in made.rounded.split(2):
                writer.write(to_storage(to_codes(rows, made.format), made.format))
            if scale is not None:
                writer.scale(name, scale)
        writer.finish()
    return values


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(21, 13) * torch.exp2(torch.randint(-9, 4, (21, 13)).float())
    x[2], x[4, :3] = 0.0, -0.0
    return x


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_values_come_back_bit_for_bit(
    tmp_path: Path, x: Tensor, fmt: str, scaling: str, assert_same_bits: Callable[..., None]
) -> None:
    spec = QuantizerSpec.model_validate({"format": fmt, "scaling": SCALINGS[scaling]})
    values = write(tmp_path / "m.safetensors", {"a.weight": x}, {"a.weight": spec})
    found = load_quantized(tmp_path)
    assert found.keys() == {"a.weight"}
    assert_same_bits(found["a.weight"], values["a.weight"], x)


def test_tensors_without_a_cast_come_back_as_they_were_in_every_dtype(tmp_path: Path, x: Tensor) -> None:
    tensors = {name: torch.zeros(3, 5, dtype=torch.uint8).to(dtype) for name, dtype in DTYPES.items()}
    odd = {"odd": torch.arange(7, dtype=torch.uint8), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    spec = QuantizerSpec.model_validate("e2m1")
    write(tmp_path / "m.safetensors", {"a.weight": x, **odd, **tensors, "bf16": x.bfloat16()}, {"a.weight": spec})
    found = load_quantized(tmp_path / "m.safetensors")
    for name, tensor in {**odd, **tensors, "bf16": x.bfloat16()}.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))


def test_another_reader_sees_float8_values_and_a_scale(tmp_path: Path, x: Tensor) -> None:
    values = write(tmp_path / "m.safetensors", {"a.weight": x}, {"a.weight": QuantizerSpec.model_validate("e4m3fn")})
    found = load_file(tmp_path / "m.safetensors")
    assert found["a.weight"].dtype == torch.float8_e4m3fn
    assert torch.equal(found["a.weight"].float() * found["a.weight.scale"], values["a.weight"])


def test_a_failure_leaves_no_file_and_an_old_file_is_not_touched(tmp_path: Path, x: Tensor) -> None:
    spec = QuantizerSpec.model_validate("e2m1")
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="e2m1 has no NaN"):
        write(path, {"a.weight": x * torch.nan}, {"a.weight": spec})
    with pytest.raises(ValueError, match=r"a\.weight\.scale is a tensor of the model"):
        write(path, {"a.weight": x, "a.weight.scale": x}, {"a.weight": spec})
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write(path, {"a.weight": x}, {"a.weight": spec})
    assert path.read_text() == "mine"


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the metadata says of a file, its checksum made again."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    ours = json.loads(header["__metadata__"]["altgrad"])
    change(ours)
    ours["sha256"] = "0" * 64
    header["__metadata__"]["altgrad"] = json.dumps(ours)
    text = json.dumps(header).encode()
    made = hashlib.sha256(data[8 + size :] + text).hexdigest()
    text = text.replace(b"0" * 64, made.encode(), 1)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ours: ours.update(version=3), "version 3"),
        (lambda ours: ours.update(tensors=[]), "cannot be read"),
        (lambda ours: ours["tensors"].update(b=ours["tensors"]["a"]), "cannot be read"),
        (lambda ours: ours["tensors"]["a"].update(cast={"format": "e4m3"}), "say e4m3fn"),
        (lambda ours: ours["tensors"]["a"].update(cast={"format": "e2m5"}), "cannot be read"),
        (lambda ours: ours["tensors"]["a"].update(cast={}), "cannot be read"),
        (lambda ours: ours["tensors"]["a"].update(block=[2, 1]), "does not fit"),
        (lambda ours: ours["tensors"]["a"].update(block="x"), "cannot be read"),
        (lambda ours: ours.pop("tensors"), "cannot be read"),
    ],
)
def test_a_damaged_layout_is_refused_in_one_line(
    tmp_path: Path, x: Tensor, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "m.safetensors"
    scaling = {"kind": "current", "granularity": "channel"}
    write(path, {"a": x}, {"a": QuantizerSpec.model_validate({"format": "e4m3fn", "scaling": scaling})})
    rewritten(path, change)
    with pytest.raises(ValueError, match=message) as error:
        load_quantized(path)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_in_any_byte_is_noticed(tmp_path: Path, x: Tensor) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {"a": x[:3, :4].contiguous(), "b": torch.ones(2)}
    write(path, tensors, {"a": QuantizerSpec.model_validate({"format": "e4m3fn", "scaling": "mx"})})
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="cannot be read"):
            load_quantized(path)


def test_what_is_no_packed_file_is_refused_in_one_line(tmp_path: Path, x: Tensor) -> None:
    path = tmp_path / "m.safetensors"
    for content, message in ((b"", "cannot be read"), (b"\xff" * 99, "cannot be read"), (None, "not written by")):
        if content is None:
            save_file({"a": x}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            load_quantized(path)
        assert "\n" not in str(error.value)
    (tmp_path / "none").mkdir()
    for name, message in (("none", "holds no .safetensors"), ("absent", "is not there")):
        with pytest.raises(ValueError, match=message):
            load_quantized(tmp_path / name)
