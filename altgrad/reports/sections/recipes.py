"""recipes: published recipes beside their uncast twin: what each costs in loss, and what it spends for that.

Where arms differ in the recipe that their runs were made from (a spec keeps it as a note), every arm is one row: its
difference from the reference by the comparison that the whole report makes, bits and extra operations from its rules
(`product_cost`), and what its casts do to products (monitor `products`) and to gradients (monitor `shadow`). The plot
is loss against bits; fewer bits at no more loss is better, so recipes that no other beats in both are named in it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from altgrad.numerals import significant
from altgrad.recipes.note import RecipeNote
from altgrad.reports.arm_comparison import ArmComparison, ComparedArm
from altgrad.reports.bits import bits_text, stored_bits
from altgrad.reports.content import Axes, Axis, Band, Block, Dots, Figure, Guide, Limit, Symbol, Table, Tone
from altgrad.reports.product_cost import ProductCost, product_cost
from altgrad.reports.project import Project, final
from altgrad.reports.rows import columns_of, rows_of
from altgrad.reports.section import Section
from altgrad.reports.sections.comparison import frame
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import MARGIN, Interval

PRODUCTS = ("forward", "grad_input", "grad_weight")
NAMED = 10
"""As many points can be named in the plot; of more, those that no other beats."""
WIDTHS: tuple[tuple[float, str, Tone, Symbol], ...] = (
    (5.0, "4 bits or fewer", "orange", "circle"), (10.0, "6 to 8 bits", "blue", "square"),
    (math.inf, "some operands uncast", "green", "diamond"),
)  # fmt: skip
"""Up to how many bits of an operand, what that is called, and how it is drawn."""
TICKS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


class Recipes(Section):
    """Loss, bits, operations and fidelity by recipe: one table, and loss against bits."""

    kind: ClassVar[str] = "recipes"
    title: ClassVar[str] = "Recipes"
    question: ClassVar[str] = "What does each recipe cost in loss, and what does it spend?"
    place: ClassVar[int] = 16
    metrics: ClassVar[tuple[str, ...]] = (*(f"{product}_sqnr_db" for product in PRODUCTS), "cosine")

    def blocks(self, project: Project) -> list[Block]:
        found = project.comparison
        if found is None or len({recipe_of(arm.first.spec) for arm in found.arms.values()}) < 2:
            return []
        costs = {name: cost_of(arm) for name, arm in found.arms.items()}
        blocks: list[Block] = [figure for figure in (_plot(found, costs),) if figure is not None]
        blocks.append(_table(found, costs))
        blocks += [Limit(text) for text in _missing(found)]
        return blocks


def recipe_of(spec: Mapping[str, Any]) -> str:
    """The recipe that a spec was made from, with its parameters and what of it is the spec's own; empty where there is
    none. Compute is all arms' (`_table` tells where it is not the recipes')."""
    precision = spec.get("precision")
    precision = precision if isinstance(precision, Mapping) else {}
    whole, phases = _noted(spec, whole=True), precision.get("phases")
    if phases and not (whole and not any(map(_noted, phases))):
        names = [_noted(phase) or ("own casts" if phase.get("rules") else "none") for phase in phases]
        ends = [f" to {phase['until']}" if phase.get("until") else "" for phase in phases]
        return ", then ".join(map("".join, zip(names, ends, strict=True)))
    return whole or _noted(precision)


def _noted(owner: Mapping[str, Any], *, whole: bool = False) -> str:
    """The recipe that a part of a spec notes; empty where it notes none. whole: it is the run's."""
    note = owner.get("recipe")
    if not (isinstance(note, Mapping) and note.get("expanded")):
        return ""
    told = {key: value for key, value in note.items() if key not in RecipeNote.model_fields}
    chosen = [f"{key} {value}" for key, value in (told | (note.get("changed") or {})).items()]
    own = [*note.get("without", ()), *note.get("besides", ())] if whole else []
    chosen += [f"own {key}" for key in own if key != "compute"]
    return f"{note['expanded']} ({', '.join(chosen)})" if chosen else str(note["expanded"])


def cost_of(arm: ComparedArm) -> ProductCost:
    """Of the arm's rules, in a square layer of its model's width, on the tokens of a micro-batch."""
    spec = arm.first.spec
    model, data = (part if isinstance(part, Mapping) else {} for part in (spec.get("model"), spec.get("data")))
    said = (model.get("width"), model.get("context"), data.get("batch_size"))
    sizes = [each for each in said if isinstance(each, int)]
    if len(sizes) < len(said):
        return product_cost(spec)
    width, context, batch = sizes
    return product_cost(spec, float(width), float(context * batch))


