"""The twin of a run: another run of the store that saw the same data in the same order, in float32 or bfloat16.

    twin/train_loss_difference         loss - the twin's, at the same step
    twin/validation_loss_difference    the same of the validation split

are logged as numbers of the run, so that everything that reads metrics can plot and test them; the monitor `rank`
compares its ranks with the twin's in the same way. A difference only means something if the data agree, so what decides
their order is compared first: the seed, the data spec, the context, `accumulate`, `evaluate_limit`, and, where both
runs noted it, the content of the source. A twin must be completed, since a run that is resumed has to find the same
numbers again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from altgrad.data.dataset import Dataset
from altgrad.monitors import Metric
from altgrad.spec import SpecError
from altgrad.store import Run, RunStore
from altgrad.training.run import RunSpec

COMPARED = {"train/loss": "twin/train_loss_difference", "validation/loss": "twin/validation_loss_difference"}
TWIN_KEYS = tuple(
    Metric(key, "nats", f"{source} less the twin's at the same step", "loss - loss of the twin", "higher")
    for source, key in COMPARED.items()
)


@dataclass(frozen=True)
class Twin:
    """A completed run, with its losses by key and step."""

    run: Run
    losses: Mapping[tuple[str, int], float]

    def differences(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """What of these numbers the twin has, too, at this step, as differences."""
        return {
            COMPARED[key]: value - self.losses[key, step]
            for key, value in values.items()
            if key in COMPARED and (key, step) in self.losses
        }

    def rows(self, keys: Iterable[str]) -> Iterator[Mapping[str, float]]:
        """Rows of its metrics, reduced to these keys (names or patterns)."""
        return self.run.metrics(keys)


def find_twin(spec: RunSpec, store: RunStore, dataset: Dataset) -> Twin | None:
    """The twin that a spec names by path or id; None if it names none. ValueError, in one line, if it cannot serve."""
    if spec.twin is None:
        return None
    try:
        run = store.find(spec.twin)
        theirs = RunSpec.parse(run.spec_text(), run.id)
    except (ValueError, SpecError) as error:
        raise ValueError(f"twin {error}") from None
    if run.status != "completed":
        raise ValueError(f"twin {run.id} is {run.status}; a twin is a completed run.")
    casts = any(policy.rules for policy in theirs.precision.policies)
    if casts or any(storage.kind != "master" for storage in theirs.storage):
        where = "precision" if casts else "storage"
        raise ValueError(f"twin {run.id} is quantised itself ({where}); name its float32 or bfloat16 counterpart.")
    ours, others = _order(spec, dataset.describe()), _order(theirs, run.meta().get("data"))
    for key in [*ours, *others]:
        # Runs that others made need not have noted what their source was.
        if ours.get(key) != others.get(key) and not (key.startswith("source ") and key not in others):
            raise ValueError(
                f"twin {run.id} has another data order: {key} is {others.get(key)} there and {ours.get(key)} here."
            )
    return _read(run)


def _read(run: Run) -> Twin:
    losses = {
        (key, int(row["step"])): value for row in run.metrics(COMPARED) for key, value in row.items() if key != "step"
    }
    return Twin(run, losses)


def _order(spec: RunSpec, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything that the order of the data depends on, by its place in the spec."""
    found: dict[str, Any] = {"seed": spec.seed, "accumulate": spec.accumulate, "model.context": spec.model.context}
    found |= {"evaluate_limit": spec.evaluate_limit}
    found |= dict(_leaves("data", spec.data.tree()))
    return found | {f"source {key}": value for key, value in (source or {}).items()}


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(f"{place}.{key}", item)
    else:
        yield place, value
