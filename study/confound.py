"""What the first edition's clipping did to B: under its fixed scale with one binade of headroom, under a tracked one.

p = 1, kappa = 2^-6, by pairs. The plan's table has the tracked half at the screen's lr*. Beside it the tracked half is
at fixed rates (`study.verdicts`), on the seeds after the first stage: the screen had put AdamW's lr* in e3m4f and e4m3f
where other seeds are beyond the cliff, so that the plan's differences are those of rates, too.
"""

from altgrad.numerals import signed
from altgrad.statistics.intervals import simultaneous
from study import confirmed, parts, rows
from study.cell import cell_of
from study.pairs import difference, interval_cells, mean
from study.second_tables import Lines, Second, place, table

BySeed = dict[int, float]
DEFAULT = "p = 1, kappa = 2^-6"
Sides = dict[str, tuple[BySeed, BySeed]]
"""By format: B by seed under a fixed scale, and under a tracked one."""


def sides(study: Second) -> Sides:
    """As the plan has them. Waiting as `parts.confound`."""
    found: dict[tuple[str, str, str], BySeed] = {}
    for spec in (each.spec for each in parts.confound(study.frame)):
        rule = spec.storage[0].tree()
        key = rule["format"], spec.optimizer.kind, str(rule.get("scale", "fixed"))
        found[key] = rows.losses(study.frame, cell_of(spec), spec.optimizer.lr, parts.CONFIRM)
    b = {
        (name, scale): difference(found[name, "adamw", scale], found[name, "manifold_adamw", scale])
        for name in parts.CONFOUND for scale in ("fixed", "tracked")
    }  # fmt: skip
    return {name: (b[name, "fixed"], b[name, "tracked"]) for name in parts.CONFOUND}


def at_fixed_rates(study: Second) -> Sides:
    """The tracked half at rates that the first stage chose, on the seeds after it."""
    after = set(parts.CONFIRM[confirmed.FIRST_STAGE :])
    tracked = {name: pairs.by_seed for (name, cell), pairs in study.fixed.items() if place(cell) == DEFAULT}
    clipped = {name: {s: b for s, b in fixed.items() if s in after} for name, (fixed, _) in sides(study).items()}
    return {name: (clipped[name], tracked.get(name, {})) for name in parts.CONFOUND}


def confound(study: Second, *, fixed_rates: bool = False) -> Lines:
    """B under a fixed scale less B under a tracked one, by format, over one family."""
    try:
        found = at_fixed_rates(study) if fixed_rates else sides(study)
    except parts.Waiting as reason:
        return [f"Waits for {reason}."]
    takes = len(parts.CONFIRM) - fixed_rates * confirmed.FIRST_STAGE
    body = []
    for name, one in simultaneous({name: difference(*b) for name, b in found.items()}).items():
        fixed, free = map(mean, found[name])
        body.append([name, signed(fixed), signed(free), *interval_cells(one), f"{one.n} of {takes}"])
    return table(["stored in", "B, fixed", "B, tracked", "difference", "95 % interval", "pairs"], body)
