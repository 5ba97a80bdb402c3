"""One tensor out of safetensors, which hold numbers and nothing that could run; pickles are never opened.

Of a folder of shards the index says which file a tensor lies in.
"""

import difflib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from altgrad.quantize.weight_folder import weight_folder


def read_tensor(path: Path | str, name: str) -> Tensor:
    """The tensor called `name` of a .safetensors file or a model's folder, in a float dtype of at most 32 bits; only
    its own bytes are read.

    ValueError in one line for a file that is missing, of another kind or corrupt, for a name it does not have, and for
    integers and float64, which no cast takes.
    """
    path = Path(path)
    if path.is_dir():
        folder = weight_folder(path)
        path = path / folder.listed[name] if name in folder.listed else folder.files[0]
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is no .safetensors file; AltGrad loads no pickles, so convert it with safetensors.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the path of a .safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            tensor: Tensor | None = file.get_tensor(name) if name in names else None
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not readable as safetensors ({error}); the file is corrupt or incomplete."
        ) from None
    if tensor is None:
        close = difflib.get_close_matches(name, names, n=1)
        remedy = f"Did you mean '{close[0]}'?" if close else f"It has {', '.join(names[:8]) or 'none'}."
        raise ValueError(f"{path} has no tensor '{name}'. {remedy}")
    if not tensor.is_floating_point() or tensor.dtype.itemsize > 4:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"'{name}' is {kind}; casts take float32, bfloat16, float16 and narrower floats.")
    return tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.float32)
