"""In which words we say the casts of the recorded references: one function a file, one `Case` a recorded cast.

tests/references/README.md says what the tensors are. Codes are brought to our numbering (one a byte, sign and
magnitude), scales to ours of the same block.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.quantize.checkpoint_layout import PRESETS

Tensors = dict[str, Tensor]


class Case(NamedTuple):
    """One recorded cast: our words for it, what went in, and what came out where that was recorded."""

    entry: str
    input: str
    words: dict[str, Any]
    x: Tensor
    codes: Tensor | None = None
    values: Tensor | None = None
    scale: Tensor | None = None
    level: str = "entries"
    """Which of our numbers the recorded scale is: entries, factor or inner."""
    average: Tensor | None = None
    """What a rounding towards an average went to."""


def _unpacked(codes: Tensor) -> Tensor:
    """Two e2m1 codes a byte, the low nibble first."""
    codes = codes.view(torch.uint8)
    return torch.stack([codes & 15, codes >> 4], -1).flatten(-2)


def _e4m3(codes: Tensor) -> Tensor:
    return codes.view(torch.float8_e4m3fn).to(torch.float32)


def _e8m0(codes: Tensor) -> Tensor:
    return codes.view(torch.float8_e8m0fnu).to(torch.float32)


def _said(format: str, scaling: dict[str, Any], rounding: str = "nearest_even") -> dict[str, Any]:
    return {"format": format, "scaling": scaling} | ({} if rounding == "nearest_even" else {"rounding": rounding})


def _names(tensors: Tensors, ending: str) -> Iterator[tuple[str, list[str]]]:
    """What stands before an ending, and its parts."""
    for name in sorted(tensors):
        if name.endswith(ending):
            stem = name.removesuffix(ending)
            yield stem, stem.split(".")


def _typed(x: Tensor, name: str, bf16: bool = False) -> Tensor:
    return x.to(torch.bfloat16) if bf16 or "bf16" in name else x


def te_nvfp4_casts(t: Tensors) -> Iterator[Case]:
    for stem, (way, name, *side) in _names(t, ".codes"):
        x = t[f"rht.{name}.transformed"] if way == "rht" else t[f"in.{name}"]
        x = x.T.contiguous() if side == ["col"] and way != "rht" else x
        scaling = {"kind": "nvfp4", "arithmetic": "te"} | ({"shape": "square"} if way == "square16" else {})
        scale = _e4m3(t[f"{stem}.scale"]) if name != "ragged" else None
        entry = ".".join([way, *side])
        codes = _unpacked(t[f"{stem}.codes"])
        yield Case(entry, name, _said("e2m1", scaling), _typed(x, name), codes, t.get(f"{stem}.out"), scale, "inner")


def te_nvfp4_options(t: Tensors) -> Iterator[Case]:
    for stem, (option, *rest, name, _) in _names(t, ".codes"):
        scaling: dict[str, Any] = {"kind": "nvfp4", "arithmetic": "te"}
        if "square" in option:
            scaling["shape"] = "square"
        if "row" in option:
            scaling["outer"] = "row"
        if rest:
            by, bound = rest[0].split("_")
            scaling |= {"choose": [6, 4], "by": by} | ({} if bound == "448" else {"scale_max": float(bound)})
        codes, scale = _unpacked(t[f"{stem}.codes"]), _e4m3(t[f"{stem}.scale"])
        entry = ".".join([option, *rest])
        yield Case(entry, name, _said("e2m1", scaling), t[f"in.{name}"], codes, t.get(f"{stem}.out"), scale, "inner")


def te_float8_tensor(t: Tensors) -> Iterator[Case]:
    kinds = {"real": {"scale": "real"}, "pow2": {}, "real_eps1e-2": {"scale": "real", "floor": 0.01}}
    for stem, (_, format, kind, name) in _names(t, ".codes"):
        words = _said(format, {"kind": "current", "arithmetic": "te", **kinds[kind]})
        x = _typed(t[f"in.{name}"], name)
        yield Case(f"{format}.{kind}", name, words, x, t[f"{stem}.codes"], t.get(f"{stem}.out"), t[f"{stem}.scale_inv"])


def te_float8_block(t: Tensors) -> Iterator[Case]:
    for stem, (shape, format, kind, name, *turned) in _names(t, ".codes"):
        scaling = {"kind": "block", "arithmetic": "te"} | ({"shape": "square"} if shape == "square128" else {})
        words = _said(format, scaling | ({"scale": "real"} if kind == "real" else {}))
        x = _typed(t[f"in.{name}"].T.contiguous() if turned else t[f"in.{name}"], name)
        entry = ".".join([shape, format, kind, *turned])
        yield Case(entry, name, words, x, t[f"{stem}.codes"], None, t[f"{stem}.scale_inv"])


def te_mxfp8_square(t: Tensors) -> Iterator[Case]:
    words = _said("e4m3fn", {"kind": "mx", "mode": "rceil", "shape": "square"})
    for stem, (_, name) in _names(t, ".codes"):
        x = _typed(t[f"in.{name}"], name)
        yield Case("square32", name, words, x, t[f"{stem}.codes"], t.get(f"{stem}.out"), _e8m0(t[f"{stem}.scale_row"]))


def deepgemm_casts(t: Tensors) -> Iterator[Case]:
    for stem, (shape, kind, name) in _names(t, ".codes"):
        scaling: dict[str, Any] = {"kind": "block", "arithmetic": "deepgemm", "floor": 0.0001}
        scaling |= {"scale": "real"} if kind == "real" else {}
        scaling |= {"shape": "square"} if shape == "square128" else {"size": 32} if shape == "fp4_run32" else {}
        x, codes, scale = _typed(t[f"in.{name}"], name), t[f"{stem}.codes"], t[f"{stem}.scale"]
        entry = f"{shape}.{kind}"
        if shape == "fp4_run32":
            words = _said("e2m1", scaling, "nearest_ties_to_zero")
            yield Case(entry, name, words, x[:32], _unpacked(codes), None, scale)
        elif shape == "column128":
            words = _said("e4m3fn", scaling)
            yield Case(entry, name, words, x.T.contiguous(), codes.T.contiguous(), None, scale.T.contiguous())
        else:
            yield Case(entry, name, _said("e4m3fn", scaling), x, codes, None, scale)


def torchao_float8_casts(t: Tensors) -> Iterator[Case]:
    for stem, (_, format, kind, part, name) in _names(t, ".codes"):
        scaling: dict[str, Any] = {"kind": "current", "arithmetic": "torchao", "floor": 1e-12}
        scaling |= {"scale": "real"} if kind == "real" else {}
        scaling |= {} if part == "tensor" else {"granularity": "channel"}
        parts = [t[f"in.{name}"], t[f"{stem}.codes"], t.get(f"{stem}.out"), t[f"{stem}.scale"]]
        if part == "column":
            parts = [p if p is None else p.T.contiguous() for p in parts]
        x, codes, values, scale = parts
        assert x is not None
        yield Case(f"{format}.{kind}.{part}", name, _said(format, scaling), x, codes, values, scale, "factor")


def torchao_mx(t: Tensors) -> Iterator[Case]:
    for stem, parts in _names(t, ".codes"):
        if len(parts) != 3 or parts[0] == "linear":
            continue
        format, mode, name = parts
        codes = t[f"{stem}.codes"]
        codes = _unpacked(codes) if format == "e2m1" else codes
        words = _said(format, {"kind": "mx", "mode": mode, "arithmetic": "torchao"})
        x, scale = _typed(t[f"in.{name}"], name, bf16=True), _e8m0(t[f"{stem}.scale"])
        yield Case(f"{format}.{mode}", name, words, x, codes, t.get(f"{stem}.out"), scale)


def torchao_nvfp4(t: Tensors) -> Iterator[Case]:
    for stem, (levels, name, *_) in _names(t, ".codes"):
        if not levels.endswith("level"):
            continue
        scaling: dict[str, Any] = {"kind": "nvfp4", "arithmetic": "torchao", "least": 0.015625}
        scaling |= {"outer": "none"} if levels == "one_level" else {}
        x = _typed(t[f"in.{name}"], name, bf16="f32" not in name)
        yield Case(levels, name, _said("e2m1", scaling), x, _unpacked(t[f"{stem}.codes"]), t.get(f"{stem}.out"))


def torchao_block128(t: Tensors) -> Iterator[Case]:
    for stem, (shape, name) in _names(t, ".codes"):
        scaling = {"kind": "block", "scale": "real", "arithmetic": "torchao", "floor": 1e-12}
        words = _said("e4m3fn", scaling | ({"shape": "square"} if shape == "square128" else {}))
        parts = [t[f"in.{name}"], t[f"{stem}.codes"], t[f"{stem}.scale_inv"]]
        x, codes, scale = (p.T.contiguous() for p in parts) if shape == "column128" else parts
        yield Case(shape, name, words, x, codes, None, scale)


def torchao_int8(t: Tensors) -> Iterator[Case]:
    for stem, parts in _names(t, ".codes"):
        way, name = parts
        codes, x, scale = t[f"{stem}.codes"].to(torch.int32), t[f"in.{name}"], t[f"{stem}.scale"]
        if way == "bitnet":
            words = _said("e0m1", {"kind": "current", "scale": "real", "statistic": "absmean", "floor": 1e-05})
            yield Case(way, name, words, x, torch.where(codes < 0, 3, codes), None, scale * 2)
            continue
        scaling = {"kind": "current", "granularity": "channel", "scale": "bf16" if "bf16" in way else "real"}
        words = _said("e0m7", scaling | {"arithmetic": "reciprocal"})
        yield Case(way, name, words, _typed(x, way), torch.where(codes < 0, 128 - codes, codes), None, scale * 128)


def fouroversix(t: Tensors) -> Iterator[Case]:
    rules = {"abs_max": "amax"}
    for stem, (way, rule, name) in _names(t, ".codes"):
        if way == "if4":  # a choice between two formats, which a cast has one of
            continue
        scaling: dict[str, Any] = {"kind": "nvfp4", "arithmetic": "fouroversix"}
        if way == "mxfp4":
            scaling = {"kind": "mx", "mode": "rceil"}
        if way == "nvfp4_square":
            scaling["shape"] = "square"
        if rule == "static_4":
            scaling["choose"] = [4]
        elif rule != "static_6":
            scaling |= {"choose": [6, 4], "by": rules.get(rule, rule), "scale_max": 256.0}
        codes = _unpacked(t[f"{stem}.codes"]).to(torch.int32)
        if way == "nvint4":  # two's complement
            codes = torch.where(codes > 7, 24 - codes, codes)
        scale = _e8m0(t[f"{stem}.scale"]) if way == "mxfp4" else _e4m3(t[f"{stem}.scale"])
        words = _said("e0m3" if way == "nvint4" else "e2m1", scaling)
        x = _typed(t[f"in.{name}"], name, bf16=True)
        yield Case(f"{way}.{rule}", name, words, x, codes, None, scale, "inner")


def quartet2(t: Tensors) -> Iterator[Case]:
    for stem, (way, *rule, name) in ((s, p) for s, p in _names(t, ".out") if p[0] in ("forward", "square")):
        scaling: dict[str, Any] = {"kind": "nvfp4", "arithmetic": "quartet", "zero_becomes": 1.0}
        if rule == ["four_over_six"]:
            scaling |= {"choose": [6, 4], "scale_max": 256.0}
        if way == "square":
            scaling |= {"shape": "square", "scale_max": 447.99}
        words = _said("e2m1", scaling, "nearest_away")
        yield Case(".".join([way, *rule]), name, words, t[f"in.{name}"], None, t[f"{stem}.out"])


def quartet(t: Tensors) -> Iterator[Case]:
    ways = {"quest": {"statistic": "std"}, "range_3_4": {"prescale": 0.75}}
    for stem, parts in _names(t, ".out"):
        words = _said("e2m1", {"kind": "mx", **ways[parts[0]]}, "nearest_ties_to_zero")
        yield Case(parts[0], parts[-1], words, t[f"transformed.{parts[-1]}"], None, t[f"{stem}.out"])


def tetrajet(t: Tensors) -> Iterator[Case]:
    ways: dict[str, dict[str, Any]] = {"ceil": {"kind": "mx", "mode": "rceil"}, "floor_amax": {"kind": "mx"}}
    ways["real"] = {"kind": "block", "size": 32, "scale": "real"}
    for stem, (_, name) in ((s, p) for s, p in _names(t, ".out") if p[0] == "ema"):
        words = _said("e2m1", ways["ceil"] | {"floor": 1e-08}, "toward_average")
        x, average = t[f"in.{name}"], t[f"ema.{name}.average"]
        yield Case("ema", name, words, x, None, t[f"{stem}.out"], average=average)
    for stem, (format, way, name) in ((s, p) for s, p in _names(t, ".out") if p[0] != "ema"):
        scaling = ways["ceil" if format == "double" else way] | {"floor": 1e-08}
        if format == "double":  # what the forward rounded, along the other axis
            x, values = t[f"e2m1.ceil.{name}.out"].T.contiguous(), t[f"{stem}.out"].T.contiguous()
            yield Case(
                "double", name, _said("e2m1", scaling), x, None, values, t[f"double.{name}.scale"].T.contiguous()
            )
        else:
            words = _said(format, scaling)
            yield Case(f"{format}.{way}", name, words, t[f"in.{name}"], None, t[f"{stem}.out"], t[f"{stem}.scale"])


def tetrajet_v2(t: Tensors) -> Iterator[Case]:
    words = _said("e2m1", {"kind": "nvfp4", "outer": 128, "arithmetic": "tetrajet"})
    for stem, (_, name) in _names(t, ".out"):
        yield Case("outer128", name, words, t[f"in.{name}"], None, t[f"{stem}.out"], t[f"{stem}.scale"])


def mxfp4_llm(t: Tensors) -> Iterator[Case]:
    """Its stochastic cast with the uniform number held at 0, which truncates, and at a half."""
    for noise, rounding in (("low", "toward_zero"), ("half", "nearest_away")):
        words = _said("e2m1", {"kind": "mx", "prescale": 0.75, "arithmetic": "reciprocal"}, rounding)
        for stem in sorted(name for name in t if name.startswith(f"wide.noise_{noise}.")):
            name = stem.rsplit(".", 1)[1]
            yield Case(f"noise_{noise}", name, words, t[f"wide.in.{name}"], None, t[stem])


def microxcaling(t: Tensors) -> Iterator[Case]:
    formats = {"fp8_e4m3": "e4m3fn", "fp8_e5m2": "e5m2", "fp6_e3m2": "e3m2", "fp6_e2m3": "e2m3", "fp4_e2m1": "e2m1"}
    formats |= {"int8": "e1m6b1", "int4": "e1m2b1"}
    roundings = {"nearest": "nearest_away", "even": "nearest_even", "floor": "toward_zero"}
    for stem, parts in _names(t, ".out"):
        if parts[0] == "mx":
            _, format, rounding, name = parts
            words = _said(formats[format], {"kind": "mx"}, roundings[rounding])
            yield Case(f"{format}.{rounding}", name, words, t[f"in.{name}"], None, t[f"{stem}.out"])


def msamp_fp4(t: Tensors) -> Iterator[Case]:
    for stem, (way, *name) in _names(t, ".out"):
        if way not in ("tensor", "token", "channel"):  # clamped at quantiles, or without a scale
            continue
        words = _said(
            "e2m1", {"kind": "current"} | ({} if way == "tensor" else {"granularity": "channel"}), "nearest_ties_up"
        )
        x, values = t[f"in.{name[0]}"].to(torch.bfloat16), t[f"{stem}.out"]
        x, values = (part.T.contiguous() for part in (x, values)) if way == "channel" else (x, values)
        yield Case(way, name[0], words, x, None, values)


def nanochat_fp8(t: Tensors) -> Iterator[Case]:
    for name, format in (("x", "e4m3fn"), ("w", "e4m3fn"), ("dy", "e5m2"), ("zeros", "e4m3fn")):
        words = _said(format, {"kind": "current", "scale": "real", "arithmetic": "torchao", "floor": 1e-12})
        x = torch.zeros(4, 16) if name == "zeros" else t[name]
        yield Case("cast", name, words, x.to(torch.bfloat16), t[f"{name}.codes"], None, t[f"{name}.scale_inv"])


def compressed_tensors(t: Tensors) -> Iterator[Case]:
    """What a checkpoint stores, of models in float32; those in bfloat16 round scales to it, but for MX."""
    for stem, (preset, dtype, name, *_) in _names(t, "weight_scale"):
        if dtype == "bf16" and not preset.startswith("mx"):
            continue
        x = t[f"in.{name}"]
        codes = t.get(f"{stem}weight")
        codes = _unpacked(t[f"{stem}weight_packed"]) if codes is None else codes
        scale = t[f"{stem}weight_scale"]
        if preset == "nvfp4":
            scale = _e4m3(scale) / t[f"{stem}weight_global_scale"]
        elif preset.startswith("mx"):
            scale = _e8m0(scale)
        x = _typed(x[: len(codes)], dtype)
        yield Case(f"{preset}.{dtype}", name, PRESETS[preset.upper()], x, codes, None, scale)


FILES: dict[str, Callable[[Tensors], Iterator[Case]]] = {
    "te_nvfp4_casts": te_nvfp4_casts,
    "te_nvfp4_options": te_nvfp4_options,
    "te_float8_tensor": te_float8_tensor,
    "te_float8_block": te_float8_block,
    "te_mxfp8_square": te_mxfp8_square,
    "deepgemm_casts": deepgemm_casts,
    "torchao_float8_casts": torchao_float8_casts,
    "torchao_mx_fp8": torchao_mx,
    "torchao_mx_fp6_fp4": torchao_mx,
    "torchao_nvfp4": torchao_nvfp4,
    "torchao_block128": torchao_block128,
    "torchao_int8": torchao_int8,
    "fouroversix": fouroversix,
    "quartet": quartet,
    "quartet2": quartet2,
    "tetrajet": tetrajet,
    "tetrajet_v2": tetrajet_v2,
    "mxfp4_llm": mxfp4_llm,
    "microxcaling": microxcaling,
    "nanochat_fp8": nanochat_fp8,
    "compressed_tensors": compressed_tensors,
    "msamp_fp4": msamp_fp4,
}
"""Recorded files and how their casts are said."""
