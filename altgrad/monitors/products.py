"""products: how much of each product of a layer is signal, and how much is what casting its operands made of it.

    y = x W^T + b        dx = g W        dW = g^T x

The step is run again, in eager, with its casts and their random bits. Each product is compared where it is made with
the one that the same input, weight and output gradient make uncast, in float32: so a figure is about this layer's casts
alone, and errors that arrive from other layers are in both. (`shadow` has those: the whole gradient against the one of
a step without casts.) Signal and noise are summed over the micro-batches and processes of a step.

    SQNR = 10 log10( sum exact^2 / sum (made - exact)^2 )  dB        inf where no operand of the product is cast

What the layer does with a gradient besides multiplying counts as its noise: the mask of a clipped estimator, a slope,
and the rounding of a product to the compute dtype (some 54 dB in bfloat16). A product that was not made, such as dx of
a first layer, whose input needs no gradient, is left out; one of no rows has no SQNR (NaN).

It costs a step and each product once more, in float32, so it comes at a slow cadence. The road not taken: SQNRs of
operands, which every cast can measure for nothing. They do not add up to a product's where errors are correlated with
operands, as those of nearest rounding are, nor under a transform, after which an operand is another one.
"""

from typing import ClassVar

import torch
from torch import Tensor

from altgrad.measures import decibels, energies
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import (
    NOTHING,
    Context,
    Every,
    Found,
    MonitorSpec,
    Replay,
    ReplayMonitor,
    Report,
    Values,
    at,
)  # fmt: skip
from altgrad.nn import QuantizedLayer, compared, fresh_gradients

PRODUCTS = ("forward", "grad_input", "grad_weight")
NAMES = tuple(f"{product}_sqnr_db" for product in PRODUCTS)


class ProductsSpec(MonitorSpec):
    """SQNR of the three products of each quantised layer, against the same products of uncast operands."""

    kind: ClassVar[str] = "products"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("forward_sqnr_db", "dB", "of y, made from cast operands", "10 log10(|y|^2 / |Q(x) Q(W)^T + b - y|^2)",
               "lower"),
        Metric("grad_input_sqnr_db", "dB", "of the input's gradient, likewise", "10 log10(|g W|^2 / |dx - g W|^2)",
               "lower"),
        Metric("grad_weight_sqnr_db", "dB", "of the weight's gradient, likewise",
               "10 log10(|g^T x|^2 / |dW - g^T x|^2)", "lower"),
    )  # fmt: skip
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "Products":
        return Products()


class Products(ReplayMonitor):
    """Signal and noise by layer and product. Processes add theirs, so all see the same."""

    alike: ClassVar[tuple[str, ...]] = NAMES

    def measure(self, replay: Replay) -> dict[str, Found]:
        layers = [name for name, module in replay.model.named_modules() if isinstance(module, QuantizedLayer)]
        if not layers:
            return {}
        device = next(replay.model.parameters()).device
        sums = torch.zeros(len(layers), len(PRODUCTS), 3, dtype=torch.float64, device=device)
        rows = {name: row for row, name in enumerate(layers)}

        def show(layer: str, product: str, made: Tensor, exact: Tensor) -> None:
            signal, noise = energies(exact, made)
            sums[rows[layer], PRODUCTS.index(product)] += torch.stack([signal, noise, torch.ones_like(noise)]).to(
                device
            )

        with compared(replay.model, show):
            fresh_gradients(replay.model, replay.losses)
        replay.processes.add([sums])
        found, made = decibels(sums[..., 0], sums[..., 1]), sums[..., 2].tolist()
        return {
            name: shown
            for name, row in rows.items()
            if (shown := {NAMES[n]: found[row, n] for n in range(len(PRODUCTS)) if made[row][n]})
        }

    def report(self, site: str, values: Values) -> Report:
        return Report(at(site, values))
