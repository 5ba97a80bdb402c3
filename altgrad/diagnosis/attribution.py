"""Error attribution by cast: what each site adds to the loss and to the gradient's error, from five passes in all.

Write eps_i for the error Q(x) - x that site i makes in this step, G for the gradient under all casts, R without any,
and e = G - R. Two numbers for each site, both of first order in eps_i:

    loss      <dL / dx_i, eps_i>         what the site adds to the step's loss
    share     <e, J_i eps_i> / |e|^2     its part of the gradient's error; over all sites these add up to 1

with J_i eps_i the change of the whole gradient by eps_i, and <a, b> summed over parameters, each divided by |R_p|^2, so
that a small tensor counts as much as a large one. J has as many columns as the model has activations, but <v, J_i .>
needs no more than two passes for all sites at once: <v, gradient> is the derivative of the loss along v. Weights are
moved by h v one way and the other; with x' and g' the differences of a layer's input and output gradient over 2 h, and
V the layer's own part of v,

    forward.input       g' W        forward.weight      g'^T x
    grad_weight.input   g V         grad_input.weight   g^T x'
    grad_input.grad_output  W x'    grad_weight.grad_output  V x

each times eps, summed over the slots that the site serves. All passes run with every error held as it was recorded
(`altgrad.diagnosis.sites`), so what is differentiated is smooth.

The truth beside it is leaving one site out, a pass a site (`bench.attribution`): with the others' errors held,
L - L_without and <e, G - G_without> / |e|^2; and as it happens, when everything behind the site rounds anew,
L - L_without and what the squared error loses, (|e|^2 - |e_without|^2) / |e|^2. The overlap <e, .> would be no truth
there: whatever rounds anew leaves e, so the first site of a model would answer for every cast behind it. With errors
independent and of mean 0 both have the mean |J_i eps_i|^2 / |e|^2, the share's; one step's is a draw.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.diagnosis.sites import Errors, Held, Recorded, casts_as, operands_shown, quantised_layers, slots_by_site
from altgrad.diagnosis.variants import TakenStep, take_step
from altgrad.nn import QuantizedLayer, casts_off, weight_names
from altgrad.nn.experts import ExpertLinear
from altgrad.nn.layers import is_turned
from altgrad.nn.outlier_columns import splitting
from altgrad.progress import progress
from altgrad.training.restore import Restored

BATCHES = 8
"""One step's shares are a draw; the mean of eight ranks sites about as leaving each out does (docs/DIAGNOSE.md)."""

_STEP = 1e-2
"""Length of h v, as a share of the weights' norm; 1e-3 gives the same figures to three digits."""


@dataclass(frozen=True)
class Attribution:
    """loss: nats. share: of the squared error of the gradient, weighted by parameter; shares add up to about 1."""

    site: str
    format: str
    loss: float
    share: float


@dataclass(frozen=True)
class Step:
    """A step taken with and without casts, and the errors of every cast in it."""

    cast: TakenStep
    reference: TakenStep
    errors: Errors

    def weights(self) -> dict[str, float]:
        """1 / |R_p|^2 by parameter; parameters without a reference gradient are left out."""
        sizes = {name: float(r.double().square().sum()) for name, r in self.reference.gradients.items()}
        return {name: 1 / size for name, size in sizes.items() if size > 0}

    def overlap(self, change: Mapping[str, Tensor]) -> float:
        """<e, change>, weighted."""
        return sum(
            weight * float(((self.cast.gradients[p] - self.reference.gradients[p]).double() * change[p].double()).sum())
            for p, weight in self.weights().items()
        )

    @property
    def deviation(self) -> float:
        """|e|^2, weighted: the sum over parameters of their squared relative errors."""
        return self.overlap({p: self.cast.gradients[p] - r for p, r in self.reference.gradients.items()})


def recorded_step(restored: Restored) -> Step:
    """The next step, with the casts recorded and without them."""
    errors: Errors = {}
    with casts_off(restored.model):
        reference = take_step(restored)
    with casts_as(restored.model, lambda quantizer: Recorded(quantizer, errors)):
        taken = take_step(restored)
    return Step(taken, reference, errors)


