"""A policy that was written for a target, as data and as a page. `facts` is what `altgrad policy --json` prints."""

from dataclasses import dataclass
from typing import Any

from altgrad.conversion.policies.policy_target import Expressible, PolicyTarget
from altgrad.display import Line, html_lines, table_lines
from altgrad.nn.slots import SLOTS

__all__ = ["PolicyReport"]


@dataclass(frozen=True, repr=False)
class PolicyReport:
    """text: the file. model: of whose layers the decisions are; None: of the spec's own, or of rules."""

    policy: str
    target: PolicyTarget
    model: str | None
    expressible: Expressible
    text: str
    out: str | None

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as plain data."""
        rows, choices = [], self.expressible.choices
        for choice in choices:
            decided, casts = choice.decided, choice.decided.casts
            slots = {} if casts is None else {".".join(slot): casts.text(slot) for slot in SLOTS}
            key = self.expressible.key(choice)
            rows.append({self._unit: decided.name, "rule": decided.rule, "takes": key, "slots": slots})
        return {
            "policy": self.policy, "to": self.target.name, "model": self.model,
            "verified": self.target.verified(choices),
            "proved_with": self.target.proved or None, "page": self.target.page,
            "objects": {key: made for made, key in self.expressible.keys.items()}, f"{self._unit}s": rows,
            "notes": self.target.notes(choices), "out": self.out, "text": self.text,
        }  # fmt: skip

    def page(self, width: int | None = None) -> list[Line]:
        """What becomes of each layer, and what a reader should know."""
        choices = self.expressible.choices
        rows = [
            [
                choice.decided.name, self.expressible.key(choice) or "-",
                "-" if choice.decided.rule is None else str(choice.decided.rule),
            ]
            for choice in choices
        ]  # fmt: skip
        notes = [self.target.standing(choices), *self.target.notes(choices)]
        written = [] if self.out is None else [f"written to {self.out}"]
        return [
            *table_lines("", [self._unit, "takes", "rule"], rows, width), Line.of(""),
            *(Line.of(line) for line in [*notes, *written]),
        ]  # fmt: skip

    @property
    def _unit(self) -> str:
        return "rule" if self.expressible.blocks is None else "layer"

    def __repr__(self) -> str:
        return "\n".join(line.text.rstrip() for line in self.page())

    def _repr_html_(self) -> str:
        return html_lines(self.page())
