"""Runs whose parameters are sharded: each process keeps its part of weights, gradients and optimizer states (FSDP2).

    torchrun --nproc-per-node 2 --no-python altgrad train spec.yaml --shard

That is where a run happens, as the number of processes is, and not what it is: meta.json says so and the spec does not.
Torch's `fully_shard` is put around every repeated block and around the model. A block's weights are whole while it
runs, forward and backward, so layers and casts see what they see on one process; backward adds gradients up over the
processes, micro-batch by micro-batch, and leaves each process its part of the sum.

    the optimizer     steps parts where it works by element, and gathered tensors else (`altgrad.optim.stand_ins`)
    the norm          is that of whole gradients, gathered one by one: of parts it would have other last bits, and
                      clipping by it would carry them into every weight
    monitors          gather a weight or a gradient when they are due
    checkpoints       hold whole tensors, so a run goes on with another number of processes, and without --shard

What needs a process's own gradients, or one graph of the model, is refused before anything starts.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from altgrad.monitors import MicroMonitor
from altgrad.nn import Processes
from altgrad.optim import is_sharded, own_part, whole_tensor
from altgrad.spec import LocatedError
from altgrad.training.gradient_sums import GradientCasts
from altgrad.training.regions import blocks_of
from altgrad.training.run import RunSpec


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Share the parameters of a model out over all processes, in place, on their devices; returns it.

    Every process gives the same whole model.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (Processes.present().size,))
    for module in [*blocks_of(model, plain=True), model]:
        # Of the model, too: whoever looks at parameters between two passes finds them sharded.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for each in model.modules():
        if isinstance(each, FSDPModule):
            each.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            each.set_gradient_divide_factor(1.0)  # a micro-batch's loss is its share of the step's already
    return model.to(device)


def holds_shards(model: nn.Module) -> bool:
    """Whether the model's parameters are sharded."""
    return any(map(is_sharded, model.parameters()))


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all of them; of sharded ones the bits that whole ones have."""
    if not any(map(is_sharded, gradients)):
        return torch.nn.utils.get_total_norm(gradients)
    norms = [torch.nn.utils.get_total_norm([whole_tensor(g)]) for g in gradients]
    return torch.nn.utils.get_total_norm(norms)


def clip_gradients(parameters: Iterable[Tensor], most: float, norm: Tensor) -> None:
    """Scale gradients, in place, so that their norm, which is known, is at most this."""
    given = list(parameters)
    if not any(map(is_sharded, given)):
        torch.nn.utils.clip_grads_with_norm_(given, most, norm)
        return
    parts = [own_part(p) for p in given]
    for part, p in zip(parts, given, strict=True):
        part.grad = None if p.grad is None else own_part(p.grad)
    torch.nn.utils.clip_grads_with_norm_(parts, most, norm)


def check_sharding(spec: RunSpec, processes: Processes, models: Sequence[nn.Module]) -> None:
    """Refuse, in one line, what cannot be trained sharded: ValueError for --shard, LocatedError for parts of the spec.

    spec: the resolved one. models: as the spec builds them, one for each phase, on any device.
    """
    if processes.size == 1:
        raise ValueError(
            "--shard shares a model out over processes, and there is 1; start several, as with torchrun "
            "--nproc-per-node 2, or leave it out."
        )
    for number, monitor in enumerate(spec.monitors):
        if issubclass(monitor.product(), MicroMonitor):
            raise LocatedError(
                ("monitors", number),
                f"{monitor.kind} needs each micro-batch's own gradient, and --shard adds them up over processes as "
                "they are made; leave the monitor out, or train without --shard.",
            )
    if spec.interventions:
        raise LocatedError(
            ("interventions", 0),
            f"{spec.interventions[0].kind} changes whole weights or gradients, of which a process has a part under "
            "--shard; leave it out, or train without --shard.",
        )
    if spec.gradients != GradientCasts():
        raise LocatedError(
            ("gradients",),
            "gradients are cast before they are added up, and --shard adds them up over processes as they are made; "
            "leave the casts out, or train without --shard.",
        )
    if spec.compile == "model":
        raise LocatedError(
            ("compile",),
            "compile: model is one graph, and --shard gathers weights block by block; use compile: blocks, or train "
            "without --shard.",
        )
    for model in models:
        _check_parameters(model)


def _check_parameters(model: nn.Module) -> None:
    blocks = blocks_of(model, plain=True)
    within = {module for block in blocks for module in block.modules()}
    outside = [p for m in model.modules() if m not in within for p in m.parameters(recurse=False)]
    uses = Counter(p for of_group in ([*b.parameters()] for b in blocks) for p in of_group) + Counter(set(outside))
    for name, p in model.named_parameters():
        if p.ndim == 0 or uses[p] > 1:
            why = "is a single number" if p.ndim == 0 else "is shared between blocks"
            raise LocatedError(("model",), f"{name} {why}, which --shard cannot cut; train without --shard.")