def _measured(arm: ComparedArm, monitor: str, quantity: str) -> float:
    """The mean over the arm's runs of the mean over layers or parameters and the last quarter of the steps."""
    each = [value for r in arm.records.values() if math.isfinite(value := final(r, monitor, quantity))]
    return math.fsum(each) / len(each) if each else math.nan


def _table(found: ArmComparison, costs: Mapping[str, ProductCost]) -> Table:
    rows = []
    order = {name: (name != found.reference.name, costs[name].operand, verdict.interval.mean)
             for name, verdict in found.verdict.arms.items()}  # fmt: skip
    for row in sorted(rows_of(found), key=lambda row: order[row["arm"]]):
        arm, cost = found.arms[row["arm"]], costs[row["arm"]]
        recipe = recipe_of(arm.first.spec)
        sqnr = [_measured(arm, "products", f"{product}_sqnr_db") for product in PRODUCTS]
        told = {
            "recipe": row["arm"] if recipe in ("", row["arm"]) else f"{row['arm']}: {recipe}",
            "cast": _share_cast(arm), "stored": bits_text(stored_bits(arm.first.spec)),
            "weight": _bits(cost.weight), "token": _bits(cost.token), "extra operations": operations_text(cost),
            "y": _decibels(sqnr[0]), "dx": _decibels(sqnr[1]), "dW": _decibels(sqnr[2]),
            "cosine": significant(_measured(arm, "shadow", "cosine"), 4),
        }  # fmt: skip
        rows.append({**row, **told})
    names, cells = columns_of(
        rows, "recipe", "difference", "95 % interval", "verdict", "n", "cast", "stored", "weight", "token",
        "extra operations", "y", "dx", "dW", "cosine",
    )  # fmt: skip
    heads = {
        "difference": "loss (nats)", "cast": "parameters cast", "stored": "bits stored", "weight": "bits moved, weight",
        "token": "bits moved, token", "y": "y (dB)", "dx": "dx (dB)", "dW": "dW (dB)", "cosine": "gradient cosine",
    }  # fmt: skip
    note = (
        f"Loss: final validation loss less {found.reference.name}'s, paired by seed; the intervals hold together. "
        "Bits: of a parameter between steps; of an element of a weight, and of what a token brings (inputs and "
        "gradients), each time that a product reads it, with its share of block scales, in layers that are cast. "
        "Extra operations: Hadamard transforms and casts beyond one for each operand, over the multiply-adds of the "
        "three products, in a square layer of this width. dB: signal over error of each product against the same "
        "operands uncast, mean over layers; – where nothing is cast. Cosine: of gradients with and without casts, mean "
        "over parameters. Both over the last quarter of the run."
    )
    if otherwise := {arm.first.spec.get("compute") for arm in found.arms.values() if _computes_otherwise(arm)}:
        note += f" Products ran in {listed(sorted(map(str, otherwise)), 'and')}, where the recipes say another type."
    header = tuple(heads.get(name, name) for name in names)
    numeric = frozenset(
        index
        for index, name in enumerate(names)
        if name not in ("recipe", "95 % interval", "verdict", "extra operations")
    )
    return Table("recipes", f"Recipes compared with {found.reference.name}", header, tuple(cells), numeric, note)


def _computes_otherwise(arm: ComparedArm) -> bool:
    """Whether its runs were made from a recipe, and do not compute as that says."""
    note = arm.first.spec.get("recipe")
    return isinstance(note, Mapping) and "compute" in note.get("without", ())


def _share_cast(arm: ComparedArm) -> str:
    """Of the model's parameters."""
    meta = {} if arm.first.record is None else arm.first.record.meta
    cast, whole = meta.get("quantised_parameters"), meta.get("parameters")
    return f"{cast / whole:.0%}" if isinstance(cast, int) and isinstance(whole, int) and whole else "–"


def _bits(value: float) -> str:
    return f"{value:.4g}"


