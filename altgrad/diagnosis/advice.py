"""Which format for which layer, from one pass over its tensors.

Every tensor has become a histogram (`altgrad.measures.value_histogram`), on which every format is judged under four
scales. The choice is by SQNR, because that is what one cast does to one tensor and can be known without training:

    1  formats that make more than 5 % of the non-zero values zero are passed over where another does not;
    2  of the rest, those within half a decibel of the best SQNR at a power-of-two amax scale are as good as it;
    3  among these deployed formats (e4m3fn, e5m2) go first, then the fewest bits, then the order asked for.

A weight whose best power of two gains a decibel on that of amax gets `scaling: mse`. What a format costs in training is
another question (a gradient's small values may matter more than their energy says): it is where to start, and
`altgrad train` where to find out.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from altgrad.diagnosis.samples import LayerSample
from altgrad.formats import NumberFormat, parse_format
from altgrad.measures.format_fit import FormatFit
from altgrad.measures.value_histogram import fit_histogram
from altgrad.nn.names import literal, matches
from altgrad.nn.slots import Operand
from altgrad.progress import progress
from altgrad.spec.ranking import badness

DEPLOYED = ("e4m3fn", "e5m2")
CANDIDATES = ("e4m3fn", "e5m2", "e3m4", "e2m5", "e0m7", "e6m1", "e7m0")
UNDERFLOW_LIMIT, AS_GOOD_DB, MSE_GAIN_DB = 0.05, 0.5, 1.0


@dataclass(frozen=True)
class Advice:
    """One operand of one layer: how every format fits it, and which to take.

    exact: by format, whether its figures at power-of-two scales are those of the cast; those at real scales are
    estimates. rule: what a precision rule says for this operand.
    """

    layer: str
    operand: Operand
    elements: int
    nonfinite: int
    fits: Mapping[str, FormatFit]
    exact: Mapping[str, bool]
    format: str
    rule: str | Mapping[str, Any]


def advise(
    samples: Iterable[LayerSample], formats: Sequence[NumberFormat], stored: Collection[str] = ()
) -> list[Advice]:
    """Advice for every operand that was sampled; operands without a finite value, or all zero, are left out.

    stored: layers whose weights lie on the grid of their storage. Of those no cast is advised: one to the same grid
    (e0m7 is e1m6's) does nothing and any other rounds a second time, though to the measure the first looks perfect.
    """
    found = []
    samples = list(samples)
    for number, sample in enumerate(samples):
        progress("weighing formats", number, len(samples))
        for operand, values in sample.operands.items():
            if values.amax == 0 or (operand == "weight" and sample.layer in stored):
                continue
            fits = fit_histogram(values, formats)
            exact = {str(fmt): values.is_exact(fmt, fits[str(fmt)].amax_power_of_two.scale) for fmt in formats}
            chosen = best_format(fits)
            rule = _rule(chosen, operand, fits[chosen])
            found.append(Advice(sample.layer, operand, values.count, values.nonfinite, fits, exact, chosen, rule))
    return found


def best_format(fits: Mapping[str, FormatFit]) -> str:
    """The format to take, as the head of this file says."""
    at_amax = {name: fit.amax_power_of_two for name, fit in fits.items()}
    kept = [name for name, fit in at_amax.items() if not fit.underflow_rate > UNDERFLOW_LIMIT] or list(at_amax)
    best = min((at_amax[name].sqnr_db for name in kept), key=lambda sqnr: badness(sqnr, "lower"))
    as_good = [name for name in kept if not at_amax[name].sqnr_db < best - AS_GOOD_DB]
    order = list(fits)
    return min(as_good, key=lambda name: (name not in DEPLOYED, parse_format(name).bits, order.index(name)))


def _rule(name: str, operand: Operand, fit: FormatFit) -> str | Mapping[str, Any]:
    gain = fit.best_power_of_two.sqnr_db - fit.amax_power_of_two.sqnr_db
    return {"format": name, "scaling": "mse"} if operand == "weight" and gain >= MSE_GAIN_DB else name


def rules(advice: Iterable[Advice], others: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Precision rules that give every layer what was advised, layers of one kind together where they agree.

    others: names of layers that no rule may match, such as heads.
    """
    layers: dict[str, dict[str, Any]] = {}
    for each in advice:
        layers.setdefault(each.layer, {})[each.operand] = each.rule
    left_out = list(others)
    single: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    done: set[str] = set()
    for pattern in ("*", *dict.fromkeys(map(layer_kind, layers))):
        members = [name for name in layers if matches(pattern, [name])]
        new = [name for name in members if name not in done]
        if len(members) < 2 or not new or any(matches(pattern, [name]) for name in left_out):
            continue
        if all(layers[name] == layers[members[0]] for name in members):
            shared.append({"match": pattern, **layers[members[0]]})
            done |= set(members)
    for name, casts in layers.items():
        if name not in done:
            single.append({"match": literal(name), **casts})
    return single + shared


def layer_kind(name: str) -> str:
    """A layer's name with `*` for its numbers: layers of one kind share it."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", literal(name))


def policy_yaml(found: Sequence[Mapping[str, Any]]) -> str:
    """The rules as the `precision` of a run spec."""
    text: str = yaml.safe_dump({"precision": {"rules": [dict(rule) for rule in found]}}, sort_keys=False, width=120)
    return text
