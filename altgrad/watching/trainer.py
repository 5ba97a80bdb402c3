"""watch_trainer(): monitors on a Hugging Face Trainer.

What `altgrad.watch` is to a loop of one's own, this is to Trainer: a TrainerCallback around the same LoopWatch. After
every optimizer step it commits the model's quantizers (delayed scales, random bits), hands the step's numbers to
`trainer.log`, so that they reach `trainer.state.log_history` and every reporter, and writes what the monitors remember
into the checkpoints that Trainer saves.

A callback is told neither the batch nor when gradients are about to be clipped, and monitors need both: a shadow step
runs the batch again, and a norm after clipping is the threshold. So while `train` runs two public methods of this one
trainer are wrapped and put back at its end: `compute_loss`, whose calls can thus be made again with the same inputs and
random numbers, whatever loss it computes, and `accelerator.clip_grad_norm_`, before which gradients are looked at. What
a micro-batch's loss counts for in the step is not asked of Trainer's bookkeeping, it is the gradient that reaches it.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from altgrad.models.huggingface import library
from altgrad.monitors import MonitorSpec
from altgrad.nn import commit
from altgrad.watching.loop import LoopWatch, monitor_specs, watch

LOGGER = logging.getLogger("altgrad")
RECORD, TENSORS = "altgrad_watch.json", "altgrad_watch.safetensors"


def watch_trainer(
    trainer: Any,
    monitors: Iterable[MonitorSpec | Mapping[str, Any] | str] = ("range", "finite"),
    *,
    log: Sequence[str] = ("*",),
) -> "WatchCallback":
    """Watch a transformers Trainer's model, quantised or plain, and commit its quantizers; call it before `train`.

    monitors: as for `altgrad.watch`. log: patterns of the keys that go to `trainer.log`; all of them are in `.watch`.
    Alarms are warnings of the logger `altgrad` and entries `{"step", "epoch", "alarm"}` of the log history, notices its
    infos and entries; where `finite` would end a run, training is told to stop. Numbers are one process's own.

    Checkpoints hold the monitors' state. To resume it is looked for where Trainer saves (`output_dir`), else in
    `args.resume_from_checkpoint`. With `fp16` on a GPU gradients are seen after clipping, since only then unscaled.

    SpecError for monitors that do not exist, ValueError for one named twice, and for DeepSpeed, FSDP and several GPUs
    in one process; a twin that is no run is a ValueError when training begins. ModuleNotFoundError without
    transformers.
    """
    base = library().TrainerCallback
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.args.n_gpu > 1:
        raise ValueError("this trainer splits or replicates the model; monitors look at whole ones: one GPU a process.")
    # The base is only known here: transformers is not loaded for the sake of a class.
    kind = type("WatchCallback", (WatchCallback, base), {})
    callback: WatchCallback = kind(trainer, monitor_specs(monitors), tuple(log))
    trainer.add_callback(callback)
    return callback


@dataclass
class _MicroBatch:
    """A call of compute_loss, as it can be made again. weight: what its loss counts for in the step's."""

    inputs: Mapping[str, Any]
    given: tuple[Any, ...]
    named: Mapping[str, Any]
    random: tuple[Tensor, ...]
    weight: list[Tensor] = field(default_factory=list)


