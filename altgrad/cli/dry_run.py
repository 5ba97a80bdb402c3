"""What `altgrad train --dry-run` shows: the casts a run would make, like layers together, and what it would take.

    rule 0 at quickstart.yaml:22:7                    what decided it
      layers         blocks.*.mlp.up x4, ...          alike in all that follows; `*`: every layer so named is
      input, weight  e4m3fn delayed                   operands that are cast alike in every product share a line
      grad_output    e5m2 delayed

An operand that its two products cast differently has a line for each. Everything fits 80 columns, in a pipe as well;
--json has every layer with its six slots.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from altgrad.cli import console
from altgrad.display import Line, table_lines
from altgrad.numerals import size_text

OPERANDS = {
    "input": ("forward", "grad_weight"),
    "weight": ("forward", "grad_input"),
    "grad_output": ("grad_input", "grad_weight"),
}
"""The products that each operand enters."""
PRODUCTS = ("forward", "grad_input", "grad_weight")
LABEL = 34
"""The longest label of several operands."""
PARTS = ("weights", "gradients", "storage", "optimizer", "casts", "monitors")


Casts = Sequence[Mapping[str, Any]]


def show_casts(phases: Sequence[Casts], ends: Sequence[int], facts: Mapping[str, Any], place: str) -> None:
    """The casts, and what the run takes. phases: the casts of each, which end at `ends`; a row a layer, with its
    weight. facts: those of --json."""
    width, lines, begin = min(console.width(), 120), [], 1
    for number, (casts, end) in enumerate(zip(phases, ends, strict=True)):
        if len(phases) > 1:
            lines.append(Line.of((f"phase {number}: steps {begin:,} to {end:,}", "bold")))
        lines += cast_lines(casts, width)
        begin = end + 1
    cast = {row["weight"] for casts in phases for row in casts}
    others: dict[str, list[str]] = {}
    for name, how in facts["stored"].items():
        if name not in cast:
            others.setdefault(how, []).append(name)
    rows = [["stored", f"{how}: {', '.join(together(names, names))}"] for how, names in others.items()]
    parameters, quantised, taken = facts["parameters"], facts["quantised_parameters"], facts["estimate"]
    rows += [
        ["parameters", f"{parameters:,}, of which {quantised:,} ({quantised / parameters:.1%}) are quantised"],
        ["steps", place],
        ["a step", f"{taken['flops_per_step']:.3g} FLOPs (backward: 2 x forward), {taken['tokens_per_step']:,} tokens"],
        ["bytes", f"{size_text(taken['total'])} and activations: "
         + ", ".join(f"{part} {size_text(taken[part])}" for part in PARTS if taken[part])],
    ]  # fmt: skip
    if taken["codes"]:
        rows.append(["codes", f"{size_text(taken['codes'])} for the stored weights in their formats"])
    if taken.get("states"):
        rows.append(["states", f"{size_text(taken['states'])} for the cast optimizer states in their formats"])
    console.picture([*lines, Line.of(""), *table_lines("", [], rows, width)])


def cast_lines(casts: Sequence[Mapping[str, Any]], width: int) -> list[Line]:
    """Layers that are alike as one entry each, in the order of the model."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for row in casts:
        groups.setdefault((row["rule"], row["storage"], tuple(row["slots"].values())), []).append(row["layer"])
    everything = [row["layer"] for row in casts]
    lines: list[Line] = []
    for (rule, storage, _), layers in groups.items():
        slots = next(row["slots"] for row in casts if row["layer"] == layers[0])
        rows = [["layers", ", ".join(together(layers, everything))], *map(list, operands(slots))]
        if storage != "master":
            rows.append(["stored", storage])
        lines.append(Line.of((rule, "bold")))
        lines += [Line.of("  ").then(line) for line in table_lines("", [], rows, width - 2)]
    return lines


def operands(slots: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is cast how, equal casts together; one entry where nothing is cast."""
    if all(cast == "-" for cast in slots.values()):
        return [("not cast", "")]
    named: dict[str, list[str]] = {}
    if not any("." in slot and slot.partition(".")[0] in PRODUCTS for slot in slots):  # of attention, a norm, an output
        for slot, cast in slots.items():
            named.setdefault(cast, []).append(slot)
        return [(label, cast) for cast, names in named.items() for label in _labels(names)]
    for operand, products in OPERANDS.items():
        casts = {product: slots[f"{product}.{operand}"] for product in products}
        alike = len(set(casts.values())) == 1
        for product, cast in list(casts.items())[: 1 if alike else 2]:
            named.setdefault(cast, []).append(operand if alike else f"{operand} of {product}")
    told = {cast: "not cast" if cast == "-" else cast for cast in named}
    return [(label, told[cast]) for cast, names in named.items() for label in _labels(names)]


def _labels(names: Sequence[str]) -> Iterator[str]:
    """The names in labels that leave the casts beside them most of 80 columns."""
    label = ""
    for name in names:
        if label and len(label) + len(name) + 2 > LABEL:
            yield label
            label = ""
        label = f"{label}, {name}" if label else name
    yield label


def together(layers: Sequence[str], everything: Sequence[str]) -> list[str]:
    """Names that differ in numbers alone as one: `blocks.*.mlp.up x4`, or `blocks.0-2,5.mlp.up x4` if not all do."""
    found: list[str] = []
    for pattern, numbers in _by_pattern(layers).items():
        whole = _by_pattern(everything)[pattern]
        places = [sorted({each[place] for each in numbers}) for place in range(pattern.count("#"))]
        combinations = 1
        for place in places:
            combinations *= len(place)
        if len(numbers) == 1 or combinations != len(numbers):
            found += [_filled(pattern, list(map(str, each))) for each in numbers]
        else:
            marks = [
                "*" if len(place) > 1 and place == sorted({each[index] for each in whole}) else _ranges(place)
                for index, place in enumerate(places)
            ]
            found.append(f"{_filled(pattern, marks)} x{len(numbers)}")
    return found


def _by_pattern(names: Iterable[str]) -> dict[str, list[tuple[int, ...]]]:
    """The numbers in names, by the name with `#` for each of them."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        parts = name.split(".")
        pattern = ".".join("#" if part.isdecimal() else part for part in parts)
        found.setdefault(pattern, []).append(tuple(int(part) for part in parts if part.isdecimal()))
    return found


def _filled(pattern: str, marks: Sequence[str]) -> str:
    for mark in marks:
        pattern = pattern.replace("#", mark, 1)
    return pattern


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2,5` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
