"""Teachers with updates of known rank, and a search of them."""

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn

from autolora_trainer import AutoLoraTrainer
from tests.helpers.trainings import arguments


class Planted(nn.Module):
    """Four frozen layers side by side, whose teacher differs from them by updates of rank 0, 1, 2 and 6."""

    ranks = (0, 1, 2, 6)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in self.ranks)

    def forward(self, x, labels=None):
        output = torch.stack([layer(x[:, i]) for i, layer in enumerate(self.layers)], dim=1)  # (batch, 4, 12)
        return {"loss": ((output - labels) ** 2).mean(), "logits": output}


def planted_data(model, count=512):
    x = torch.randn(count, 4, 12)
    updates = [torch.randn(12, r) @ torch.randn(r, 12) / max(1, r) ** 0.5 / 3 for r in model.ranks]
    with torch.no_grad():
        y = torch.stack(
            [x[:, i] @ (layer.weight + u).T for i, (layer, u) in enumerate(zip(model.layers, updates))], dim=1
        )
    return Dataset.from_dict({"x": x.tolist(), "labels": y.tolist()}).with_format("torch")


def planted_search(folder, **changes):
    torch.manual_seed(0)
    model = Planted()
    settings = dict(max_steps=120, initial_rank=8, per_device_train_batch_size=32, learning_rate=2e-2, tolerance=0.001)
    args = arguments(folder, **{**settings, "hypergradient": "first_order", **changes})
    config = LoraConfig(target_modules=r"layers\.\d", lora_alpha=8)
    return AutoLoraTrainer(model, args, train_dataset=planted_data(model), peft_config=config)
