"""The table of every metric key, docs/METRICS.md: `altgrad kinds monitor --markdown`.

Everything in it is read from the classes: what a number means and when it alarms from `metrics`, how processes are
reduced from `sums`, `maxima` and `alike`, the sentence from the docstring.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_HEAD = """# Metrics

Printed by `altgrad kinds monitor --markdown`. A key is `<kind>/<site or parameter>/<quantity>`; a site is
`<module>/<operand>` for a cast, and `<parameter>/requested` or `<parameter>/stored` for the optimizer's side of it.
Ratios with an empty denominator are NaN. "Worse" gives the bad direction. Under "alarm" words in backquotes are fields
of the monitor's spec; every alarm is raised once at each site, and the metric tells how it goes on. An alarm is data:
`site`, `quantity`, `value`, `limit`, `phase` (forward, backward, optimizer or training) and `step`, in `watch.alarms`
and, with `monitor` and the sentence (`message`), in events.jsonl.

"Transformer Engine" names the statistic of its debug tools (`LogTensorStats`, `LogFp8TensorStats`) that is nearest, and
how it differs, as of version 2.20.2. What ends in % there is a percentage, not a ratio, and is put together over the
micro-batches and processes of a step for all tensors but weights. In `LogFp8TensorStats` a name may be led by a recipe
(`mxfp8_underflows%`: as if cast so) and followed by `_columnwise`; `LogNvfp4TensorStats` has `underflows%` and `mse`.
Its `mse`, `min`, `max`, `mean`, `std`, `l1_norm` and `max_blockwise_dynamic_range` have no counterpart here.
"""
_COLUMNS = ("quantity", "unit", "meaning", "formula", "worse", "alarm", "Transformer Engine")


def markdown(monitors: Mapping[str, Any], interventions: Mapping[str, Any], log_keys: Iterable[Any]) -> Iterator[str]:
    """The document, line by line. Specs of both families by kind; log_keys: Metrics by whole key."""
    yield from _HEAD.splitlines()
    yield from ("", "## The training loop", "")
    yield from _table(log_keys)
    for kind, spec in monitors.items():
        yield from ("", f"## {kind}", "", (spec.__doc__ or "").partition("\n")[0])
        every = spec.model_fields["every"].default
        yield from ("", f"Every {every} step{'s' * (every > 1)} unless `every` says otherwise. {_ranks(spec)}")
        if spec.metrics:
            yield ""
            yield from _table(spec.metrics)
    for kind, spec in interventions.items():
        if spec.metrics:
            yield from ("", f"## {kind} (an intervention)", "", (spec.__doc__ or "").partition("\n")[0], "")
            yield from _table(spec.metrics)


def _table(metrics: Iterable[Any]) -> Iterator[str]:
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "|" + "---|" * len(_COLUMNS)
    for m in metrics:
        cells = (f"`{m.quantity}`", m.unit, m.meaning, f"`{m.formula}`", m.worse, m.alarm or "-", m.elsewhere or "-")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _ranks(spec: Any) -> str:
    """How results of several processes become one."""
    monitor = spec().build()
    ways = (("added up", monitor.sums), ("maximised", monitor.maxima), ("the same on each", monitor.alike))
    found = [f"{way}: {', '.join(f'`{name}`' for name in names)}" for way, names in ways if names]
    return f"Over processes {'; '.join(found)}." if found else "It looks at what all processes share."
