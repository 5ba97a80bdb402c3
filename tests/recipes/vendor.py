"""What proofs of recipes share: casts from the book, and one step of a layer beside what a vendor's own code recorded.

Nothing here says a cast: each is taken from altgrad/recipes/<name>.yaml, and goes the way that a run's would, through
the policy's Rule, LayerPrecision and Quantizer or QuantizedLinear.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from altgrad.nn import PrecisionPolicy, QuantizedLinear, quantize_model
from altgrad.nn.rule import Rule
from altgrad.nn.slots import SLOTS
from altgrad.quantize import QuantizerSpec
from altgrad.recipes.book import find

FOLDER = Path(__file__).parent.parent / "references" / "linear"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def data(name: str) -> dict[str, Tensor]:
    """The tensors of a reference; what is stored as bfloat16 as float32."""
    found = load_file(FOLDER / f"{name}.safetensors")
    return {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in found.items()}


def kernels(name: str) -> dict[str, Tensor]:
    """What was recorded of kernels that no package runs on a CPU, as `data` gives it."""
    found = load_file(FOLDER.parent / "kernels.safetensors")
    own = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
    return {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in own.items()}


def e4m3(codes: Tensor) -> Tensor:
    return codes.view(torch.float8_e4m3fn).float()


def e2m1(codes: Tensor) -> Tensor:
    """Two to a byte, the low nibble first."""
    both = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
    return VALUES[both & 7] * (1 - 2.0 * (both >> 3))


def scaled(fmt: str, kind: str, **scaling: Any) -> dict[str, Any]:
    return {"format": fmt, "scaling": {"kind": kind, **scaling}}


def rule(name: str, **parameters: Any) -> dict[str, Any]:
    """The casts of a recipe, as its one rule that has any says them; of several the last, which is that of the body."""
    rules: list[dict[str, Any]] = find(name).expansion(**parameters).run["precision"]["rules"]
    casting = [each for each in rules if each.keys() - {"place"}]
    return {key: value for key, value in casting[-1].items() if key != "place"}


def slots(name: str, **parameters: Any) -> dict[str, QuantizerSpec]:
    """The six slots of a layer under a recipe, without those that are not cast."""
    made = Rule.made_from({"match": "*", **rule(name, **parameters)}).layer()
    return {f"{product}.{operand}": spec for (product, operand), spec in made.slots.items() if spec is not None}


def without_draws(said: Any) -> Any:
    """The same casts with stochastic rounding, and trials, to nearest: the part that can be compared bit by bit."""
    if isinstance(said, dict):
        kept = {key: without_draws(value) for key, value in said.items()}
        return {
            key: value
            for key, value in kept.items()
            if value != "stochastic" or key not in ("rounding", "trial_rounding")
        }
    if isinstance(said, list):
        return [without_draws(each) for each in said]
    return said


class Step:
    """One step of a layer: its product, its gradients, and each slot's operand."""

    def __init__(self, casts: dict[str, Any], x: Tensor, w: Tensor, dy: Tensor, dtype: torch.dtype) -> None:
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight = nn.Parameter(w.to(dtype))
        layer = quantize_model(nn.Sequential(linear), PrecisionPolicy.uniform(**casts))[0]  # type: ignore[index]
        assert isinstance(layer, QuantizedLinear)
        x = x.to(dtype).clone().requires_grad_()
        self.y = layer(x)
        self.y.backward(dy.to(dtype))
        assert x.grad is not None and layer.weight.grad is not None
        self.dx, self.dw, self.layer = x.grad, layer.weight.grad, layer
        matrices, self.slots = layer.matrices(w, False), {}
        given = {"input": x.detach(), "weight": layer.weight.detach(), "grad_output": dy.to(dtype)}
        for product, operand in SLOTS:
            found = layer.operands(given[operand], operand, False, dtype, matrices).values[product]
            self.slots[f"{product}.{operand}"] = found.float()

    def compare(self, y: Tensor, dx: Tensor | None, dw: Tensor | None, steps: float = 0.0) -> None:
        """The three products equal these; `steps` bounds the error by the largest value, in units of its last place."""
        unit = torch.finfo(self.y.dtype).eps
        for found, expected in ((self.y, y), (self.dx, dx), (self.dw, dw)):
            if expected is not None:
                error = (found.float() - expected).abs().max()
                assert error <= steps * unit * expected.abs().max()
