"""Claims about attention's casts: they are those of a float64 attention with the same casts written by hand, on any
model whose attention can be reached, eager and compiled; and where nothing is cast nothing changes."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import altgrad
from altgrad.models.attention import attention
from altgrad.models.model import ModelSpec
from altgrad.nn import PrecisionPolicy, casts_off, commit, dequantize_model, quantize_model, quantizers, unrecorded
from altgrad.nn.attention import CHILD, QuantizedAttention
from altgrad.nn.attention_reach import attention_modules
from altgrad.nn.attention_slots import AXES, ROLES, AttentionSpec
from altgrad.quantize import Quantizer
from altgrad.spec import LocatedError, SpecError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

FORWARD, BACKWARD = ("query", "key", "value", "probabilities"), ("grad_output", "grad_scores")
FP8: dict[str, Any] = dict.fromkeys(FORWARD, "e4m3fn") | dict.fromkeys(BACKWARD, "e5m2")
FINE: dict[str, Any] = {name: {"format": "e5m10"} for name in ROLES}
MX: dict[str, Any] = {name: {"format": "e4m3fn", "scaling": {"kind": "block", "size": 4}} for name in ROLES}
Given = tuple[Tensor, Tensor, Tensor]


def given(groups: int = 4, time: int = 12, dtype: torch.dtype = torch.float32) -> Given:
    """Query, key and value as a fused projection leaves them: no one of them lies in one piece."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, time, heads, 8) for heads in (4, groups, groups))
    made = [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2].requires_grad_()


def step(run: Callable[..., Tensor], inputs: Given, **how: Any) -> list[Tensor]:
    """What it gives and the three gradients."""
    for x in inputs:
        x.grad = None
    y = run(*inputs, **how)
    y.backward(torch.linspace(-1, 2, y.numel()).view(y.shape).to(y.dtype))
    grads = [x.grad for x in inputs]
    assert all(g is not None for g in grads)
    return [y.detach(), *grads]  # type: ignore[list-item]


