"""Learned ranks for a model and data of your own: search, ranks, retrain, save, with plain PyTorch modules.

    python examples/library.py --output outputs/library

The model reads two numbers and says whether they have the same sign; three frozen layers stand for its pre-training.
"""

import argparse

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, build_adapter, fix_loss_scale


class SameSign(nn.Module):
    """Whatever returns a dictionary with a `loss` can be searched."""

    def __init__(self, width=32):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, points, labels=None):
        logits = self.last(torch.relu(self.second(torch.relu(self.first(points)))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def make_data(count=512, seed=1):
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(points, (points.prod(dim=1) > 0).long())


def collate(rows):
    points, labels = zip(*rows)
    return {"points": torch.stack(points), "labels": torch.stack(labels)}


@torch.no_grad()
def accuracy(model) -> float:
    points, labels = make_data(seed=2).tensors
    return (model(points)["logits"].argmax(dim=1) == labels).float().mean().item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/library")
    parser.add_argument("--search_steps", type=int, default=80)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(argv)

    data = make_data()
    lora = LoraConfig(target_modules=["first", "second", "last"], lora_alpha=8)
    shared = {"learning_rate": 2e-2, "per_device_train_batch_size": 32, "report_to": "none", "use_cpu": True}

    search = AutoLoraTrainer(
        SameSign(),
        AutoLoraTrainingArguments(f"{options.output}/search", max_steps=options.search_steps, **shared),
        train_dataset=data,
        data_collator=collate,
        peft_config=lora,
    )
    search.train()
    print(search.learned_ranks)
    search.learned_ranks.save(f"{options.output}/ranks.json")

    adapted = build_adapter(SameSign(), search.learned_ranks, lora)
    search.start_retrain(adapted)  # begin where the search ended; without this line: with the pre-trained model
    arguments = TrainingArguments(options.output, max_steps=options.steps, save_strategy="no", **shared)
    trainer = Trainer(adapted, arguments, train_dataset=data, data_collator=collate)
    fix_loss_scale(trainer).train()  # whatever the model, accumulated batches are one batch
    adapted.save_pretrained(options.output)

    loaded = PeftModel.from_pretrained(SameSign(), options.output).eval()
    print(f"accuracy {accuracy(SameSign()):.2f} before, {accuracy(loaded):.2f} after; adapter in {options.output}")


if __name__ == "__main__":
    main()
