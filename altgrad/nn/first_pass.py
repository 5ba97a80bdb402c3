"""Every quantised layer's forward is reached, and a model's own first pass in each mode is the proof.

Casts are made in a layer's forward. A parent that reads `child.weight` and multiplies by it itself computes the plain
product, and the run is silently another. Three answers, the surest first:

    a known parent with a second way    torch's fused kernel for nn.TransformerEncoderLayer in evaluation is switched
                                        off by a condition of its own, and nn.TransformerEncoder's nested tensors with
                                        it; both come back with `dequantize_model`. These are plain attributes, which
                                        copies and pickles keep
    a known parent without one          nn.MultiheadAttention multiplies by in_proj_weight and out_proj.weight in every
                                        mode, also in training, nn.LinearCrossEntropyLoss by linear.weight: refused
    any other                           the model's own first pass in each mode (training, evaluation) is the proof

In a first pass a weight that is read outside its layer's forward is handed out as a stand-in, which notes whether a
product is made with it or with something made of it (a transpose, a piece, a cast). Where the layer's forward did not
run, that is refused at the end of the pass; where it did, too, it is a warning. Reading a weight's dtype, its norm or
its sum is neither, nor is a layer that simply had nothing to do. The stand-in computes with the weight itself, so no
bit differs. In transformers it finds MobileBERT's decoder and Mamba's dt_proj. Likewise of attention with casts: where
the module's forward ran and its casts did not, that is refused.

Roads not taken: a dispatch or function mode sees every product, but turns fused paths off or meets operators that have
no rule for it, so what it observes is another run; a missing forward alone says nothing of a mixture of experts.
Not seen: a model or a part of it that is compiled, transformed (vmap) or traced during its first pass; a kernel that
takes pointers; a weight under a parametrisation; and passes that do not go through the module that was quantised.
"""

import sys
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from altgrad.nn.attention import CHILD, products_of
from altgrad.nn.layers import is_layer
from altgrad.nn.linear import QuantizedLayer

FUSED: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""What in these parents makes them call their children, and at which value."""
_KEPT = "_fused_before_casts"

READERS: tuple[type[nn.Module], ...] = (
    nn.MultiheadAttention,
    *(getattr(nn, name) for name in ("LinearCrossEntropyLoss",) if hasattr(nn, name)),  # torch 2.13
)
"""Parents that multiply by their children's weights, always."""


def refuse_parents(model: nn.Module, names: Iterable[str]) -> None:
    """ValueError if one of these layers or matrices lies in a parent that would compute without its forward."""
    names = list(names)
    for path, module in model.named_modules():
        kind = next((cls for cls in READERS if isinstance(module, cls) and type(module).forward is cls.forward), None)
        inside = [name for name in names if not path or name.startswith(f"{path}.")]
        if kind is None or not inside:
            continue
        leaf = path.rpartition(".")[2]
        remedy = f"put the rule {{match: '*{leaf}*'}}, which casts nothing, before the one that matches it."
        raise ValueError(
            f"{inside[0]} belongs to a {kind.__name__}, which multiplies by its matrices itself, so a cast would never "
            f"run; {remedy if leaf else 'nothing in it can be cast.'}"
        )


def fast_paths_off(model: nn.Module) -> None:
    """Have the known parents of quantised layers call them."""
    for module in model.modules():
        for cls, (switch, off) in FUSED.items():
            if isinstance(module, cls) and _KEPT not in vars(module) and quantised_within(module):
                setattr(module, _KEPT, getattr(module, switch, off))
                setattr(module, switch, off)


def fast_paths_back(model: nn.Module) -> None:
    """Undo `fast_paths_off`."""
    for module in model.modules():
        for cls, (switch, _) in FUSED.items():
            if isinstance(module, cls) and _KEPT in vars(module):
                setattr(module, switch, vars(module)[_KEPT])
                delattr(module, _KEPT)