def unattributed(model: nn.Module) -> str:
    """Why errors of this model are not attributed to its casts, in a line; empty where they are."""
    for name, layer in quantised_layers(model).items():
        if isinstance(layer, ExpertLinear):
            return (
                "No attribution of errors to casts: it holds each operand's error while weights move, and "
                f"{name or 'the layer'} is an expert, which a router sends other tokens then."
            )
        if splitting(layer.slot_casts.get(("grad_weight", "input"))) is not None:
            return (
                "No attribution of errors to casts: it goes by one error an operand, and in "
                f"{name or 'the layer'} grad_weight.input has outliers.grad_output, which gives grad_output two."
            )
    return ""


def attribution(restored: Restored, step: Step | None = None, *, at: float = 1.0) -> list[Attribution]:
    """Every site's part, in module order. ValueError for a run that casts nothing, and where `unattributed` says why.

    at: where derivatives are taken, between no cast (0) and all of them (1).
    """
    model = restored.model
    served = slots_by_site(model)
    if not served:
        raise ValueError(f"{restored.run.id} casts nothing, so no cast makes an error; name another run.")
    if why := unattributed(model):
        raise ValueError(why)
    step = recorded_step(restored) if step is None else step
    weights = step.weights()
    error = {p: (step.cast.gradients[p] - step.reference.gradients[p]) * w for p, w in weights.items()}
    formats = {q.site: str(q.spec.format) for q in _quantizers(model)}
    length = _norm(error)
    if length == 0:
        return [Attribution(site, formats[site], 0.0, 0.0) for site in served]
    parameters = dict(model.named_parameters())
    scale = restored.spec.loss_scale.factor  # what layers see of gradients has it, and so have errors of their casts
    h = _STEP * _norm({p: parameters[p].detach() for p in weights}) / length
    point = {site: [(eps * at, mask) for eps, mask in each] for site, each in step.errors.items()}
    still = _seen(restored, point)
    with _moved(parameters, error, h):
        ahead = _seen(restored, point)
    with _moved(parameters, error, -h):
        behind = _seen(restored, point)
    size, weights_of = step.deviation, weight_names(model)
    found = []
    for site, slots in served.items():
        name = site.rpartition("/")[0]
        layer = quantised_layers(model)[name]
        direction = error.get(weights_of.get(name, ""))
        loss = share = 0.0
        for number, (eps, _) in enumerate(step.errors[site]):
            x, g = still[name][number]
            x_dot = (ahead[name][number][0] - behind[name][number][0]) / (2 * h)
            g_dot = (ahead[name][number][1] - behind[name][number][1]) / (2 * h)
            held = _Operands(layer, point, number, x, g)
            for slot in slots:
                own = held.in_place(slot, site, eps)
                loss += _dot(held.loss(slot), own)
                share += _dot(held.along(slot, x_dot, g_dot, direction), own)
        found.append(Attribution(site, formats[site], loss / scale, share / size / scale))
    return found


def mean_attribution(restored: Restored, batches: int = BATCHES) -> list[Attribution]:
    """Every site's part in the mean over the batches of so many steps to come, all taken from here.

    ValueError for a run that casts nothing.
    """
    each = []
    for number in range(batches):
        progress("attributing the error to casts", number, batches)
        each.append(attribution(replace(restored, ahead=number)))
    return [
        replace(rows[0], loss=fmean(row.loss for row in rows), share=fmean(row.share for row in rows))
        for rows in zip(*each, strict=True)
    ]


