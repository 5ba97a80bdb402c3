"""Claims about adapters of PEFT: LoRA and DoRA train over cast layers, put on before the casts or after them."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from altgrad.nn import PrecisionPolicy, QuantizedLinear, commit, dequantize_model, quantize_model, quantizers
from altgrad.quantize import Cast

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed; nothing else needs it")
transformers = pytest.importorskip("transformers")


def model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=64,
    )  # fmt: skip
    made: nn.Module = transformers.LlamaForCausalLM(config)
    return made


def adapted(net: nn.Module, dora: bool) -> nn.Module:
    import peft  # which takes a second

    torch.manual_seed(1)
    found: nn.Module = peft.get_peft_model(
        net, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=dora, init_lora_weights=False)
    )
    return found


def cast(net: nn.Module) -> nn.Module:
    """Every layer of the blocks but the adapters' own."""
    rules: list[dict[str, Any]] = (
        [{"match": "*lora_*"}] if any("lora" in name for name, _ in net.named_modules()) else []
    )
    spec = {"format": "e4m3fn", "scaling": "delayed"}
    rules.append({"match": "*layers*", "weight": spec, "input": spec, "grad_output": "e5m2"})
    return quantize_model(net, PrecisionPolicy.made_from({"rules": rules}))


def losses(net: nn.Module) -> list[float]:
    trained = [p for p in net.parameters() if p.requires_grad]
    assert trained and all("lora" in name for name, p in net.named_parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(2))
    found = []
    for _ in range(4):
        loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        commit(net)
        found.append(float(loss.detach()))
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_train_over_casts_whichever_came_first(dora: bool) -> None:
    """The same losses either way, other ones than without casts; every cast of a base layer sees its passes."""
    outside, inside = adapted(cast(model()), dora), cast(adapted(model(), dora))
    seen: set[str] = set()

    def see(made: Cast) -> None:
        seen.add(made.site)

    for quantizer in quantizers(outside):
        quantizer.watching = True
        quantizer.observers.append(see)
    found = losses(outside)
    assert found == losses(inside) != losses(adapted(model(), dora)) and found[-1] < found[0]
    # Of the layer next to the embedding no gradient is asked for, so its grad_output is never cast.
    assert {q.site for q in quantizers(outside) if q.role != "grad_output"} <= seen
    layers = [m for m in inside.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 7
    dequantize_model(inside)
    assert not any(isinstance(m, QuantizedLinear) for m in inside.modules())
