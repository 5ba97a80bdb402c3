"""What `altgrad train --dry-run` shows: the table of casts, and what the run takes."""

from typing import Any

from altgrad.cli import console


def show(casts: list[dict[str, Any]], stored: dict[str, str], facts: dict[str, Any], place: str) -> None:
    """Draw it. casts: as `Prepared.casts` gives them. stored: parameters on a grid. facts: those of --json."""
    header = ["layer", "forward: input", "weight", "grad_input: grad_output", "weight", "grad_weight: grad_output"]
    header += ["input", "storage", "decided by"]
    console.table(header, [[row["layer"], *row["slots"].values(), row["storage"], row["rule"]] for row in casts])
    for name in sorted(stored.keys() - {row["weight"] for row in casts}):
        console.say(f"{name} is stored {stored[name]}")
    parameters, quantised, found = facts["parameters"], facts["quantised_parameters"], facts["estimate"]
    console.say(
        f"{parameters:,} parameters, {quantised:,} of them ({quantised / parameters:.1%}) are quantised; {place}"
    )
    console.say(
        f"a step: {found['flops_per_step']:.3g} FLOPs over {found['tokens_per_step']:,} tokens, backward assumed to "
        "cost 2 x forward"
    )
    parts = ("weights", "gradients", "storage", "optimizer", "casts", "monitors")
    kept = ", ".join(f"{part} {in_bytes(found[part])}" for part in parts)
    console.say(f"bytes: {kept}; together {in_bytes(found['total'])}, and activations")
    if found["codes"]:
        console.say(f"stored weights as codes: {in_bytes(found['codes'])}")


def in_bytes(count: int) -> str:
    """A number of bytes with three figures and a decimal prefix: `28.2 GB`, `312 B`."""
    shown = console.count(count)
    return f"{shown} B" if shown[-1].isdigit() else f"{shown[:-1]} {shown[-1]}B"
