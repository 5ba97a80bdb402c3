"""Which tensors of a file are cast, and how: the rules of a precision policy, asked about names alone.

A file has no modules, only names. But names are all that a policy looks at, so a skeleton of empty modules is hung up
after them, with a Linear wherever a weight may belong to one, and the policy decides it as it decides any model:
`first` and `last`, the first match, and the error for a rule that decides nothing come with that.

A weight matrix and a table of embeddings look alike in a file. By name (EMBEDDINGS) tables are no Linears; where no
policy names the layers, output heads (HEADS, of `altgrad.nn.layers`) are left alone too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from altgrad.nn import PrecisionPolicy
from altgrad.nn.layers import EMBEDDINGS
from altgrad.nn.names import matches
from altgrad.nn.policy import Decision
from altgrad.quantize import QuantizerSpec
from altgrad.quantize.quantizer import Axis
from altgrad.spec import LocatedError
from altgrad.training.weights import StoredTensor

_CASTABLE = ("F32", "BF16", "F16")
_FLOATS = (*_CASTABLE, "F64")
_LONGEST_LIST = 10_000
_CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}

Tree = dict[str, "Tree"]


@dataclass(frozen=True)
class CastChoice:
    """How one tensor is cast. reduced: the axis its product sums over, which for a Conv1D weight [in, out] is first."""

    module: str
    cast: QuantizerSpec
    reduced: Axis


def choose(
    tensors: Sequence[StoredTensor], policy: PrecisionPolicy, *, without: Sequence[str] = EMBEDDINGS
) -> dict[str, CastChoice]:
    """The cast of each tensor that a rule's `weight` (of the forward product) decides; the others have none.

    without: patterns of module names that hold no Linear. LocatedError for a rule that decides nothing; ValueError for
    weights of experts in one 3-D tensor, and for a matrix of a dtype that cannot be cast.
    """
    candidates = {name: tensor for tensor in tensors if (name := _module(tensor)) is not None}
    candidates = {
        name: tensor for name, tensor in candidates.items() if not any(matches(pattern, [name]) for pattern in without)
    }
    conv1d = any(_is_conv1d(tensor) for tensor in tensors)
    found = {}
    for decision in _decisions(policy, _skeleton(tensors, candidates)):
        cast = decision.precision.slots["forward", "weight"] if decision.precision is not None else None
        if cast is None:
            continue
        tensor = candidates[decision.name]
        _castable(tensor)
        turned = conv1d and decision.name.rpartition(".")[2] in _CONV1D
        found[tensor.name] = CastChoice(decision.name, cast, "first" if turned else "last")
    return found


def _decisions(policy: PrecisionPolicy, skeleton: nn.Module) -> list[Decision]:
    """By the names of the file; where a rule has none of them, also by those that a run of kind hf gives its layers."""
    try:
        return policy.decide(skeleton)
    except LocatedError as error:
        vars(skeleton)["also_named"] = _in_a_run
        try:
            return policy.decide(skeleton)
        except LocatedError:
            raise error from None


def _in_a_run(name: str) -> set[str]:
    """Names below HFModel's `model`, whose library's body lies in a file as it is, or inside a model with a head."""
    rest = name.partition(".")[2]
    return ({f"model.{name}"} if name else set()) | ({f"model.{rest}"} if rest else set())


def _module(tensor: StoredTensor) -> str | None:
    """The name of the Linear that this may be the weight of, or of the experts that it may be the weights of."""
    module, _, leaf = tensor.name.rpartition(".")
    if tensor.dtype.startswith(("F", "BF")) and leaf == "weight" and len(tensor.shape) == 2:
        return module
    if len(tensor.shape) != 3 or tensor.dtype not in _FLOATS:
        return None
    if leaf == "weight" and "conv" not in module:
        return module
    return tensor.name if "expert" in module else None


def _castable(tensor: StoredTensor) -> None:
    if len(tensor.shape) == 3:
        raise ValueError(
            f"{tensor.name} is 3-D {list(tensor.shape)}, as the weights of experts are; only matrices are cast. "
            "Leave it out with --match, or split it into one matrix per expert."
        )
    if tensor.dtype not in _CASTABLE:
        remedy = "convert it to F32 first" if tensor.dtype == "F64" else "start from the model before it was quantised"
        raise ValueError(f"{tensor.name} is {tensor.dtype}; casts take {', '.join(_CASTABLE)}: {remedy}.")


def _is_conv1d(tensor: StoredTensor) -> bool:
    """Whether the fused projection, which is never square, shows that a GPT-2 keeps its weights as [in, out]."""
    fused = tensor.name.endswith("c_attn.weight") and len(tensor.shape) == 2
    return fused and tensor.shape[1] == 3 * tensor.shape[0]


def _skeleton(tensors: Sequence[StoredTensor], linears: Collection[str]) -> nn.Module:
    """Empty modules named after the tensors: a Linear for each of `linears`, a list where the children are numbers."""
    tree: Tree = {}
    for name in [*(tensor.name.rpartition(".")[0] for tensor in tensors), *linears]:
        node = tree
        for part in name.split(".") if name else ():
            node = node.setdefault(part, {})
    return _module_of("", tree, linears)


def _module_of(name: str, tree: Tree, linears: Collection[str]) -> nn.Module:
    children = {key: _module_of(f"{name}.{key}" if name else key, node, linears) for key, node in tree.items()}
    numbers = {int(key) for key in children if key.isdecimal()}
    if name not in linears and len(numbers) == len(children) and numbers and max(numbers) < _LONGEST_LIST:
        return nn.ModuleList([children.get(str(index), nn.Module()) for index in range(max(numbers) + 1)])
    module = nn.Linear(1, 1, device="meta") if name in linears else nn.Module()
    for key, child in children.items():
        # Past add_module, which refuses names that Module has methods of (`type`); here nobody calls them.
        module._modules[key] = child
    return module