def by_hand(spec: AttentionSpec, inputs: Given, mask: Tensor) -> list[Tensor]:
    """Explicit products in float64, each operand cast along the axis that its product sums over, or by the one cast."""
    casts = {slot: Quantizer(cast, name) for name, (cast, slots) in spec.casts().items() for slot in slots}
    own = {slot: (casts[slot], slots[0]) for _, slots in spec.casts().values() for slot in slots}

    def q(x: Tensor, product: str, operand: str) -> Tensor:
        if (product, operand) not in own:
            return x
        quantizer, first = own[product, operand]
        turned = x.mT if AXES[first] == "first" else x
        made = quantizer(turned.float().reshape(-1, turned.shape[-1])).double().reshape(turned.shape)
        return made.mT if AXES[first] == "first" else made

    query, key, value = (x.detach().double() for x in inputs)
    heads, groups, scale = query.shape[1], key.shape[1], query.shape[-1] ** -0.5

    def each(x: Tensor) -> Tensor:
        return x.repeat_interleave(heads // groups, 1)

    def summed(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, heads // groups)).sum(2)

    s = q(query, "scores", "query") @ each(q(key, "scores", "key")).mT * scale
    p = torch.softmax(s.masked_fill(~mask, -torch.inf), -1)
    y = q(p, "output", "probabilities") @ each(q(value, "output", "value"))
    g = torch.linspace(-1, 2, y.numel()).view(y.shape).double()
    dv = summed(q(p, "grad_value", "probabilities").mT @ q(g, "grad_value", "grad_output"))
    dp = q(g, "grad_probabilities", "grad_output") @ each(q(value, "grad_probabilities", "value")).mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    dq = q(ds, "grad_query", "grad_scores") @ each(q(key, "grad_query", "key")) * scale
    dk = summed(q(ds, "grad_key", "grad_scores").mT @ q(query, "grad_key", "query") * scale)
    return [y, dq, dk, dv]


CASES = {"fp8": FP8, "mx": MX, "each its own": MX | {"operands": "per_product"}, **{o: {o: "e4m3fn"} for o in ROLES}}


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("casts", CASES.values(), ids=CASES)
def test_its_casts_are_those_of_a_float64_attention_by_hand(casts: dict[str, Any], groups: int) -> None:
    spec, inputs = AttentionSpec.made_from(casts), given(groups)
    run = QuantizedAttention(spec, "site", 0)
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    looked_at = causal & (torch.arange(12) != 2)[None] | torch.eye(12, dtype=torch.bool)
    for mask, how in ((causal, {"causal": True}), (looked_at, {"mask": looked_at})):
        for made, expected in zip(step(run, inputs, **how), by_hand(spec, inputs, mask), strict=True):
            torch.testing.assert_close(made.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fine_casts_give_what_torch_gives(dtype: torch.dtype) -> None:
    inputs = given(4, dtype=dtype)
    run = QuantizedAttention(AttentionSpec.made_from(FINE), "site", 0)
    for mask in (None, torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.7):
        how: dict[str, Any] = {"causal": True} if mask is None else {"mask": mask}
        plain = {"is_causal": True} if mask is None else {"attn_mask": mask}
        expected = step(functional.scaled_dot_product_attention, inputs, **plain)
        for made, wanted in zip(step(run, inputs, **how), expected, strict=True):
            assert made.dtype == dtype
            torch.testing.assert_close(made, wanted, rtol=2e-2, atol=0.06 if dtype == torch.bfloat16 else 6e-3)


def test_a_query_that_looks_at_nothing_gives_nothing() -> None:
    inputs = given()
    mask = torch.ones(12, 12, dtype=torch.bool).tril(-1)
    y, *grads = step(QuantizedAttention(AttentionSpec.made_from(FP8), "site", 0), inputs, mask=mask)
    assert not y[:, :, 0].any() and all(torch.isfinite(g).all() for g in grads)


def gpt(**sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    return ModelSpec.of({"kind": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 8, **sizes}).build(20, 20)  # type: ignore[no-any-return]


def tokens() -> Tensor:
    return torch.randint(20, (2, 8), generator=torch.Generator().manual_seed(1))


def policy(casts: dict[str, Any], *others: Any, place: str = "attention") -> dict[str, Any]:
    return {"rules": (*others, {"place": place, "attention": casts})}


def one(model: nn.Module, run: Any = None) -> list[Tensor]:
    """Logits and gradients of a step."""
    model.zero_grad()
    y = (model if run is None else run)(tokens())
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_where_attention_is_not_cast_nothing_is_there() -> None:
    """Torch's kernel runs, as it did, where no slot of attention is cast, and again after dequantize_model."""
    model, plain = gpt(), gpt()
    expected = one(plain)
    quantize_model(model, {"rules": [{"place": "attention", "attention": {}}]})
    assert not quantizers(model) and all(CHILD not in m._modules for m in model.modules())
    quantize_model(model, policy(FP8))
    assert {q.site for q in quantizers(model)} == {f"blocks.{i}.attention/{name}" for i in range(2) for name in ROLES}
    assert not same(one(model), expected)
    with unrecorded(model), casts_off(model):
        assert same(one(model), expected)
    assert same(one(dequantize_model(model)), expected)


def test_the_function_is_torchs_where_its_module_has_no_casts() -> None:
    inputs = given(2)
    made = step(lambda *qkv: attention(nn.Module(), *qkv), inputs)
    expected = step(lambda *qkv: functional.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True), inputs)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_rules_for_attention_and_for_layers_do_not_decide_each_other() -> None:
    """Whichever comes first; and a rule without casts leaves both as they are."""
    body = {"place": "body", "weight": "e4m3fn"}
    for rules in ([body, *policy(FP8)["rules"]], [*policy(FP8)["rules"], body]):
        model = quantize_model(gpt(), {"rules": rules})
        assert len(quantizers(model)) == 2 * (6 + 4)
    model = quantize_model(gpt(), policy(FP8, {"match": "blocks.0.*"}, body))
    sites = "blocks.1.attention blocks.1.attention.qkv blocks.1.attention.proj blocks.1.mlp.up blocks.1.mlp.down"
    assert {q.site.split("/")[0] for q in quantizers(model)} == set(sites.split())
    model = quantize_model(gpt(), policy({"key": "e4m3fn"}, place="body.last(1)"))
    assert [q.site for q in quantizers(model)] == ["blocks.1.attention/key"]


DELAYED = {"kind": "delayed", "history": 4, "scale": "real", "arithmetic": "te"}
DPA: dict[str, Any] = {
    **{name: {"format": "e4m3fn", "scaling": DELAYED} for name in FORWARD},
    **{name: {"format": "e5m2", "scaling": DELAYED} for name in BACKWARD},
}


@pytest.mark.parametrize(
    "casts", [DPA, FP8 | {"grad_scores": {"format": "e5m2", "rounding": "stochastic"}}], ids=["delayed", "stochastic"]
)
def test_a_step_taken_up_again_is_the_same(casts: dict[str, Any]) -> None:
    """State is the casts': amaxes, counters. What is copied in the middle goes on as the original."""
    model = quantize_model(gpt(), policy(casts))
    one(model), commit(model), one(model), commit(model)
    other = quantize_model(gpt(), policy(casts))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    expected = one(model)
    assert same(one(other), expected)
    commit(other)
    assert same(one(other), expected) == (casts is DPA), "the next step draws other bits"


@pytest.mark.parametrize(
    ("backend", "groups"),
    [
        ("eager", 2),
        *(pytest.param(how, n, marks=pytest.mark.long) for how in ("aot_eager", "inductor") for n in (4, 2)),
    ],
)
@pytest.mark.needs("c++")
def test_compiled_it_is_one_graph_with_the_same_bits(backend: str, groups: int) -> None:
    torch._dynamo.reset()
    casts = MX | {"operands": "per_product", "grad_scores": {"format": "e5m2", "rounding": "stochastic"}}
    spec = AttentionSpec.made_from({"key": "e4m3fn", "grad_scores": "e5m2"} if backend == "eager" else casts)
    inputs = given(groups, dtype=torch.bfloat16)
    eager, compiled = (QuantizedAttention(spec, "site", 0) for _ in range(2))
    run = torch.compile(compiled, fullgraph=True, backend=backend)
    for _ in range(2):
        assert same(step(eager, inputs, causal=True), step(run, inputs, causal=True))
        commit(eager), commit(compiled)


SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def stock(name: str, head: str, how: str = "sdpa", layers: int = 2) -> Any:
    """A small model of transformers with weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra; its models are built")
    more = {"Llama": {"num_key_value_heads": 2}, "Mixtral": {"num_key_value_heads": 2, "num_local_experts": 2}}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{name}Config")(
            **SIZES | {"num_hidden_layers": layers}, **more.get(name, {}), attn_implementation=how
        )
        return getattr(transformers, name + head)(config).eval()


def answer(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    made = model(input_ids=ids, attention_mask=mask)
    found: Tensor = made.logits if hasattr(made, "logits") else made.last_hidden_state
    return found.detach()


@pytest.mark.parametrize("how", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "head", "causal"),
    [("Llama", "ForCausalLM", True), ("Mixtral", "ForCausalLM", True), ("Bert", "Model", False)],
)
def test_a_future_token_changes_what_it_may(name: str, head: str, causal: bool, how: str) -> None:
    """With a function registered alone transformers makes no mask, and says nothing; here it is the one before."""
    model = stock(name, head, how)
    ids = torch.randint(1, 64, (2, 10), generator=torch.Generator().manual_seed(2))
    padded = torch.ones_like(ids).index_fill(1, torch.arange(2), 0)
    plain, plain_padded = answer(model, ids), answer(model, ids, padded)
    quantize_model(model, policy(FINE))
    assert len(quantizers(model)) == 12 and model.config._attn_implementation == f"altgrad_{how}"
    made = answer(model, ids)
    assert 0 < (made - plain).abs().max() < 1e-2
    torch.testing.assert_close(answer(model, ids, padded)[:, 2:], plain_padded[:, 2:], rtol=0, atol=1e-2)
    changed = answer(model, torch.cat((ids[:, :-1], (ids[:, -1:] + 1) % 64), 1))
    assert torch.equal(changed[:, :-1], made[:, :-1]) == causal
    if causal:
        ahead = copy.deepcopy(model)
        ahead.config._attn_implementation = how
        assert torch.equal(answer(ahead, ids), plain), "a copy has a configuration of its own"
    with casts_off(model):
        assert torch.equal(answer(model, ids), plain)
    dequantize_model(model)
    assert torch.equal(answer(model, ids), plain) and model.config._attn_implementation == how


def test_blocks_without_casts_run_what_they_ran() -> None:
    """One configuration serves all blocks of a model, so that those without casts come by the same function."""
    model = stock("Llama", "ForCausalLM")
    ids = torch.randint(1, 64, (2, 10), generator=torch.Generator().manual_seed(2))
    first: dict[str, Tensor] = {}

    def keep(_: Any, __: Any, output: Any) -> None:
        first["now"] = output[0].detach()

    model.model.layers[0].self_attn.register_forward_hook(keep)
    answer(model, ids)
    before = first["now"]
    quantize_model(model, policy(FP8, place="body.last(1)"))
    answer(model, ids)
    assert torch.equal(first["now"], before) and len(attention_modules(model)) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_casts_of_keys_and_values_are_those_of_a_cache_that_holds_them() -> None:
    """With a scale for each token, which nothing behind it changes: a full sequence gives what decoding gives."""
    rowwise = {"format": "e4m3fn", "scaling": {"kind": "current", "granularity": "channel"}}
    casts = {"key": rowwise, "value": rowwise | {"scaling": "unscaled"}}
    model = quantize_model(stock("Llama", "ForCausalLM"), policy(casts))
    ids = torch.randint(1, 64, (1, 6), generator=torch.Generator().manual_seed(2))
    whole, cache, steps = answer(model, ids), None, []
    for position in range(6):
        made = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = made.past_key_values
        steps.append(made.logits.detach())
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-5)


class Own(nn.Module):
    """Attention that nothing can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attention": nn.Linear(4, 4)}) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "rules", "says"),
    [
        (Own, policy(FP8), "no attention of this model can be reached: none of its modules computes it through"),
        (gpt, {"rules": [{"match": "*.mlp.*", "weight": "e4m3fn", "attention": FP8}]},
         "'*.mlp.*' matches no attention module, only whose slots these are; there are blocks.0.attention, blocks.1"),
        (gpt, policy(FP8, {"place": "attention"}), "attention of place attention decides nothing: earlier rules match"),
        (gpt, policy(FP8, place="norms"), "place norms holds no attention; use place: attention."),
        (lambda: gpt(dropout=0.1), policy(FP8), "blocks.0.attention has dropout 0.1, which attention with casts"),
        (gpt, policy({"query": {"format": "e4m3fn", "source": "forward"}}), "attention.query has source: forward"),
        (gpt, policy({"grad_scores": {"format": "e5m2", "gradient": "clipped"}}), "has no meaning for attention.grad"),
        (gpt, policy({"quarry": "e4m3fn"}), "'quarry' is not a key of the casts of attention. Did you mean 'query'?"),
        (gpt, policy({"key": {"format": "e4m3fn", "scaling": {"kind": "delayed", "granularity": "channel"}}}),
         "blocks.0.attention, attention.key: delayed scaling by channel needs a fixed number of rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(model: Any, rules: Any, says: str) -> None:
    before = model()
    with pytest.raises((LocatedError, SpecError, ValueError)) as caught:
        quantize_model(before, rules)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not quantizers(before), "everything is checked before anything is changed"


def test_what_a_pass_cannot_have_is_said_in_one_line() -> None:
    run, inputs = QuantizedAttention(AttentionSpec.made_from(FP8), "site", 0), given()
    with pytest.raises(ValueError, match=r"attention has dropout 0.1 and casts, which do not go together; set it to 0"):
        run(*inputs, dropout=0.1)
    with pytest.raises(ValueError, match=r"attention has a mask \(or position bias\) that is learnt"):
        run(*inputs, mask=torch.zeros(12, 12, requires_grad=True))
    model = quantize_model(stock("Bert", "Model"), policy(FP8)).train()
    with pytest.raises(ValueError, match=r"attention has dropout 0.1 and casts"):
        answer(model, torch.ones(1, 4, dtype=torch.int64))


def test_casts_that_do_not_run_are_refused_in_the_first_pass() -> None:
    model = quantize_model(stock("Llama", "ForCausalLM"), policy(FP8))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn has casts of attention, but they do not run"):
        answer(model, torch.ones(1, 4, dtype=torch.int64))
    model = quantize_model(gpt(), policy(FP8))
    one(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_policy_without_attention_says_what_it_said() -> None:
    rule = PrecisionPolicy.made_from({"rules": [{"match": "*", "weight": "e4m3fn"}]}).tree()["rules"][0]
    assert not {"attention", "outputs"} & rule.keys()


@pytest.mark.long
def test_a_watched_stock_llama_in_a_loop_of_ones_own_is_one_graph() -> None:
    """`fullgraph`: a break is an error. Weights and what monitors say are those of the eager loop."""
    torch._dynamo.reset()
    found: list[Any] = []
    ids = torch.randint(1, 64, (2, 8), generator=torch.Generator().manual_seed(2))
    for compiled in (False, True):
        model = stock("Llama", "ForCausalLM", layers=1).train()
        rules = [{"place": "norms", "weight": "e4m3fn"}, {"place": "body", "weight": "e4m3fn"}]
        quantize_model(model, policy(FP8 | {"query": DPA["query"]}, *rules))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = altgrad.watch(model, optimizer, [{"kind": "range", "every": 1}, "finite"])
        model.model.config.use_cache = False
        run = torch.compile(model, fullgraph=True, backend="eager") if compiled else model
        seen = []
        for _ in range(2):
            run(input_ids=ids).logits.square().mean().backward()
            optimizer.step(), optimizer.zero_grad()
            altgrad.commit(model)
            seen.append({key: value for key, value in watch.metrics.items() if not key.startswith("time/")})
        found.append((seen, [p.detach() for p in model.parameters()]))
    (eager, weights), (one, others) = found
    assert one == eager and same(others, weights)
    assert {f"range/model.layers.0.self_attn/{name}/amax" for name in ROLES} <= one[1].keys()
    assert "range/model.layers.0.input_layernorm/weight/saturation_rate" in one[1]
