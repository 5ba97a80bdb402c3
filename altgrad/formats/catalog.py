"""Formats worth a name: data, nothing else.

Every ExMy is a format without being listed here; an entry says where a format comes from and what other people call
it. Names on the left are canonical (`str(FloatFormat.parse(name)) == name`); an alias is another spelling of exactly
the same format and is resolved by look-up, so no code anywhere asks which format it has. Grids that no ExMy describes
are tables of values; those with a name are listed here as well (TABLES).

Sources: OCP 8-bit Floating Point Specification 1.0 (2023); OCP Microscaling Formats (MX) 1.0 (2023); Micikevicius et
al., arXiv 2209.05433; Noune et al., arXiv 2206.02915 (the fnuz pair); IEEE 754-2019; IEEE SA P3109 interim report,
whose names binary8p4se and binary8p4sf read "8 bits, precision 4, signed, extended or finite"; LLVM's APFloat and
ml_dtypes for the remaining spellings. TE is NVIDIA's Transformer Engine. P3109's *finite* variant (one zero, NaN at
0x80, no infinity, bias 2^(E-1)) is `fnuz` exactly and needs no name of its own; both variants at every other width and
precision are grammar (p3109_k6p4sf, or binary6p4sf, is e2m3fnuz) and need no line here. LLVM's e2m1fn, e2m3fn and
e3m2fn have no NaN whatever their ending says: they are `f` forms, and the true `fn` ones spell their bias (e2m1b1fn).
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """One named format: its canonical name, its source in a line, and other spellings of it."""

    name: str
    source: str
    aliases: tuple[str, ...] = ()


CATALOG: tuple[Entry, ...] = (
    # 16 bits
    Entry("e5m10", "IEEE 754 binary16", ("fp16", "float16", "half", "binary16")),
    Entry("e8m7", "bfloat16: the upper half of IEEE binary32", ("bf16", "bfloat16")),
    # 8 bits, deployed
    Entry("e4m3fn", "OCP FP8, MXFP8; H100, TE, torch", ("float8_e4m3fn", "fp8_e4m3", "mxfp8_e4m3")),
    Entry("e5m2", "OCP FP8, MXFP8; H100, TE, torch; AltGrad proposal", ("float8_e5m2", "fp8_e5m2", "mxfp8_e5m2")),
    Entry("e4m3fnuz", "Graphcore, AMD MI300; P3109 K8P4 finite", ("float8_e4m3fnuz", "binary8p4sf", "p3109_k8p4sf")),
    Entry("e5m2fnuz", "Graphcore, AMD MI300; P3109 K8P3 finite", ("float8_e5m2fnuz", "binary8p3sf", "p3109_k8p3sf")),
    Entry("e4m3b11fnuz", "Google: ml_dtypes, LLVM", ("float8_e4m3b11fnuz", "float8_e4m3b11")),
    Entry("e4m3ieee", "IEEE 754 rules at 8 bits; AWS Trainium, ml_dtypes, LLVM", ("float8_e4m3",)),
    Entry("e3m4", "IEEE 754 rules at 8 bits; AWS Trainium, ml_dtypes, LLVM; AltGrad proposal", ("float8_e3m4",)),
    # 8 bits, IEEE P3109 signed and extended: one zero, NaN at 0x80, infinities at 0x7f and 0xff
    Entry("e1m6p3109", "IEEE P3109 K8P7, signed, extended", ("binary8p7se", "p3109_k8p7se", "binary8p7")),
    Entry("e2m5p3109", "IEEE P3109 K8P6, signed, extended", ("binary8p6se", "p3109_k8p6se", "binary8p6")),
    Entry("e3m4p3109", "IEEE P3109 K8P5, signed, extended", ("binary8p5se", "p3109_k8p5se", "binary8p5")),
    Entry("e4m3p3109", "IEEE P3109 K8P4, signed, extended", ("binary8p4se", "p3109_k8p4se", "binary8p4")),
    Entry("e5m2p3109", "IEEE P3109 K8P3, signed, extended", ("binary8p3se", "p3109_k8p3se", "binary8p3")),
    Entry("e6m1p3109", "IEEE P3109 K8P2, signed, extended", ("binary8p2se", "p3109_k8p2se", "binary8p2")),
    Entry("e7m0p3109", "IEEE P3109 K8P1, signed, extended", ("binary8p1se", "p3109_k8p1se", "binary8p1")),
    # 8 bits, every code finite: the E + M = 7 ablation
    Entry("e0m7", "sign-magnitude fixed point; AltGrad proposal, E + M = 7 ablation", ("e0m7f",)),
    Entry("e1m6", "one exponent bit: the grid of e0m7; AltGrad proposal, E + M = 7 ablation", ("e1m6f",)),
    Entry("e2m5", "E + M = 7 ablation", ("e2m5f",)),
    Entry("e3m4f", "E + M = 7 ablation"),
    Entry("e4m3f", "E + M = 7 ablation"),
    Entry("e5m2f", "E + M = 7 ablation"),
    Entry("e6m1", "E + M = 7 ablation", ("e6m1f",)),
    Entry("e7m0", "signed powers of two and zero; AltGrad proposal, E + M = 7 ablation", ("e7m0f",)),
    # below 8 bits
    Entry("e2m3", "OCP MXFP6", ("e2m3fn", "e2m3f", "float6_e2m3fn", "mxfp6_e2m3")),
    Entry("e3m2", "OCP MXFP6", ("e3m2fn", "e3m2f", "float6_e3m2fn", "mxfp6_e3m2")),
    Entry("e2m1", "OCP MXFP4, NVFP4", ("e2m1fn", "e2m1f", "float4_e2m1fn", "mxfp4", "nvfp4", "fp4")),
)

SCALES: tuple[Entry, ...] = (
    Entry("e8m0fnu", "OCP MX: the scale of a block, 2^(code - 127)", ("float8_e8m0fnu", "ue8m0")),
    *(
        Entry(
            f"binary8p{precision}{kind}",
            f"IEEE P3109 K8P{precision}, unsigned, {'extended' if kind == 'ue' else 'finite'}",
            (f"p3109_k8p{precision}{kind}",),
        )
        for kind in ("ue", "uf")
        for precision in range(1, 9)
    ),
)
"""The scale formats (`ScaleFormat`) worth a name: unsigned, so none of them is a FloatFormat."""

TABLES: tuple[Entry, ...] = (
    Entry("int8", "two's complement; torch.int8"),
    Entry("int4", "two's complement; ml_dtypes.int4"),
    Entry("ternary", "-1, 0, 1: BitNet b1.58"),
    Entry("nf4", "NormalFloat of QLoRA; bitsandbytes", ("normalfloat4",)),
    Entry("bnb_fp4", "bitsandbytes' FP4, which is not e2m1"),
    Entry("dynamic8", "moments of 8-bit Adam: bitsandbytes, torchao", ("bnb_dynamic8",)),
    Entry("dynamic8_unsigned", "second moments of 8-bit Adam: bitsandbytes, torchao", ("bnb_dynamic8_unsigned",)),
    Entry("dynamic4", "first moments of torchao's 4-bit Adam"),
    Entry("linear4_unsigned", "second moments of torchao's 4-bit Adam: 1/16 to 1, without zero"),
    Entry("lns8", "zero and +-2^(k/8): LNS-Madam; rounds the logarithm, never to zero"),
    Entry("posit8", "Posit Standard (2022), es = 2; never rounds to zero", ("posit8_es2",)),
    Entry("posit8_es0", "posits before the standard, es = 0: softposit's posit8"),
    Entry("hif8", "HiFloat8, tapered; specified with rounding: nearest_away", ("hifloat8",)),
)
"""The tables of values (`TableFormat`) worth a name; `named_tables` makes them."""

ALIASES: dict[str, str] = {alias: entry.name for entry in CATALOG for alias in entry.aliases}
"""Other spelling -> canonical name."""

TABLE_NAMES: dict[str, str] = {spelled: entry.name for entry in TABLES for spelled in (entry.name, *entry.aliases)}
"""A table's name or another spelling of it -> its name."""

