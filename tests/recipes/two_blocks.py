"""A step of a model of two blocks in bfloat16, and what passed through each of its Linears, to be compared."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.models.gpt import GPTSpec
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.recipes.book import find
from tests.recipes.vendor import without_draws

VOCABULARY = 64


def model(width: int, context: int) -> nn.Module:
    """Uncast. Weights are larger than a fresh model's, so that every layer has a say in the loss."""
    torch.manual_seed(0)
    said = {"kind": "gpt", "layers": 2, "width": width, "heads": 2, "context": context}
    made = GPTSpec.made_from(said).build(VOCABULARY, VOCABULARY)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    return made.bfloat16()


def tokens(length: int) -> Tensor:
    """One row of them, and the one that follows."""
    return torch.randint(VOCABULARY, (1, length + 1), generator=torch.Generator().manual_seed(1))


def cast(made: nn.Module, recipe: str) -> nn.Module:
    """The model under the recipe's casts, as the book has them, with stochastic rounding replaced by nearest."""
    quantize_model(made, PrecisionPolicy.made_from(without_draws(find(recipe).expansion().run["precision"])))
    return made


def in_blocks(_: nn.Module, name: str) -> bool:
    return name.startswith("blocks.")


def linears(made: nn.Module) -> dict[str, nn.Linear]:
    """Those of the blocks."""
    return {n: layer for n, layer in made.named_modules() if isinstance(layer, nn.Linear) and in_blocks(layer, n)}


@dataclass
class Passed:
    """What a Linear was given and what it made of it in a step, as matrices."""

    given: dict[str, Tensor] = field(default_factory=dict)
    """x, w and dy."""
    made: dict[str, Tensor] = field(default_factory=dict)
    """y, dx and dw."""


def step(made: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Passed]]:
    """The loss and what passed through each Linear of the blocks; gradients stay in the parameters."""
    passed, handles = {name: Passed() for name in linears(made)}, []

    def keep(into: dict[str, Tensor], key: str) -> Callable[[Tensor], None]:
        return lambda found: into.update({key: found.detach().flatten(0, -2)})

    def seen(of: Passed) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            keep(of.given, "x")(inputs[0])
            keep(of.made, "y")(y)
            inputs[0].register_hook(keep(of.made, "dx"))
            y.register_hook(keep(of.given, "dy"))

        return hook

    for name, layer in linears(made).items():
        handles.append(layer.register_forward_hook(seen(passed[name])))
    loss = functional.cross_entropy(made(ids[:, :-1]).float().flatten(0, 1), ids[0, 1:])
    loss.backward()
    for name, layer in linears(made).items():
        assert layer.weight.grad is not None
        passed[name].given["w"], passed[name].made["dw"] = layer.weight.detach(), layer.weight.grad
    for handle in handles:
        handle.remove()
    return loss.detach(), passed
