"""`quantization_config` of config.json: what it says of a checkpoint's weights, and what is read of those of others.

Two methods are written and read: `compressed-tensors`, whose groups say how which modules are kept, and `fp8`, which is
transformers' FineGrainedFP8. Everything else (GPTQ, AWQ, bitsandbytes, ...) is refused by its name, and so are schemes
of compressed-tensors that no layout here has: zero points, permuted columns, integers packed into 32 bits.

Activations: a preset's own are written where they are found as the model runs. Those of FP8 and NVFP4 want numbers from
a calibration, which a checkpoint of weights has not: FP8 takes them as the model runs, NVFP4 is weights only.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altgrad.quantize.checkpoint_layout import BLOCK, HF_FP8, LAYOUTS, Layout

__all__ = ["compressed_tensors_config", "hf_fp8_config", "layouts_in", "quantization_config"]

Json = dict[str, Any]
_SCALE_DTYPES = {"NVFP4": "torch.float8_e4m3fn", "MXFP4": "torch.uint8", "MXFP8": "torch.uint8"}
_ACTIVATIONS: dict[str, Json | None] = {
    "FP8": {"strategy": "tensor"},
    "FP8_DYNAMIC": {"strategy": "token"},
    "FP8_BLOCK": {"strategy": "group", "group_size": BLOCK},
    "NVFP4": None,
    "MXFP4": {"strategy": "group", "group_size": 32},
    "MXFP8": {"strategy": "group", "group_size": 32},
    "INT8": {"strategy": "token"},
}


def compressed_tensors_config(
    modules: Mapping[str, Layout], ignored: Sequence[str], *, activations: bool = True
) -> Json:
    """That of a checkpoint with these layouts, by module; `ignored` are the other Linears."""
    layouts = list(dict.fromkeys(modules.values()))
    groups = {}
    for number, layout in enumerate(layouts):
        targets = ["Linear"] if len(layouts) == 1 else [name for name, each in modules.items() if each == layout]
        seen = _ACTIVATIONS[layout.name] if activations else None
        groups[f"group_{number}"] = {
            "targets": targets,
            "weights": _arguments(layout, strategy=layout.strategy, **_sizes(layout), dynamic=False),
            "input_activations": None
            if seen is None
            else _arguments(layout, **{"group_size": None, **seen}, dynamic=True),
            "output_activations": None,
            "format": layout.stored_format,
        }
    return {
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "format": layouts[0].stored_format if len(layouts) == 1 else "mixed-precision",
        "config_groups": groups, "ignore": list(ignored), "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def _sizes(layout: Layout) -> Json:
    if layout.strategy == "block":
        return {"group_size": None, "block_structure": list(layout.block)}
    return {"group_size": layout.size or None}


def _arguments(layout: Layout, **more: Any) -> Json:
    kind = "int" if layout.name == "INT8" else "float"
    found = {"num_bits": layout.format.bits, "type": kind, "symmetric": True, **more}
    return found | ({"scale_dtype": _SCALE_DTYPES[layout.name]} if layout.name in _SCALE_DTYPES else {})


def hf_fp8_config(ignored: Sequence[str]) -> Json:
    """That of a checkpoint in blocks of 128 x 128 as transformers has them."""
    return {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": list(ignored),
    }  # fmt: skip


def quantization_config(folder: Path) -> Json | None:
    """What a folder's config.json says of how its weights are kept; None for plain weights or no config.json."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    found = found.get("quantization_config") if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def layouts_in(config: Mapping[str, Any]) -> list[Layout]:
    """The layouts that a `quantization_config` announces. ValueError, which names it, for one that is not read."""
    method = config.get("quant_method")
    if method == "fp8":
        size = config.get("weight_block_size")
        if size != [BLOCK, BLOCK]:
            raise ValueError(f"its quantization_config is fp8 with blocks of {size}; blocks of [128, 128] are read.")
        return [HF_FP8]
    if method != "compressed-tensors":
        raise ValueError(
            f"its quantization_config is {method}, which is not read; start from the model before it was quantised, or "
            "one in compressed-tensors or fp8."
        )
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError("its quantization_config has no config_groups.")
    if config.get("sparsity_config") or config.get("transform_config"):
        raise ValueError("its quantization_config has a sparsity_config or transform_config, which are not read.")
    return [_layout_in(name, group) for name, group in groups.items()]


def _layout_in(name: str, group: Any) -> Layout:
    if isinstance(group, list):  # targets of a preset, which is the group's name
        found = LAYOUTS.get(name.upper().removesuffix("A16"))
        weights: Any = name
    else:
        weights = (group or {}).get("weights") or {}
        found = next((layout for layout in LAYOUTS.values() if _says(weights, layout)), None)
    if found is None:
        words = (
            ", ".join(f"{key}: {value}" for key, value in weights.items() if value is not None) if weights else "none"
        )
        raise ValueError(f"its quantization_config {name} has weights {{{words}}}, which no layout here holds.")
    return found


def _says(weights: Mapping[str, Any], layout: Layout) -> bool:
    wanted = _arguments(layout, strategy=layout.strategy, **_sizes(layout))
    wanted.pop("scale_dtype", None)
    plain = not weights.get("actorder") and str(weights.get("scale_dtype")) in (
        "None", _SCALE_DTYPES.get(layout.name, "None"),
    )  # fmt: skip
    # A group of 32 e4m3fn is MXFP8 only with scales in a byte.
    return plain and all(weights.get(key) == value for key, value in wanted.items() if value is not None)