def quantised_within(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantised layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def attention_within(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose attention has casts, by name, but for those that have a forward of their own."""
    found = {name: module for name, module in model.named_modules() if products_of(module) is not None}
    return {name: module for name, module in found.items() if "forward" not in vars(module)}


PRODUCTS = frozenset({
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "addmm_", "baddbmm", "addbmm", "mv", "addmv",
    "einsum", "tensordot", "inner", "bilinear", "conv1d", "conv2d", "conv3d", "chain_matmul", "multi_dot", "smm",
    "multi_head_attention_forward", "scaled_dot_product_attention", "_transformer_encoder_layer_fwd",
    "_native_multi_head_attention", "linear_cross_entropy", "_scaled_mm", "_addmm_activation",
})  # fmt: skip
"""Functions that multiply matrices."""


def prove_first_pass(model: nn.Module) -> None:
    """Watch the first pass of the model in each mode, see above; or of its parts, where it is never called itself, as
    a LightningModule whose training_step calls them."""
    end_proof(model)
    for name, module in _parts(model):
        proof = Proof(name)
        module.register_forward_pre_hook(proof.begin)
        module.register_forward_hook(proof.end, always_call=True)


def end_proof(model: nn.Module) -> None:
    """Watch no pass any more."""
    for _, module in _parts(model):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [n for n, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Proof)]:
                del hooks[number]
                module._forward_hooks_always_called.pop(number, None)


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model, and its children that are no layers."""
    return [("", model), *((name, child) for name, child in model.named_children() if not is_layer(child))]


class Proof:
    """Hooks of a model. They go by themselves after its first passes in training and in evaluation without gradients;
    where the model *is* one layer, whose parent is not known, they stay, since torch's fused path asks for hooks.

    name: what the model is called in messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.proved: set[tuple[bool, bool]] = set()
        self._pass: _Pass | None = None

    def begin(self, model: nn.Module, _: Any) -> None:
        """Before a pass."""
        if torch.compiler.is_compiling():
            return
        if self._pass is not None:
            if self._pass.thread != get_ident():
                return
            if self._pass.on_stack():  # the model calls itself
                self._pass.depth += 1
                return
            self._pass.close()  # of a pass that Ctrl-C ended, after which no hook is called
            self._pass = None
        if _mode(model) not in self.proved and _watchable(model):
            layers, attending = quantised_within(model), attention_within(model)
            begun = any(isinstance(vars(layer)["_parameters"], _Parameters) for layer in layers.values())
            if (layers or attending) and not begun:
                named = {f"{self.name}.{name}" if self.name else name: layer for name, layer in layers.items()}
                self._pass = _Pass(named, attending, sys._getframe(1))

    def end(self, model: nn.Module, _: Any, __: Any) -> None:
        """After a pass, also after one that failed. ValueError for a layer whose forward is not what runs."""
        if torch.compiler.is_compiling() or self._pass is None or self._pass.thread != get_ident():
            return
        if self._pass.depth:
            self._pass.depth -= 1
            return
        over, self._pass = self._pass, None
        over.close()
        if sys.exc_info()[0] is not None:
            return
        over.judge()
        self.proved.add(_mode(model))
        if {(True, True), (False, False)} <= self.proved and not isinstance(model, QuantizedLayer):
            end_proof(model)


class _Pass:
    """One watched pass: which layers ran, and where else products were made with their weights. It lasts while `frame`
    is being run, in one thread."""

    def __init__(self, layers: dict[str, QuantizedLayer], attending: dict[str, nn.Module], frame: FrameType) -> None:
        self.layers, self.depth, self.thread = layers, 0, get_ident()
        self.attending = attending
        self.ran: set[str] = set()
        self.elsewhere: dict[str, str] = {}
        self._frame: FrameType | None = frame
        self._kept = {name: (vars(layer)["_parameters"], vars(layer).get("forward")) for name, layer in layers.items()}
        self._within = 0
        for name, layer in layers.items():
            vars(layer)["_parameters"] = _Parameters(vars(layer)["_parameters"], self, name)
            vars(layer)["forward"] = self._marked(name, layer.forward)
        for name, module in attending.items():
            for each, ran in ((module, name), (module.get_submodule(CHILD), f"{name}.{CHILD}")):
                vars(each)["forward"] = self._noted(ran, each.forward)

    def on_stack(self) -> bool:
        """Whether who asks was called by this pass."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None and self._frame is not None

    def _noted(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.ran.add(name)
            return forward(*args, **kwargs)

        return run

    def _marked(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.ran.add(name)
            self._within += 1
            try:
                return forward(*args, **kwargs)
            finally:
                self._within -= 1

        return run

    def read(self, name: str, weight: Tensor) -> Tensor:
        """A weight as whoever reads it gets it."""
        mine = self._within or type(weight) not in (Tensor, nn.Parameter) or not self.on_stack()
        return weight if mine else _stand_in(weight, self, name)

    def product(self, name: str, function: str) -> None:
        """Note a product outside the layer's forward, with the line that made it."""
        self.elsewhere.setdefault(name, f"{function} at {_caller()}")

    def close(self) -> None:
        """Leave the layers as they were."""
        self._frame = None
        for name, (parameters, forward) in self._kept.items():
            layer = vars(self.layers[name])
            now = dict(layer["_parameters"].items())
            parameters.clear()
            parameters.update(now)
            layer["_parameters"] = parameters
            del layer["forward"]
            if forward is not None:
                layer["forward"] = forward
        for module in self.attending.values():
            for each in (module, module.get_submodule(CHILD)):
                vars(each).pop("forward", None)

    def judge(self) -> None:
        """ValueError for a layer that was bypassed; a warning for those that were also used around their forward."""
        also: dict[str, list[str]] = {}
        for name in self.attending:
            if name in self.ran and f"{name}.{CHILD}" not in self.ran:
                raise ValueError(
                    f"{name} has casts of attention, but they do not run: its forward computes attention elsewhere, as "
                    "after a change of attn_implementation. Make that change before quantize_model."
                )
        for name, where in self.elsewhere.items():
            if name not in self.ran:
                raise ValueError(
                    f"{name} is quantised, but its forward does not run: {where} multiplies by its weight itself. "
                    f"Call the layer there, or put the rule {{match: {name}}}, which casts nothing, before the others."
                )
            also.setdefault(where, []).append(name)
        for where, names in also.items():
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            warnings.warn(
                f"{names[0]}{more}: the layer's forward is cast, but {where} multiplies by its weight too, uncast.",
                stacklevel=4,
            )


class _Parameters(dict[str, Any]):
    """A layer's `_parameters` during the pass: `layer.weight` is a read of this."""

    def __init__(self, parameters: dict[str, Any], seen_by: _Pass, name: str) -> None:
        super().__init__(parameters)
        self._seen_by, self._name = seen_by, name

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return self._seen_by.read(self._name, value) if key == "weight" and isinstance(value, Tensor) else value

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _itself(value))


class _StandIn(Tensor):
    """A weight, or what was made of one, that tells when it enters a product; computed with is the thing itself."""

    thing: Tensor
    seen_by: _Pass
    layer: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch's documentation of its protocol."""
        given: list[_StandIn] = []
        tree_map(lambda leaf: given.append(leaf) if isinstance(leaf, _StandIn) else None, (args, kwargs or {}))
        made = func(*tree_map(_itself, args), **tree_map(_itself, kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in PRODUCTS:
            for one in given:
                one.seen_by.product(one.layer, name)
        elif given and name != "grad":
            return tree_map(lambda leaf: _made_of(leaf, given[0]), made)
        return made


def _stand_in(thing: Tensor, seen_by: _Pass, layer: str) -> Tensor:
    made = thing.as_subclass(_StandIn)
    made.thing, made.seen_by, made.layer = thing, seen_by, layer
    if isinstance(thing, nn.Parameter):
        made._is_param = True  # so that isinstance(weight, nn.Parameter) holds
    return made


def _made_of(leaf: Any, one: _StandIn) -> Any:
    """What was made of a stand-in: a matrix is one, too; vectors and numbers are what they are."""
    matrix = type(leaf) in (Tensor, nn.Parameter) and leaf.ndim >= 2 and leaf.is_floating_point()
    return _stand_in(leaf, one.seen_by, one.layer) if matrix else leaf


def _itself(leaf: Any) -> Any:
    return vars(leaf)["thing"] if isinstance(leaf, _StandIn) else leaf


def _mode(model: nn.Module) -> tuple[bool, bool]:
    return model.training, torch.is_grad_enabled()


def _watchable(model: nn.Module) -> bool:
    """Whether a pass that begins now runs as written, and is the model's own."""
    if torch._C._get_tracing_state() is not None or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if getattr(model, "_is_replica", False):  # of nn.DataParallel, in a thread
        return False
    return not any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def _caller() -> str:
    """The line, outside torch and this file, that is being run."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or frame.f_globals.get("__name__", "").startswith("torch.")
    ):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
