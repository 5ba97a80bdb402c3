"""Lightning: quantise the module before fitting, close every step after the optimizer's."""

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import altgrad


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
        altgrad.quantize_model(self.net, altgrad.PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn"))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def on_train_batch_end(self, *_: object) -> None:
        altgrad.commit(self.net)


torch.manual_seed(0)
data = DataLoader(TensorDataset(torch.randn(64, 16), torch.randint(4, (64,))), batch_size=16)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
trainer.fit(Classifier(), data)
print("steps:", trainer.global_step)
