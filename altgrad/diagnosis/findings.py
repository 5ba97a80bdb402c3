"""What is wrong with a run: the symptoms in its metrics, the alarms that its monitors raised, and how it ended."""

from dataclasses import dataclass
from typing import Any

from altgrad.store import Run
from altgrad.symptoms import Finding, findings


@dataclass(frozen=True)
class Ailments:
    """status and reason as the run's meta says; alarms: the events of that name, oldest first.

    steps: of how many steps something was logged; monitors: which groups of keys were.
    """

    status: str
    reason: str
    found: list[Finding]
    alarms: list[dict[str, Any]]
    steps: int
    monitors: list[str]


def ailments(run: Run) -> Ailments:
    """Everything the run's files say; ValueError if it is no run or its meta is damaged."""
    meta = run.meta()
    steps: set[int] = set()
    groups: dict[str, None] = {}

    def watched() -> Any:
        for row in run.metrics():
            steps.add(int(row["step"]))
            groups.update(dict.fromkeys(key.partition("/")[0] for key in row if key != "step"))
            yield row

    found = findings(watched())
    alarms = [event for event in run.events() if event.get("event") == "alarm"]
    monitors = [group for group in groups if group not in ("train", "validation", "time")]
    return Ailments(run.status, str(meta.get("reason") or ""), found, alarms, len(steps), monitors)
