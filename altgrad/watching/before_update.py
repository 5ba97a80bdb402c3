"""BeforeUpdate: what a step's monitors measured before the update, and their word on whether it may be applied.

Both stay on the device until somebody reads. The word is one bool there, `applies`: whoever can take it as a mask need
not wait for the host, which then hears of a bad step after it was left out. Explaining such a step runs it again, and
by then it may have been committed; so what a commit changes is kept until then.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from altgrad.monitors.monitor import GradientMonitor, Replay, Report, Values
from altgrad.nn import unrecorded
from altgrad.quantize.counted import Counted
from altgrad.watching.compiled_pass import Seen, share_out


class BeforeUpdate:
    """The loss, the gradient norm and what these monitors measured of the gradients, by parameter.

    casts: the tables of casts so far, where anyone asks. replay: the step to run again, if it can be. applies: None
    where nobody may have the update left out. decided: whether it has the word of all who may; else read first.
    """

    def __init__(
        self, monitors: Mapping[str, GradientMonitor], loss: Tensor, norm: Tensor, seen: Mapping[str, Seen],
        casts: Sequence[Tensor], replay: Replay | None,
    ) -> None:  # fmt: skip
        self.monitors, self.seen, self.replay = monitors, seen, replay
        self.casts = len(casts)
        words = [m.applies(loss, found) for m, found in zip(monitors.values(), self._columns(), strict=True)]
        self.decided = all(word is not None for word in words)
        masks = [word for word in words if isinstance(word, Tensor)]
        self.applies = torch.stack(masks).all() if masks else None
        word = torch.ones_like(loss) if self.applies is None else self.applies.to(loss)
        self.tensors = [torch.stack([loss, norm.to(loss), word]), *casts, *(found for found, _ in seen.values())]
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self, sites: Iterable[Counted]) -> None:
        """These are about to be committed."""
        if self.replay is not None:
            self._kept = _copies(buffer for site in sites for buffer in site.buffers(recurse=False))

    def read(
        self, lists: Sequence[Sequence[float]], casts: Mapping[str, Mapping[str, Values]]
    ) -> tuple[float, float, dict[str, Report]]:
        """Loss, norm and reports, from `tensors` as they were fetched. casts: by kind and site.

        RuntimeError where monitors say by `skip` what they did not say by `applies`.
        """
        loss, norm, word = lists[0]
        results: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in self.monitors}
        share_out(results, self.seen, lists[1 + self.casts :])
        reports = {kind: m.report_all(loss, results[kind], casts.get(kind, {})) for kind, m in self.monitors.items()}
        skipped = [kind for kind, report in reports.items() if report.skip]
        if self.decided and bool(word) == bool(skipped):
            raise RuntimeError(
                f"step skipped by {skipped or 'none'}, where `applies` of {list(self.monitors)} said otherwise"
            )
        if skipped and self.replay is not None:
            committed = _copies(buffer for buffer, _ in self._kept)
            _put(self._kept)
            with run_again(self.replay.model):
                for kind in skipped:
                    reports[kind] = self.monitors[kind].explain(reports[kind], self.replay)
            _put(committed)
        return loss, norm, reports

    def _columns(self) -> list[dict[str, Tensor]]:
        """What each monitor measured, [parameters] by name."""
        places: dict[str, dict[str, list[int]]] = {kind: {} for kind in self.monitors}
        for number, (kind, _, name) in enumerate(key for _, keys in self.seen.values() for key in keys):
            places[kind].setdefault(name, []).append(number)
        flat = torch.cat([found for found, _ in self.seen.values()]) if self.seen else None
        return [{} if flat is None else {name: flat[at] for name, at in names.items()} for names in places.values()]


@contextmanager
def run_again(model: nn.Module) -> Iterator[None]:
    """Around running a step again: it leaves no trace."""
    devices = [p.device for p in (next(model.parameters()),) if p.device.type == "cuda"]
    with torch.random.fork_rng(devices), unrecorded(model):
        yield


def _copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(tensor, tensor.clone()) for tensor in tensors]


@torch.no_grad()
def _put(kept: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Bring tensors back to what they were."""
    for tensor, before in kept:
        tensor.copy_(before)
