"""Counterfactual replay: the same step, from the same checkpoint and batch, under other formats and roundings.

The step that comes next is run with casts off (the reference), with the run's own casts, with every product of casts
added up in another accumulator, with every cast of the run in another format or rounding, or by a copy of the model
that has a recipe's casts. Of each: the loss, and the fidelity of the gradient to the reference as a whole
(`altgrad.measures.fidelity`, the sums of all parameters together) and in its worst matrix. Changed casts have no amax
history: a delayed scaling begins with this tensor's amax, as at a run's first step. Products run in the run's own
`compute`. Nothing of the run is changed.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from altgrad.diagnosis.sites import accumulator_as, reformatted, rerounded, specs_as
from altgrad.formats import NumberFormat
from altgrad.measures import fidelity, fidelity_sums
from altgrad.nn import (
    PrecisionPolicy,
    casts_off,
    dequantize_model,
    fresh_gradients,
    quantize_model,
    unrecorded,
)
from altgrad.optim import whole_tensor
from altgrad.progress import progress
from altgrad.quantize.accumulator import AccumulatorSpec
from altgrad.spec.ranking import badness
from altgrad.training.restore import Restored


@dataclass(frozen=True)
class TakenStep:
    """A step's loss, and its gradients by parameter, summed over micro-batches, before clipping."""

    loss: float
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Variant:
    """One way of taking the step. Fidelity is to the reference, over all parameters; worst is of the matrices.

    error: the reason where these casts cannot be made; the numbers are NaN then.
    """

    name: str
    loss: float
    loss_difference: float
    cosine: float
    sqnr_db: float
    bias_coefficient: float
    worst_cosine: float
    worst: str
    error: str = ""


def take_step(restored: Restored, model: nn.Module | None = None) -> TakenStep:
    """The next step of the run as its model now is, without a trace."""
    model = restored.model if model is None else model
    seen: list[float] = []

    def losses() -> Iterator[Tensor]:
        for loss in restored.losses(model):
            yield restored.micro_batches.scaled(loss)
            seen.append(float(loss.detach()))

    with unrecorded(model):
        gradients = {name: whole_tensor(g) for name, g in fresh_gradients(model, losses).items()}
    restored.micro_batches.unscale(gradients.values())
    return TakenStep(sum(seen), gradients)


def variants(
    restored: Restored,
    formats: Sequence[NumberFormat],
    roundings: Sequence[str] = ("stochastic",),
    recipes: Sequence[str] = (),
    accumulators: Sequence[AccumulatorSpec] = (),
) -> list[Variant]:
    """The step uncast, as the run has it, added up in each accumulator, under each rounding, in each format, and by the
    casts of each recipe.

    ValueError for a run that casts nothing, unless recipes are asked for, and for a recipe that casts nothing.
    """
    model = restored.model
    policies = {name: PrecisionPolicy.made_from(name) for name in recipes}
    if not policies and not any(True for module in model.modules() if hasattr(module, "slot_casts")):
        raise ValueError(f"{restored.run.id} casts nothing, so no step of it can be taken otherwise; name another run.")
    progress("replaying the step")
    with casts_off(model):
        reference = take_step(restored)
    found = [_variant("casts off", reference, reference), _variant("as the run", take_step(restored), reference)]
    seed = restored.spec.bits_seed
    changes = {f"accumulator: {how.text}": accumulator_as(model, how) for how in accumulators}
    changes |= {f"rounding: {name}": specs_as(model, rerounded(name), seed=seed) for name in roundings}
    changes |= {f"all {fmt}": specs_as(model, reformatted(fmt), seed=seed) for fmt in formats}
    for number, (name, change) in enumerate(changes.items()):
        progress("replaying the step", number, len(changes))
        with ExitStack() as stack:
            try:
                stack.enter_context(change)
            except ValueError as error:
                found.append(_impossible(name, error))
                continue
            found.append(_variant(name, take_step(restored), reference))
    for number, (name, policy) in enumerate(policies.items()):
        progress("replaying the step", len(changes) + number, len(changes) + len(policies))
        try:
            other = quantize_model(dequantize_model(copy.deepcopy(model)), policy, seed=restored.spec.bits_seed)
        except ValueError as error:
            found.append(_impossible(name, error))
            continue
        found.append(_variant(name, take_step(restored, other), reference))
    return found


def _impossible(name: str, error: ValueError) -> Variant:
    nan = float("nan")
    return Variant(name, nan, nan, nan, nan, nan, nan, "", str(error))


def _variant(name: str, taken: TakenStep, reference: TakenStep) -> Variant:
    pooled: dict[str, Tensor] = {}
    cosines = {}
    for key, gradient in reference.gradients.items():
        sums = fidelity_sums(taken.gradients[key], gradient)
        pooled = {part: value + pooled[part] if pooled else value for part, value in sums.items()}
        # Of a gradient of zeros there is no direction to keep: its NaN is that of 0/0. Any other NaN is the worst.
        if gradient.ndim > 1 and bool(gradient.any()):
            cosines[key] = float(fidelity(sums)["cosine"])
    whole = {key: float(value) for key, value in fidelity(pooled).items()}
    worst = max(cosines, key=lambda key: badness(cosines[key], "lower"), default="")
    return Variant(
        name, taken.loss, taken.loss - reference.loss, whole["cosine"], whole["sqnr_db"], whole["bias_coefficient"],
        cosines.get(worst, float("nan")), worst,
    )  # fmt: skip
