"""What a run is, as the columns of a table: the parts of its arm, its rate and seed, and how it ended."""

from typing import Any

from altgrad.reports.reading import RunRecord

COLUMNS = ("run", "format", "storage", "casts", "optimizer", "variant", "frozen", "lr", "seed", "status", "diverged")


def facts(record: RunRecord) -> tuple[Any, ...]:
    """A run's values of COLUMNS."""
    arm = record.arm
    return (
        record.id, arm.format, arm.storage, arm.casts, arm.optimizer, arm.variant, arm.frozen, record.rate, record.seed,
        record.status, record.diverged,
    )  # fmt: skip