class _Operands:
    """One layer's operands in one micro-batch, as the casts left them."""

    def __init__(self, layer: QuantizedLayer, errors: Errors, number: int, x: Tensor, g: Tensor) -> None:
        self._layer, self._errors, self._number = layer, errors, number
        self._x, self._g, self._w = x, g, _turned(layer, layer.weight.detach())

    def _as_cast(self, slot: Any, x: Tensor) -> Tensor:
        quantizer = self._layer.slot_casts.get(slot)
        if quantizer is None:
            return x
        sites = [quantizer.site]
        if quantizer.spec.source != "original":  # on top of the error that forward's cast made
            sites.append(self._layer.slot_casts["forward", slot[1]].site)
        for site in sites:
            error = self.in_place(slot, site, self._errors[site][self._number][0])
            x = x + (_turned(self._layer, error) if slot[1] == "weight" else error)
        return x

    def in_place(self, slot: Any, site: str, error: Tensor) -> Tensor:
        """The error of a site in an operand, among the operand's own elements: turned back where it was turned."""
        quantizer = self._layer.slot_casts[slot]
        if quantizer.site == site:
            error = self._layer.turned_back(error, slot, self._number)
        if quantizer.site != site or quantizer.spec.source == "forward_rotated":
            error = self._layer.turned_back(error, ("forward", slot[1]), self._number)
        return error

    def loss(self, slot: Any) -> Tensor | None:
        """dL / d(the slot's operand); None for operands that the loss does not see."""
        if slot == ("forward", "input"):
            return self._g @ self._as_cast(("forward", "weight"), self._w)
        if slot == ("forward", "weight"):
            return _turned(self._layer, self._g.T @ self._as_cast(("forward", "input"), self._x))
        return None

    def along(self, slot: Any, x_dot: Tensor, g_dot: Tensor, direction: Tensor | None) -> Tensor | None:
        """The derivative of <v, gradient> by the slot's operand; see the head of the file."""
        v = None if direction is None else _turned(self._layer, direction)
        if slot == ("forward", "input"):
            return g_dot @ self._as_cast(("forward", "weight"), self._w)
        if slot == ("forward", "weight"):
            return _turned(self._layer, g_dot.T @ self._as_cast(("forward", "input"), self._x))
        if slot == ("grad_input", "weight"):
            return _turned(self._layer, self._as_cast(("grad_input", "grad_output"), self._g).T @ x_dot)
        if slot == ("grad_input", "grad_output"):
            return x_dot @ self._as_cast(("grad_input", "weight"), self._w).T
        if v is None:
            return None
        if slot == ("grad_weight", "input"):
            return self._as_cast(("grad_weight", "grad_output"), self._g) @ v
        return self._as_cast(("grad_weight", "input"), self._x) @ v.T


def _seen(restored: Restored, errors: Errors) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Each layer's input and output gradient, unrounded [tokens, features], by micro-batch, with all errors held.

    In float32 (of a run in bfloat16 the layers see bfloat16); gradients are of the scaled loss.
    """
    layers = quantised_layers(restored.model)
    seen: dict[tuple[str, str], list[Tensor]] = {}

    def keep(name: str, operand: str, x: Tensor) -> None:
        seen.setdefault((name, operand), []).append(x.flatten(0, -2).float())

    with operands_shown(layers, keep), casts_as(restored.model, lambda quantizer: Held(quantizer, errors)):
        take_step(restored)
    return {name: list(zip(seen[name, "input"], seen[name, "grad_output"], strict=True)) for name in layers}


@contextmanager
def _moved(parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor], h: float) -> Iterator[None]:
    """Weights moved by h times the direction, and put back to the bit."""
    kept = {name: parameters[name].detach().clone() for name in direction}
    with torch.no_grad():
        for name, v in direction.items():
            parameters[name].add_(v, alpha=h)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, before in kept.items():
                parameters[name].copy_(before)


def _quantizers(model: nn.Module) -> list[Any]:
    return [quantizer for layer in quantised_layers(model).values() for quantizer in layer.slot_casts.values()]


def _turned(layer: QuantizedLayer, weight: Tensor) -> Tensor:
    """[out, in], from and to how the layer keeps it."""
    return weight.mT if is_turned(layer) else weight


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors.values()))


def _dot(a: Tensor | None, b: Tensor) -> float:
    return 0.0 if a is None else float((a.double() * b.reshape(a.shape).double()).sum())
