"""Do several processes learn what one does, however many rows there are?"""

import os

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from peft import LoraConfig
from torch.utils.data import BatchSampler
from transformers import RobertaForTokenClassification

from autolora_trainer import AutoLoraTrainer, build_adapter
from autolora_trainer.training.passes import fix_loss_scale
from autolora_trainer.training.shares import Shares
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.models import tiny_llama, tiny_roberta
from tests.helpers.processes import in_processes
from tests.helpers.trainings import arguments, short_training


@pytest.mark.parametrize("size, processes", [(1, 4), (4, 2), (3, 3), (8, 1), (2, 4)])
def test_every_row_of_an_epoch_is_in_one_share_and_the_last_batch_is_shared_evenly(size, processes):
    for rows in range(1, 41):
        shares = [Shares(range(rows), size, False, index, processes) for index in range(processes)]
        batches = list(zip(*map(list, shares), strict=True))  # as many in every process
        assert len(batches) == len(shares[0]) == -(-rows // (size * processes))
        whole = [[BatchSampler(range(rows), size, True), processes, index] for index in range(processes)]
        full = list(zip(*(BatchSamplerShard(*own) for own in whole)))  # as accelerate shares them
        assert batches[: len(full)] == full
        last = [own for own, share in zip(batches[-1], shares) if not share.ends_idle]
        assert [row for batch in [*batches[:-1], last] for own in batch for row in own] == list(range(rows))
        assert len(last[0]) - len(last[-1]) <= (len(last) == processes)


# Kind, rows, sampling, accumulation in one process and in two. Of 38 rows the last batch of 16 has 3 in the search and
# 6 in the final training; of 35 it has 1, so that a process has none, and 3.
CASES = [
    ("classes", 38, "random", 4, 1),
    ("texts", 35, "group_by_length", 2, 2),
    ("tokens", 35, "group_by_length", 2, 1),
]


def rows_of(kind, count):
    """Of unequal length, and with unequally many targets."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        ids = torch.randint(5, 60, (3 + index % 7,), generator=generator)
        tags = torch.where(torch.rand(len(ids), generator=generator) < 0.5, ids % 2, -100)
        tags[-1] = ids[-1] % 2
        labels = {"classes": index % 2, "texts": torch.where(tags == -100, -100, ids), "tokens": tags}[kind]
        made.append({"input_ids": ids, "labels": labels})
    return made


def padded(rows):
    fill = lambda name, value: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], True, value)
    labels = [row["labels"] for row in rows]
    labels = fill("labels", -100) if torch.is_tensor(labels[0]) else torch.tensor(labels)
    mask = (fill("input_ids", -1) != -1).long()
    return {"input_ids": fill("input_ids", 0), "attention_mask": mask, "labels": labels}


def model_of(kind):
    torch.manual_seed(0)
    if kind == "texts":
        model = tiny_llama(num_hidden_layers=1, initializer_range=0.2)
        return model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], lora_alpha=8)
    model, task = tiny_roberta(num_hidden_layers=1, initializer_range=0.2), "SEQ_CLS"
    if kind == "tokens":
        model, task = RobertaForTokenClassification(model.config), "TOKEN_CLS"
    return model, LoraConfig(task_type=task, target_modules=["query", "value"], lora_alpha=8)


def learned(folder, kind, count, sampling, *accumulations):
    """Ranks and numbers of a search, and of a final training with an adapter of these ranks."""
    world, (model, config), data = int(os.environ.get("WORLD_SIZE", 1)), model_of(kind), rows_of(kind, count)
    accumulation = accumulations[world - 1]
    batch = {
        "per_device_train_batch_size": 16 // accumulation // world, "gradient_accumulation_steps": accumulation,
        "per_device_eval_batch_size": 8 // world, "optim": "adamw_torch", "adam_epsilon": 1e-4,
        "train_sampling_strategy": sampling,
    }  # fmt: skip
    search = AutoLoraTrainer(
        model,
        arguments(folder, max_steps=3, size="lora:2", hypergradient_interval=1, logging_strategy="no", **batch),
        train_dataset=data,
        data_collator=padded,
        peft_config=config,
    )
    search.train()
    ranks = search.learned_ranks
    own = short_training(folder, num_train_epochs=1, logging_strategy="no", **batch)
    adapter = build_adapter(model_of(kind)[0], ranks, config)
    trainer = fix_loss_scale(FinalTrainer(adapter, own, padded, data, data))
    numbers = {
        "loss": torch.tensor(trainer.train().training_loss),
        "selection": search.gates.selection,
        "contributions": torch.tensor([module.contributions for module in ranks.modules.values()]),
        "eval_loss": torch.tensor(trainer.evaluate()["eval_loss"]),
        **{name: p.detach() for name, p in adapter.named_parameters() if p.requires_grad},
    }
    return ranks.ranks, numbers


def all_learned(folder, cases):
    found = [learned(folder / "o", *case) for case in cases]
    if os.environ["RANK"] == "0":
        torch.save(found, folder / "found.pt")


def differences(one, other):
    """What two have learned differently."""
    (ranks, numbers), (others, more) = one, other
    gaps = {name: (value - more[name]).abs().max().item() for name, value in numbers.items()}
    return {"ranks": ranks == others, **{name: gap for name, gap in gaps.items() if not gap < 1e-5}}


def test_two_processes_learn_what_one_does_of_any_number_of_rows(tmp_path):
    """α, contributions, ranks, weights and evaluations, in search and final training."""
    in_processes(tmp_path, all_learned, tmp_path, CASES)
    found = torch.load(tmp_path / "found.pt")
    for case, other in zip(CASES, found, strict=True):
        assert differences(learned(tmp_path / "o", *case), other) == {"ranks": True}, case
