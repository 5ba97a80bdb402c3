"""What can be quantised at rest: a model's tensors, in a file or in memory, and the cast that a policy gives each.

A file has no modules, only names. But names are all that a policy looks at, so a skeleton of empty modules is hung up
after them, with a Linear wherever a weight may belong to one, and the policy decides it as it decides any model:
`first` and `last`, the first match, and the error for a rule that decides nothing come with that. A model in memory is
decided itself. One that `altgrad.quantize_model` has quantised brings its casts, with the scales that training left.

A weight matrix and a table of embeddings look alike in a file. By name (EMBEDDINGS) tables are no Linears; where no
policy names the layers, output heads (HEADS, of `altgrad.nn.layers`) are left alone too.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from altgrad.conversion.tensor_cast import CASTABLE, WHOLE, TensorCast, require_stored_castable
from altgrad.formats import CATALOG, NumberFormat, parse_format
from altgrad.nn import PrecisionPolicy, QuantizedLayer
from altgrad.nn.experts import ExpertLinear
from altgrad.nn.layers import EMBEDDINGS, HEADS, is_turned
from altgrad.nn.library_experts import layer_at
from altgrad.nn.names import literal, matches
from altgrad.nn.policy import Decision
from altgrad.nn.weight_casts import QuantizedWeight
from altgrad.quantize import QuantizerSpec
from altgrad.recipes.recipe import Recipe
from altgrad.spec import Document, LocatedError, SpecError
from altgrad.training.weights import StoredTensor, Weights, find_weights, weights_in_memory

_FLOATS = (*CASTABLE, "F64")
_LONGEST_LIST = 10_000
_CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}

Tree = dict[str, "Tree"]
Formats = str | NumberFormat | Sequence[str | NumberFormat]
PolicyLike = PrecisionPolicy | Recipe | Mapping[str, Any] | str | os.PathLike[str]


def _require_at_rest(layer: str, cast: QuantizerSpec, turned: bool) -> None:
    """ValueError for a weight that is another tensor in the product, or a sum of two."""
    if turned:
        raise ValueError(
            f"{layer}: weights at rest are cast as they lie, and forward.transform turns them first; leave that out."
        )
    if cast.outliers is not None:
        raise ValueError(
            f"{layer}: weights at rest have one code for an element, and outliers: {cast.outliers.kind} makes them a "
            "sum of two casts; leave that out."
        )


@dataclass(frozen=True)
class Source:
    """A model to quantise: its name for messages, its tensors, and its modules if it is in memory."""

    name: str
    weights: Weights
    model: nn.Module | None = None

    @classmethod
    def of(cls, model: nn.Module | str | os.PathLike[str]) -> "Source":
        """A model, a Hugging Face folder, a .safetensors file, or a run. ValueError for what is none of these."""
        if isinstance(model, nn.Module):
            return cls(type(model).__name__, weights_in_memory(model), model)
        return cls(str(model), find_weights(Path(model)))

    def casts(self, policy: PrecisionPolicy, *, without: Sequence[str] = EMBEDDINGS) -> dict[str, TensorCast]:
        """The cast of each tensor that a rule decides; see `casts_by_name`. ValueError for a model quantised already.

        without: patterns of the names of modules to leave alone.
        """
        if self.model is None:
            return casts_by_name(self.weights.tensors, policy, without=without)
        if self.own_casts():
            raise ValueError(f"{self.name} is quantised already; leave out the policy, or `dequantize_model` it first.")
        found: list[tuple[nn.Module, TensorCast]] = []
        for decision in policy.decide(self.model, at_rest=True):
            cast = _weight_cast(decision)
            if cast is None or any(matches(pattern, [decision.name]) for pattern in without):
                continue
            if decision.experts is not None:
                require_stored_castable(self._tensor(decision.name))
            layer = layer_at(self.model, decision.name)
            found.append((layer, TensorCast(decision.name, cast, "first" if is_turned(layer) else "last")))
        for name, spec in _weights_elsewhere(policy, self.model).items():
            found.append((self.model.get_submodule(name), TensorCast(name, spec, "last")))
        return self._by_tensor(found)

    def own_casts(self) -> dict[str, TensorCast]:
        """The casts of a model that is quantised; none for any other."""
        found: list[tuple[nn.Module, TensorCast]] = []
        for name, layer in [] if self.model is None else self.model.named_modules():
            quantizer = layer.quantizer if isinstance(layer, QuantizedWeight) else None
            if isinstance(layer, QuantizedLayer) and (quantizer := layer.slot_casts.get(("forward", "weight"))):
                _require_at_rest(name, quantizer.spec, "forward" in layer.transforms)
            if quantizer is not None:
                found.append((layer, TensorCast(name, quantizer.spec, quantizer.reduced, quantizer)))
        return self._by_tensor(found)

    def _by_tensor(self, casts: Sequence[tuple[nn.Module, TensorCast]]) -> dict[str, TensorCast]:
        """By tensor: a layer that has two names has its weight in the file twice. Those of experts together."""
        of: dict[tuple[nn.Module, str], dict[int, TensorCast]] = {}
        for layer, cast in casts:
            if isinstance(layer, ExpertLinear):
                of.setdefault((layer.holder, layer.parameter), {})[layer.number] = cast
            else:
                of[layer, "weight"] = {WHOLE: cast}
        found = {}
        for path, module in [] if self.model is None else self.model.named_modules(remove_duplicate=False):
            for leaf in [leaf for holder, leaf in of if holder is module]:
                tensor = self._tensor(f"{path}.{leaf}" if path else leaf)
                found[tensor.name] = TensorCast.of_parts(tensor, of[module, leaf])
        return found

    def _tensor(self, name: str) -> StoredTensor:
        for tensor in self.weights.tensors:
            if tensor.name == name:
                return tensor
        raise ValueError(f"the model has no tensor {name} of its own; take off what computes it (a parametrization).")


@dataclass(frozen=True)
class Conversion:
    """One way to quantise a model: by name, with the policy as data and the cast of each tensor that gets one."""

    name: str
    policy: Mapping[str, Any]
    casts: Mapping[str, TensorCast]


def formats_named(names: Formats) -> list[NumberFormat]:
    """The formats, each once: names, by commas or in a list; `all` stands for the catalog. ValueError for one that no
    tensor can enter.
    """
    # The commas of a table's values part no formats.
    if isinstance(names, str):
        listed = re.findall(r"(?:\[.*?\]|\{.*?\}|[^,])+", names)
    else:
        listed = [str(names)] if isinstance(names, NumberFormat) else list(map(str, names))
    spelled = [name.strip() for name in listed if name.strip()]
    if not spelled:
        raise ValueError(f"formats {names!r} names no format; write some, such as e4m3fn,e5m2.")
    spelled = [entry.name for entry in CATALOG] if "all" in spelled else spelled
    formats = list(dict.fromkeys(map(parse_format, spelled)))
    for fmt in formats:
        fmt.require_tensor_domain()
    return formats


def conversions_by_format(source: Source, formats: Iterable[NumberFormat], match: Sequence[str]) -> list[Conversion]:
    """One for each format: the matrices whose module matches, or all but embeddings and heads.

    ValueError, naming what there is, if that is none of them.
    """
    found = []
    for fmt in formats:
        rules = tuple({"match": pattern, "weight": str(fmt)} for pattern in match or ("*",))
        policy = PrecisionPolicy.model_validate({"rules": rules})
        try:
            casts = source.casts(policy, without=() if match else (*EMBEDDINGS, *HEADS))
        except LocatedError as error:
            option = f"match: {error}" if match else "the model has no 2-D weight besides embeddings and heads."
            raise ValueError(option) from None
        found.append(Conversion(str(fmt), policy.tree(), casts))
    return found


def policy_in_file(path: Path) -> tuple[PrecisionPolicy, Document]:
    """The rules of a file, or those that it has under `precision`, as specs do, with the document that they stand in.

    SpecError, with line and column, for what is wrong in it.
    """
    document = Document.load(path)
    if isinstance(document.data, dict) and "precision" in document.data:
        document = document.part("precision")
    return PrecisionPolicy.check(document), document


def conversion_by_policy(source: Source, policy: PolicyLike) -> Conversion:
    """The one that a policy describes, a recipe's name, or the file of one: rules, or whatever has some under
    `precision`, as specs do.

    SpecError, of a file with line and column, for what is wrong in it or does not fit.
    """
    name, document = "policy", None
    if isinstance(policy, str) and not Path(policy).suffix and not Path(policy).exists():
        policy = {"recipe": policy}
    if isinstance(policy, str | os.PathLike):
        name, (policy, document) = Path(policy).stem, policy_in_file(Path(policy))
    checked = PrecisionPolicy.made_from(policy)
    if document is None and checked.recipe is not None and checked.recipe.expanded is not None:
        name = checked.recipe.expanded
    try:
        casts = source.casts(checked)
        if not casts:
            raise LocatedError((), "no rule casts a weight; give a rule a `weight`.")
    except LocatedError as error:
        raise SpecError(name if document is None else document.where(error.location), str(error)) from None
    return Conversion(name, checked.tree(), casts)


def conversion_of_quantised(source: Source) -> Conversion | None:
    """The one that a quantised model stands for; None for a model whose weights nothing casts."""
    casts = source.own_casts()
    each = [one for cast in casts.values() for one in cast.experts or (cast,)]
    rules = [{"match": literal(cast.module) or "*", "weight": cast.spec.tree()} for cast in each]
    return Conversion("quantised", PrecisionPolicy.made_from({"rules": tuple(rules)}).tree(), casts) if casts else None


def casts_by_name(
    tensors: Sequence[StoredTensor], policy: PrecisionPolicy, *, without: Sequence[str] = EMBEDDINGS
) -> dict[str, TensorCast]:
    """The cast of each tensor of a file that a rule's `weight` (of the forward product) decides; the others have none.

    without: patterns of module names that hold no Linear. LocatedError for a rule that decides nothing; ValueError for
    weights of experts in one 3-D tensor whose axes no name tells, and for a matrix of a dtype that cannot be cast.
    """
    candidates = {name: tensor for tensor in tensors for name in _layers_named(tensor)}
    candidates = {
        name: tensor for name, tensor in candidates.items() if not any(matches(pattern, [name]) for pattern in without)
    }
    conv1d = any(_is_conv1d(tensor) for tensor in tensors)
    parts: dict[str, dict[int, TensorCast]] = {}
    skeleton = _skeleton(tensors, candidates)
    for decision in decisions_by_either_name(policy, skeleton, at_rest=True):
        cast = _weight_cast(decision)
        if cast is None:
            continue
        tensor, last = candidates[decision.name], decision.name.rpartition(".")[2]
        turned = conv1d and last in _CONV1D
        number = int(last) if _is_stack(tensor) else WHOLE
        parts.setdefault(tensor.name, {})[number] = TensorCast(decision.name, cast, "first" if turned else "last")
    found = {tensor.name: TensorCast.of_parts(tensor, parts[tensor.name]) for tensor in tensors if tensor.name in parts}
    for name, spec in _weights_elsewhere(policy, skeleton).items():
        tensor = next(tensor for tensor in tensors if tensor.name == f"{name}.weight")
        require_stored_castable(tensor)
        found[tensor.name] = TensorCast(name, spec, "last")
    return found


def _weights_elsewhere(policy: PrecisionPolicy, model: nn.Module) -> dict[str, QuantizerSpec]:
    """The casts of norms' and tables' weights, by module. ValueError for one that rests as a sum of two."""
    found = {}
    for target in policy.targets(model, at_rest=True):
        found[target.name] = spec = target.slots["weight"]
        _require_at_rest(target.name, spec, False)
    return found


def _weight_cast(decision: Decision) -> QuantizerSpec | None:
    if decision.precision is None:
        return None
    cast = decision.precision.slots["forward", "weight"]
    if cast is not None:
        _require_at_rest(decision.name, cast, "forward" in decision.precision.transforms)
    return cast


def decisions_by_either_name(policy: PrecisionPolicy, model: nn.Module, *, at_rest: bool = False) -> list[Decision]:
    """By the names of a model's file; where a rule has none of them, also by those that a run of kind hf gives its
    layers."""
    try:
        return policy.decide(model, at_rest=at_rest)
    except LocatedError as error:
        vars(model)["also_named"] = _in_a_run
        try:
            return policy.decide(model, at_rest=at_rest)
        except LocatedError:
            del vars(model)["also_named"]
            raise error from None


def _in_a_run(name: str) -> set[str]:
    """Names below HFModel's `model`, whose library's body lies in a file as it is, or inside a model with a head."""
    rest = name.partition(".")[2]
    return ({f"model.{name}"} if name else set()) | ({f"model.{rest}"} if rest else set())


def _layers_named(tensor: StoredTensor) -> list[str]:
    """The names of the Linears that this may be the weight of: of experts, one for each; of those that are refused, the
    tensor's."""
    module, _, leaf = tensor.name.rpartition(".")
    if tensor.dtype.startswith(("F", "BF")) and leaf == "weight" and len(tensor.shape) == 2:
        return [module]
    if len(tensor.shape) != 3 or tensor.dtype not in _FLOATS:
        return []
    if _is_stack(tensor):
        return [f"{module}.{number}" for number in range(tensor.shape[0])]
    if leaf == "weight" and "conv" not in module:
        return [module]
    return [tensor.name] if "expert" in module else []


