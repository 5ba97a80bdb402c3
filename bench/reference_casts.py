"""python -m bench.reference_casts: our casts beside the recorded outputs of the recipes' own reference code.

For every deterministic cast with scales that is recorded, `bench.reference_words` has it in the words of a spec. Codes,
values and scales are compared bit for bit, but for the sign of a zero, which some references have no notion of.
`UNEQUAL` lists what differs all the same, with the reason; anything else is a failure. ALTGRAD_REFERENCES names a
folder with the files whole, of which the project keeps a part (tests/references/README.md); with it the page
docs/CONFORMANCE.md is refreshed.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from altgrad.quantize import Quantizer
from altgrad.quantize.arithmetic import Arithmetic
from altgrad.quantize.average import Average
from altgrad.quantize.codes import to_codes
from altgrad.quantize.counted import Role
from bench.exhaustive import PAGE
from bench.page import refresh
from bench.reference_words import FILES, Case, Tensors

HERE = Path(__file__).parents[1] / "tests" / "references"
KEPT = {
    "casts.safetensors": [name for name in FILES if name not in ("compressed_tensors", "msamp_fp4")],
    "presets.safetensors": ["compressed_tensors"],
    "estimators.safetensors": ["msamp_fp4", "tetrajet"],
}
"""What the project keeps, and of which files; of the last, what belongs to an estimator."""

UNEQUAL: dict[tuple[str, str, str], tuple[int, str]] = {
    ("fouroversix", "nvfp4.static_6", "edge"): (128, "wraps"),
    ("fouroversix", "nvfp4.mse", "edge"): (136, "wraps"),
    ("fouroversix", "nvfp4.mae", "edge"): (136, "wraps"),
    ("fouroversix", "nvfp4.abs_max", "edge"): (136, "wraps"),
    ("fouroversix", "mxfp4.static_6", "edge"): (256, "0/0"),
    ("fouroversix", "mxfp4.static_4", "edge"): (256, "0/0"),
    ("tetrajet_v2", "outer128", "edge"): (16, "zero scale"),
    ("torchao_int8", "int8_row", "edge"): (2, "zero row"),
    ("torchao_int8", "bitnet", "normal"): (1, "mean"),
    ("torchao_int8", "bitnet", "lognormal"): (1, "mean"),
    ("msamp_fp4", "channel", "edge"): (5, "log2"),
}
"""(file, entry, input): how many codes, values and scales differ, and why, a key of `REASONS`."""

REASONS = {
    "wraps": "no clamp there: where a block's scale was rounded far down, 8 is no e2m1 number and has the code of -0",
    "0/0": "zero blocks are 0/0 in the reference, whose codes there mean nothing",
    "zero scale": "the recorded scale is the stochastic cast's, where 0 becomes 2^-9; the values agree",
    "zero row": "the scale of a row of zeros is 0 there and 1 here; the codes agree",
    "log2": "floor(log2(6 / amax)) in bfloat16, which rounds up to a whole number for an amax just above 6 2^k: half "
    "the scale, and the largest saturates",
    "mean": "mean |w| summed in float32 there, in float64 here: the scale's last bit; the codes agree",
}


class Compared(NamedTuple):
    """How many numbers were compared and how many differ."""

    case: Case
    codes: int
    values: int
    scales: int
    compared: int

    @property
    def unequal(self) -> int:
        return self.codes + self.values + self.scales


class Recorded(Average):
    """An average that was recorded, so that no step moves it."""

    def goal(self, weight: Tensor, live: bool, rows: slice = slice(None)) -> Tensor:
        return self.committed[rows]


def quantizer_of(case: Case, **options: Any) -> Quantizer:
    """Ours, with the average that it goes by; on a transposed x if `reduced` is first."""
    role: Role = "input" if case.average is None else "weight"
    made = Quantizer(case.words, "reference", role, shape=tuple(case.x.shape), **options)
    if case.average is not None:
        average = case.average.T if options.get("reduced") == "first" else case.average
        made.average = Recorded(tuple(average.shape), 0.5)
        made.average.committed.copy_(average)
    return made


def compare(case: Case) -> Compared:
    """Cast, and count what differs."""
    quantizer = quantizer_of(case._replace(words={"nonfinite": "saturate", **case.words}))
    cast, scale = quantizer.cast(case.x, False), quantizer.find_scale(case.x)
    codes = values = scales = compared = 0
    if case.codes is not None:
        ours = to_codes(cast.rounded, cast.format).view(case.codes.shape)
        minus = 1 << (cast.format.bits - 1)
        theirs = case.codes.to(torch.int32)
        codes = _unequal(torch.where(ours == minus, 0, ours), torch.where(theirs == minus, 0, theirs))
        compared += ours.numel()
    if case.values is not None:
        values = _unequal(quantizer.values(case.x, False, torch.float32), case.values)
        compared += case.values.numel()
    if case.scale is not None and scale is not None:
        found = getattr(scale, case.level)
        found = scale.entries if found is None else found
        found = found.repeat_interleave(case.scale.numel() // found.numel(), 0) if found.ndim else found
        scales = _unequal(found.reshape(case.scale.shape), case.scale)
        compared += case.scale.numel()
    return Compared(case, codes, values, scales, compared)


def _unequal(ours: Tensor, theirs: Tensor) -> int:
    return int(((ours != theirs) & ~(ours.isnan() & theirs.isnan())).sum())


def recorded() -> dict[str, Tensors]:
    """The recorded tensors by file: whole where ALTGRAD_REFERENCES says they are, else those that the project keeps."""
    whole = os.environ.get("ALTGRAD_REFERENCES")
    if whole:
        return {name: _read(Path(whole) / f"{name}.safetensors") for name in FILES}
    found: dict[str, Tensors] = {name: {} for name in FILES}
    for part in KEPT:
        kept = _read(HERE / part)
        with safe_open(HERE / part, framework="pt") as opened:
            places: dict[str, str] = json.loads(opened.metadata()["places"])
        for place, tensor in places.items():
            file, name = place.split("/")
            found[file][name] = kept[tensor]
    return found


def _read(path: Path) -> Tensors:
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return {name: t.to(torch.float32) if t.dtype == torch.bfloat16 else t for name, t in tensors.items()}


def keep(folder: Path) -> None:
    """Write what the project keeps of the files in a folder."""
    whole = {file: _read(folder / f"{file}.safetensors") for file in FILES}
    for part, files in KEPT.items():
        items = []
        for file in files:
            kept = _kept(whole[file], "nvfp4" in file)
            if part == "estimators.safetensors":
                kept = [(name, tensor) for name, tensor in whole[file].items() if _of_an_estimator(file, name)]
            items += [(f"{file}/{name}", tensor) for name, tensor in kept]
        _write(part, items)


def _of_an_estimator(file: str, name: str) -> bool:
    return "clamp_9" not in name if file == "msamp_fp4" else name.startswith(("ema.", "in.lognormal", "in.t2"))


def _write(name: str, items: list[tuple[str, Tensor]]) -> None:
    """Tensors by place, equal ones once, as bfloat16 where that is exact."""
    tensors: Tensors = {}
    places: dict[str, str] = {}
    seen: dict[bytes, str] = {}
    for place, tensor in items:
        small = tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
        exact = tensor.dtype == torch.float32 and torch.equal(small.to(torch.float32), tensor)
        data = (small if exact else tensor).contiguous()
        key = bytes(str(tuple(data.shape)), "ascii") + data.flatten().view(torch.uint8).numpy().tobytes()
        places[place] = seen.setdefault(key, place)
        tensors.setdefault(seen[key], data)
    save_file(tensors, HERE / name, {"places": json.dumps(places)})


_OTHER = (
    "linear", "moments", "layernorm", "vector", "kernel", "grouped", "osci", "ema", "if4", "eden", "eden_real_scale",
    "mx_flush", "y", "dx", "dw", "e8m0",
)  # fmt: skip
"""What files hold beside casts with scales, by the first word of the name."""


UNUSED = (
    ".mask", ".dx", ".dy", ".mean", ".var", ".high", ".low", ".amax", "scale_column", "scale_before", "read_back",
)  # fmt: skip


def _kept(tensors: Tensors, nvfp4: bool) -> Iterator[tuple[str, Tensor]]:
    """Inputs, codes, scales; values where there are no codes, or of normal and edge inputs; heavy tails for NVFP4."""
    for name, tensor in tensors.items():
        if ("t2" in name or "lognormal" in name) and not nvfp4:
            continue
        stem = name.removesuffix(".out")
        spare = name.endswith(".out") and f"{stem}.codes" in tensors and not ("normal" in stem or "edge" in stem)
        unused = name.endswith(UNUSED) or (".bf16." in name and name.startswith(("fp8", "nvfp4.")) and "stored" in name)
        if not spare and not unused and name.split(".")[0] not in _OTHER:
            yield name, tensor


def compared(tensors: dict[str, Tensors]) -> Iterator[tuple[str, Compared]]:
    """Every case of every file."""
    for file, cases in FILES.items():
        for case in cases(tensors[file]):
            yield file, compare(case)


def unexplained(found: list[tuple[str, Compared]]) -> list[str]:
    """A line for each case that differs from its reference otherwise than `UNEQUAL` says."""
    lines = []
    for file, each in found:
        known = UNEQUAL.get((file, each.case.entry, each.case.input), (0, ""))[0]
        if each.unequal != known:
            counts = f"{each.codes} codes, {each.values} values and {each.scales} scales differ"
            lines.append(f"{file} {each.case.entry} {each.case.input}: {counts}, not {known}")
    return lines


def page(found: list[tuple[str, Compared]]) -> str:
    """The table: a row for each entry of each file, over all its inputs."""
    lines = ["| reference | entry | our words | inputs | compared | unequal |", "|---|---|---|---|---|---|"]
    order = {file: number for number, file in enumerate(FILES)}
    found = sorted(found, key=lambda each: (order[each[0]], each[1].case.entry))
    for (file, entry), group in groupby(found, lambda each: (each[0], each[1].case.entry)):
        cases = [each for _, each in group]
        unequal = [
            f"{each.unequal} ({each.case.input}: {UNEQUAL[file, entry, each.case.input][1]})"
            for each in cases
            if each.unequal
        ]
        total = f"{sum(each.compared for each in cases):,}"
        inputs = ", ".join(each.case.input for each in cases)
        words = f"`{_in_yaml(cases[0].case.words)}`"
        lines.append(f"| {file} | {entry} | {words} | {inputs} | {total} | {', '.join(unequal) or 0} |")
    lines += ["", *(f"* *{name}*: {reason}." for name, reason in REASONS.items())]
    return "\n".join(lines)


def among() -> str:
    """How far the orders of operations are apart: values, and block scales, that differ from those of `divide`."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(512, 256, generator=generator)
    inputs = {
        "normal": normal,
        "log-normal": normal * torch.exp(2 * torch.randn(512, 256, generator=generator)),
        "t(2)": normal / (torch.randn(2, 512, 256, generator=generator).square().mean(0)).sqrt(),
    }
    inputs["normal in bf16"] = normal.to(torch.bfloat16).to(torch.float32)
    lines = [f"| scaling | arithmetic | {' | '.join(inputs)} |", f"|---|---|{'---|' * len(inputs)}"]
    two_levels = [name for name in get_args(Arithmetic) if name not in ("divide", "deepgemm")]
    for words, arithmetics in (("e2m1 nvfp4", two_levels), ("e4m3fn block real", ["reciprocal", "encode", "torchao"])):
        format, kind, *scale = words.split()
        for arithmetic in arithmetics:
            scaling = {"kind": kind, "arithmetic": arithmetic} | ({"scale": scale[0]} if scale else {})
            cells = [_apart(x, format, scaling) for x in inputs.values()]
            lines.append(f"| {words} | {arithmetic} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _apart(x: Tensor, format: str, scaling: dict[str, Any]) -> str:
    """What of one tensor differs."""
    made = []
    for each in (scaling | {"arithmetic": "divide"}, scaling):
        quantizer = Quantizer({"format": format, "scaling": each}, "s")
        scale = quantizer.find_scale(x)
        assert scale is not None
        made.append((quantizer.values(x, False, torch.float32), quantizer.cast(x, False).rounded, scale.entries))
    values, codes, scales = (_unequal(ours, theirs) for ours, theirs in zip(*made, strict=True))
    return f"{values:,} values, {codes:,} codes, {scales:,} scales"


def _in_yaml(words: Any) -> str:
    """The words as one line of YAML."""
    if isinstance(words, dict):
        return "{" + ", ".join(f"{key}: {_in_yaml(value)}" for key, value in words.items()) + "}"
    return "[" + ", ".join(map(_in_yaml, words)) + "]" if isinstance(words, list) else str(words)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["keep"]:
        keep(Path(arguments[1]))
        return 0
    found = list(compared(recorded()))
    if os.environ.get("ALTGRAD_REFERENCES"):
        refresh(PAGE, "references", page(found))
        refresh(PAGE, "arithmetics", among())
    lines = unexplained(found)
    print("\n".join(lines) or f"{len(found)} recorded casts as expected")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