SCALE_ALIASES: dict[str, str] = {alias: entry.name for entry in SCALES for alias in entry.aliases}
"""Other spelling of a scale format -> canonical name."""

AMBIGUOUS: dict[str, tuple[tuple[str, str], ...]] = {
    "e4m3": (("e4m3fn", "max 448: OCP, H100, TE, torch"), ("e4m3ieee", "max 240")),
    "fp8": (("e4m3fn", "max 448: more precise"), ("e5m2", "max 57344: wider")),
    "fp6": (("e2m3", "max 7.5: more precise"), ("e3m2", "max 28: wider")),
    "mxfp8": (("e4m3fn", "with scaling: mx, as it is meant most often"), ("e5m2", "with scaling: mx: wider")),
    "mxfp6": (("e2m3", "with scaling: mx: more precise"), ("e3m2", "with scaling: mx: wider")),
}
"""Spellings the literature uses for different formats -> (canonical name, how to tell it) for each."""

OUTSIDE: dict[str, str] = {
    **dict.fromkeys(
        [*(entry.name for entry in SCALES), *SCALE_ALIASES],
        "is an unsigned scale format, not one for values; ask for it as a block's scale",
    ),
    "mxint8": "is two's complement; without its lone -2 it is twice e0m7, the same under power-of-two scales",
}
"""Well-known names that are no FloatFormat -> what they are."""