def _is_stack(tensor: StoredTensor) -> bool:
    """Whether it is the weight [experts, out, in] of experts. Those of transformers lie so or turned, which only their
    modules know."""
    module, _, leaf = tensor.name.rpartition(".")
    return len(tensor.shape) == 3 and leaf == "weight" and "expert" in module


def _is_conv1d(tensor: StoredTensor) -> bool:
    """Whether the fused projection, which is never square, shows that a GPT-2 keeps its weights as [in, out]."""
    fused = tensor.name.endswith("c_attn.weight") and len(tensor.shape) == 2
    return fused and tensor.shape[1] == 3 * tensor.shape[0]


def _skeleton(tensors: Sequence[StoredTensor], linears: Collection[str]) -> nn.Module:
    """Empty modules named after the tensors: a Linear for each of `linears`, a norm or a table for what is named so, a
    list where the children are numbers."""
    tree: Tree = {}
    leaves: dict[str, nn.Module] = {name: nn.Linear(1, 1, device="meta") for name in linears}
    for tensor in tensors:
        name, _, leaf = tensor.name.rpartition(".")
        if leaf != "weight" or name in leaves:
            continue
        last = name.rpartition(".")[2].casefold()
        if len(tensor.shape) == 1 and ("norm" in last or last.startswith("ln_")):
            leaves[name] = nn.LayerNorm(1, device="meta")
        elif len(tensor.shape) == 2 and any(matches(pattern, [name]) for pattern in EMBEDDINGS):
            leaves[name] = nn.Embedding(1, 1, device="meta")
    for name in [*(tensor.name.rpartition(".")[0] for tensor in tensors), *linears]:
        node = tree
        for part in name.split(".") if name else ():
            node = node.setdefault(part, {})
    return _module_of("", tree, leaves)


def _module_of(name: str, tree: Tree, leaves: Mapping[str, nn.Module]) -> nn.Module:
    children = {key: _module_of(f"{name}.{key}" if name else key, node, leaves) for key, node in tree.items()}
    numbers = {int(key) for key in children if key.isdecimal()}
    if name not in leaves and len(numbers) == len(children) and numbers and max(numbers) < _LONGEST_LIST:
        return nn.ModuleList([children.get(str(index), nn.Module()) for index in range(max(numbers) + 1)])
    module = leaves.get(name) or nn.Module()
    for key, child in children.items():
        # Past add_module, which refuses names that Module has methods of (`type`); here nobody calls them.
        module._modules[key] = child
    return module
