"""Hugging Face's Trainer by a published recipe: monitors report into its log, its checkpoints keep their state."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import altgrad

torch.manual_seed(0)
shape = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 64, "n_positions": 32}
model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
altgrad.quantize_model(model, "te_current")  # or a PrecisionPolicy, or a recipe of your own

data = [{"input_ids": row, "labels": row} for row in torch.randint(64, (64, 16))]
settings = TrainingArguments("out", max_steps=6, logging_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
trainer = Trainer(model, settings, train_dataset=data)
altgrad.watch_trainer(trainer, ["range", {"kind": "updates", "every": 2}], log=["*/underflow_rate", "*/stall_ratio"])
trainer.train()

row = next(row for row in trainer.state.log_history if any("underflow_rate" in key for key in row))
for key in sorted(row)[:5]:
    print(key, row[key])
