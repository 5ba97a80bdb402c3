"""Your own training loop in FP8: quantise a model in place, watch its casts, read alarms, get the plain model back."""

import torch
from torch import nn

import altgrad

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 8))
policy = altgrad.PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2")
altgrad.quantize_model(model, policy)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
watch = altgrad.watch(model, optimizer, monitors=["range", "updates"])
x, y = torch.randn(64, 32), torch.randint(8, (64,))

for step in range(1, 21):
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    altgrad.commit(model)  # closes the step: delayed scales, random bits
    for alarm in watch.alarms:
        print(f"step {step}: {alarm}")
    if "range/0/grad_output/underflow_rate" in watch.metrics:
        print(f"step {step}: loss {loss:.3f}, underflow {watch.metrics['range/0/grad_output/underflow_rate']:.2%}")

watch.close()
altgrad.dequantize_model(model)
print("weights are float32 again:", type(model[0]).__name__)