class WatchCallback:
    """What `watch_trainer` adds. watch: the LoopWatch of the last `train`, with the last step's numbers and alarms."""

    def __init__(self, trainer: Any, monitors: Sequence[MonitorSpec], log: Sequence[str]) -> None:
        self.trainer, self.monitors, self.log = trainer, monitors, log
        self.watch: LoopWatch | None = None
        self._seen = 0
        self._batches: list[_MicroBatch] = []
        self._undo: list[Callable[[], None]] = []
        self._compute: Callable[..., Any] = trainer.compute_loss
        self._clip: Callable[..., Any] = trainer.accelerator.clip_grad_norm_

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Wire the monitors; after a checkpoint, with what they remembered."""
        self.close()
        optimizer = self.trainer.optimizer
        while hasattr(optimizer, "optimizer"):  # accelerate's shell
            optimizer = optimizer.optimizer
        loader = given.get("train_dataloader")
        epoch = -(-len(loader) // args.gradient_accumulation_steps) if isinstance(loader, Sized) else None
        self.watch = watch(self.trainer.model, optimizer, self.monitors, replay=self._again, epoch=epoch)
        self._compute = self._wrap(self.trainer, "compute_loss", self._compute_loss)
        self._clip = self._wrap(self.trainer.accelerator, "clip_grad_norm_", self._look_and_clip)
        if state.global_step:
            self._resume(self.watch, args, state)
        self._seen = self.watch.step

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Forget the last step's batches."""
        self._batches.clear()

    def on_substep_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A micro-batch is done, and not the step's last."""
        if self.watch is not None:
            self.watch.own.end()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Close the step's scales and random bits, and log what was seen of it."""
        commit(self.trainer.model)
        if self.watch is None or self.watch.step == self._seen:
            return  # a loss scaler left the step out
        self._seen = self.watch.step
        found = self.watch.metrics.items()
        metrics = {key: value for key, value in found if any(fnmatchcase(key, pattern) for pattern in self.log)}
        if metrics:
            due = control.should_log
            self.trainer.log(metrics)
            control.should_log = due  # `log` takes it back, and Trainer's own numbers would not be logged
        lines = [("alarm", str(alarm)) for alarm in self.watch.alarms] + [
            ("notice", line) for line in self.watch.notices
        ]
        if self.watch.stop:
            lines.append(("alarm", f"training stops: {self.watch.stop}"))
            control.should_training_stop = True
        for kind, line in lines:
            state.log_history.append({"step": state.global_step, "epoch": state.epoch, kind: line})
            if state.is_world_process_zero:
                LOGGER.log(logging.WARNING if kind == "alarm" else logging.INFO, "step %d: %s", state.global_step, line)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write what the monitors remember beside Trainer's own files."""
        folder = _checkpoint(args, state)
        if self.watch is None or not state.is_world_process_zero or not folder.is_dir():
            return
        kept = self.watch.state_dict()
        each = [(kind, key, value) for kind, held in kept["monitors"].items() for key, value in held.items()]
        tensors = {f"{kind}/{key}": value for kind, key, value in each if isinstance(value, Tensor)}
        plain: dict[str, dict[str, Any]] = {kind: {} for kind in kept["monitors"]}
        for kind, key, value in each:
            if not isinstance(value, Tensor):
                plain[kind][key] = value
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / TENSORS)
        (folder / RECORD).write_text(json.dumps({"step": kept["step"], "monitors": plain}))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Stop watching; the last numbers stay in `watch`."""
        self.close()

    def _resume(self, watch: LoopWatch, args: Any, state: Any) -> None:
        places = [_checkpoint(args, state), *(Path(p) for p in (args.resume_from_checkpoint,) if isinstance(p, str))]
        folder = next((place for place in places if (place / RECORD).is_file()), None)
        if folder is None:
            LOGGER.warning("%s has no %s; the monitors start over.", places[-1], RECORD)
            watch.load_state_dict({"step": state.global_step, "monitors": {}})
            return
        kept = json.loads((folder / RECORD).read_text())
        for key, tensor in load_file(folder / TENSORS).items():
            kind, _, name = key.partition("/")
            kept["monitors"][kind][name] = tensor.to(self._device)
        watch.load_state_dict(kept)

    def close(self) -> None:
        """Take away all that was added. The end of `train` does it, and the next `train` after one that broke off."""
        self._batches.clear()
        while self._undo:
            self._undo.pop()()
        if self.watch is not None and not self.watch.closed:
            self.watch.close()

    def _wrap(self, owner: Any, name: str, replacement: Callable[..., Any]) -> Callable[..., Any]:
        """Replace a method of this one object until `close`; gives the original."""
        original: Callable[..., Any] = getattr(owner, name)
        own = name in vars(owner)
        setattr(owner, name, replacement)
        self._undo.append(lambda: setattr(owner, name, original) if own else delattr(owner, name))
        return original

    def _compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        if not (torch.is_grad_enabled() and model.training):
            return self._compute(model, inputs, *given, **named)
        # A copy, since some losses take the labels out of their inputs.
        batch = _MicroBatch(dict(inputs), given, named, self._random())
        found = self._compute(model, inputs, *given, **named)
        loss = found[0] if isinstance(found, tuple) else found
        loss.register_hook(batch.weight.append)
        self._batches.append(batch)
        return found

    def _look_and_clip(self, parameters: Any, *given: Any, **named: Any) -> Any:
        if self.watch is not None and not self.watch.looked and self.trainer.accelerator.scaler is None:
            self.watch.look()
        return self._clip(parameters, *given, **named)

    def _again(self) -> Iterator[Tensor]:
        """The step's losses once more, each with its weight; the caller puts the random numbers back."""
        scaler = self.trainer.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        for batch in self._batches:
            torch.set_rng_state(batch.random[0])
            for of_device in batch.random[1:]:
                torch.cuda.set_rng_state(of_device, self._device)
            with self.trainer.compute_loss_context_manager():
                found = self._compute(self.trainer.model, dict(batch.inputs), *batch.given, **batch.named)
            loss = found[0] if isinstance(found, tuple) else found
            yield loss * (batch.weight[0] / scale)

    @property
    def _device(self) -> torch.device:
        first: Tensor = next(self.trainer.model.parameters())
        return first.device

    def _random(self) -> tuple[Tensor, ...]:
        state = torch.get_rng_state()
        return (state, torch.cuda.get_rng_state(self._device)) if self._device.type == "cuda" else (state,)


def _checkpoint(args: Any, state: Any) -> Path:
    """Where Trainer saves this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
