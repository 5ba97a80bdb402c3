"""Claims about altgrad.watch in Lightning's Trainer, whose optimizers always step with a closure.

Skipped where pytorch-lightning is not installed; nothing in the package imports it. It takes seconds to import, and so
is not while tests are collected.
"""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad

pytestmark = [
    pytest.mark.skipif(find_spec("pytorch_lightning") is None, reason="pytorch-lightning is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of Lightning itself
]

CAST = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}
KINDS = ("range", "amax", "finite", "gradient", "updates", "flips", "gsnr", "shadow")
ROWS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    return altgrad.quantize_model(net, altgrad.PrecisionPolicy.uniform(weight=CAST, input=CAST, grad_output=CAST))


def metrics_by_hand(accumulate: int, clip: float | None, steps: int) -> tuple[list[dict[str, float]], nn.Module]:
    """The same training as a plain loop, watched."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    batches = iter(ROWS.split(4))
    taken: list[Tensor] = []
    kinds = [{"kind": kind, "every": 1} for kind in KINDS]
    watch = altgrad.watch(net, optimizer, kinds, replay=lambda: (net(x).square().mean() / accumulate for x in taken))
    seen = []
    for _ in range(steps):
        taken = [next(batches) for _ in range(accumulate)]
        for x in taken:
            (net(x).square().mean() / accumulate).backward()
        if clip is not None:
            watch.look()
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        altgrad.commit(net)
        seen.append(dict(watch.metrics))
    return seen, net


def module(accumulate: int, *, commits: bool = True, lbfgs: bool = False) -> Any:
    import pytorch_lightning as lightning

    class Watched(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.seen: list[dict[str, float]] = []
            self.taken: list[Tensor] = []

        def configure_optimizers(self) -> torch.optim.Optimizer:
            kind: Any = torch.optim.LBFGS if lbfgs else torch.optim.AdamW
            return kind(self.net.parameters(), lr=1e-2)  # type: ignore[no-any-return]

        def on_fit_start(self) -> None:
            kinds = [{"kind": kind, "every": 1} for kind in KINDS]
            optimizer = self.optimizers().optimizer
            self.watch = altgrad.watch(self.net, optimizer, kinds, replay=self.again)

        def again(self) -> Iterator[Tensor]:
            return (self.net(x).square().mean() / accumulate for x in self.taken)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.gradient_clip_val is not None:
                self.watch.look()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            if index % accumulate == 0 and (not self.taken or self.taken[-1] is not batch):
                self.taken = []
            if not self.taken or self.taken[-1] is not batch:
                self.taken.append(batch)
            loss: Tensor = self.net(batch).square().mean()
            return loss

        def on_train_batch_end(self, *given: Any) -> None:
            if self.watch.step > len(self.seen):
                if commits:
                    altgrad.commit(self.net)
                self.seen.append(dict(self.watch.metrics))

    return Watched()


def fit(one: Any, folder: Path, **settings: Any) -> None:
    loader = torch.utils.data.DataLoader(ROWS, batch_size=4)  # type: ignore[arg-type, var-annotated]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    import pytorch_lightning as lightning

    trainer = lightning.Trainer(
        **quiet, enable_model_summary=False, default_root_dir=folder, max_epochs=1, **settings,
    )  # fmt: skip
    trainer.fit(one, loader)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (4, None), (4, 0.01)])
def test_lightning_is_watched_as_the_same_loop_written_out(tmp_path: Path, accumulate: int, clip: float | None) -> None:
    one = module(accumulate)
    fit(one, tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=clip, max_steps=3)
    expected, net = metrics_by_hand(accumulate, clip, 3)
    for name, p in net.named_parameters():
        assert torch.equal(p, one.net.get_parameter(name))
    assert len(one.seen) == 3
    for own, other in zip(one.seen, expected, strict=True):
        assert own.keys() == other.keys() and {key.partition("/")[0] for key in own} == set(KINDS) - {"finite"}
        assert [k for k in own if own[k] != pytest.approx(other[k], rel=1e-6, nan_ok=True)] == []


def test_a_line_search_in_lightning_is_one_step(tmp_path: Path) -> None:
    one = module(1, lbfgs=True)
    fit(one, tmp_path, max_steps=2)
    counters = {int(buffer) >> 16 for name, buffer in one.net.named_buffers() if name.endswith("counter")}
    assert one.watch.step == 2 and counters == {2} and one.seen[1]["range/0/input/amax"] == float(ROWS[4:8].abs().max())


def test_a_module_that_never_commits_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "altgrad"):
        fit(module(1, commits=False), tmp_path, max_steps=3)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "altgrad"]
    assert line.startswith("altgrad.commit(model) was never called")