def _decibels(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def operations_text(cost: ProductCost) -> str:
    """`+12 % (Hadamard 16 in dW, 3 casts)`."""
    short = {"forward": "y", "grad_input": "dx", "grad_weight": "dW"}
    by_size: dict[int, list[str]] = {}
    for product, size in cost.transforms.items():
        by_size.setdefault(size, []).append(short[product])
    words = [f"Hadamard {size} in {', '.join(products)}" for size, products in by_size.items()]
    words += [f"{cost.casts} cast{'s' * (cost.casts > 1)}"] if cost.casts else []
    if not words:
        return "none"
    return ", ".join(words) if math.isnan(cost.extra) else f"+{100 * cost.extra:.2g} % ({', '.join(words)})"


def _plot(found: ArmComparison, costs: Mapping[str, ProductCost]) -> Figure | None:
    """Difference from the reference against bits of an operand; None for fewer than two arms beside it."""
    judged = [
        (arm.name, costs[arm.name].operand, verdict.interval) for arm, verdict in found.judged if verdict.interval.n
    ]
    if len(judged) < 2:
        return None
    limits, outside = frame({name: interval.finite_ends for name, _, interval in judged})
    named = {name for name, _, _ in judged} if len(judged) <= NAMED else _unbeaten(judged)
    places = _side_by_side(judged)
    marks: list[Band | Guide | Dots] = [Band(-MARGIN, MARGIN, "y", "margin"), Guide(0.0, "y", "text", "solid")]
    low = 0.0
    for top, words, tone, symbol in WIDTHS:
        inside = [each for each in judged if low < each[1] <= top]
        low = top
        if inside:
            ends = np.array([interval.finite_ends for _, _, interval in inside]).T
            marks.append(
                Dots(
                    np.array([places[name] for name, _, _ in inside]),
                    np.array([interval.mean for _, _, interval in inside]), words, tone, symbol, ends[0], ends[1],
                    texts=tuple(name if name in named else "" for name, _, _ in inside),
                )
            )  # fmt: skip
    spread = [bits for _, bits, _ in judged]
    ticks = tuple(tick for tick in TICKS if min(spread) / 1.2 <= tick <= max(spread) * 1.2)
    around = (min(spread) / 1.2, max(spread) * 1.2)  # room for names
    x = Axis("bits of an element that enters a product, block scales included", log=True, limits=around, ticks=ticks)
    low, high = limits
    y = Axis(f"final loss − {found.reference.name}'s (nats)", limits=(low, high + (high - low) / 4))
    which = "" if len(named) == len(judged) else " Named are those that no other recipe beats in both."
    intervals = "Intervals are simultaneous, 95 %. " if any(i.n > 1 for _, _, i in judged) else ""
    caption = (
        f"Lower and further left is better; grey is the margin of ± {MARGIN:g} nats around {found.reference.name}. "
        f"{intervals}Recipes of equal bits are set side by side.{which}{outside}"
    )
    return Figure("recipes", "Loss against bits, by recipe", caption, (Axes(x, y, tuple(marks)),), height=420)


def _unbeaten(judged: Sequence[tuple[str, float, Interval]]) -> set[str]:
    """Those for which no other spends fewer bits (or as many) and has a lower mean."""
    return {
        name for name, bits, interval in judged
        if not any(b <= bits and i.mean < interval.mean for other, b, i in judged if other != name)
    }  # fmt: skip


def _side_by_side(judged: Sequence[tuple[str, float, Interval]]) -> dict[str, float]:
    """Where on the axis each stands: those of (nearly) equal bits some way apart, in the order of their loss."""
    groups: dict[int, list[tuple[float, str, float]]] = {}
    for name, bits, interval in judged:
        groups.setdefault(round(math.log(bits) / 0.04), []).append((interval.mean, name, bits))
    found = {}
    for group in groups.values():
        middle = math.exp(sum(math.log(bits) for _, _, bits in group) / len(group))
        step = 1.2 ** (1 / max(len(group) - 1, 8))
        for number, (_, name, _) in enumerate(sorted(group)):
            found[name] = middle * step ** (number - (len(group) - 1) / 2)
    return found


def _missing(found: ArmComparison) -> list[str]:
    """What no run has logged, and what would."""
    cast = [arm for name, arm in found.arms.items() if name != found.reference.name]
    told = []
    if not any(math.isfinite(_measured(arm, "products", "forward_sqnr_db")) for arm in cast):
        told.append("No SQNR of products: the products monitor was off.")
    if not any(math.isfinite(_measured(arm, "shadow", "cosine")) for arm in cast):
        told.append("No gradient cosine: the shadow monitor was off.")
    if not found.reference.kind.is_baseline:
        told.append(f"{found.reference.name} is cast, too, so no recipe is compared with an uncast twin.")
    return told
