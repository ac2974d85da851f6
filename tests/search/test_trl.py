"""The search on TRL's SFTTrainer: packed rows, the loss on completions alone, and metrics that count training only."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from autolora_trainer.compat import CHECKPOINTING
from autolora_trainer.training.passes import unrecorded
from examples import sft
from tests.helpers.models import byte_llama, byte_tokenizer, padded
from tests.helpers.rows import write_rows
from tests.helpers.trainings import short_training

pytest.importorskip("trl")

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], lora_alpha=8)
PAIRS = [{"prompt": f"name : {n} |", "completion": f" {n} is a pub ."} for n in "Alba Bo Cenador Dori Et Fano".split()]


def searcher(folder, data=None, trainer=sft.AutoLoraSFTTrainer, config=sft.AutoLoraSFTConfig, **changes):
    own = dict(initial_rank=4, hypergradient_interval=1, val_fraction=0.5) if config is sft.AutoLoraSFTConfig else {}
    settings = dict(
        max_steps=4, per_device_train_batch_size=2, logging_steps=1, bf16=False, lr_scheduler_type="constant"
    )
    torch.manual_seed(0)
    model = byte_llama(initializer_range=0.1)
    return trainer(
        model,
        short_training(folder, config, **{**settings, **own, **changes}),
        train_dataset=data or Dataset.from_list(PAIRS * 4),
        processing_class=padded(byte_tokenizer(llama=True)),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8),
    )


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


def test_settings_of_both_are_checked_and_keep_their_defaults(tmp_path):
    config = sft.AutoLoraSFTConfig(str(tmp_path), bf16=False)
    plain = SFTConfig(str(tmp_path), bf16=False)
    assert getattr(config, CHECKPOINTING) and config.learning_rate == plain.learning_rate
    with pytest.raises(ValueError, match="initial_rank must be at least 2"):
        sft.AutoLoraSFTConfig(str(tmp_path), bf16=False, initial_rank=1)


def test_search_on_completions_alone(tmp_path):
    trainer = searcher(tmp_path)
    assert len(trainer.train_dataset) == len(trainer.val_dataset) == 12
    batch = trainer.data_collator([trainer.val_dataset[0]])
    read = byte_tokenizer(llama=True).decode(batch["labels"][batch["labels"] != -100])
    assert read.startswith(" ") and read.endswith("is a pub .</s>")  # no byte of the prompt
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert (trainer.gates.logits != 0).all() and len(trainer.learned_ranks.ranks) == 4
    assert {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])} == {
        n for n in before if "lora_" in n
    }
    assert len(logged(trainer, "search_selection_entropy")) == len(logged(trainer, "search_val_loss")) == 4


def test_packed_rows_are_split_and_searched(tmp_path):
    """Rows are packed before the split: D_val holds packed rows, too, and every token is in one of the two."""
    texts = Dataset.from_list([{"text": pair["prompt"] + pair["completion"]} for pair in PAIRS * 4])
    trainer = searcher(tmp_path, texts, packing=True, max_length=64, per_device_train_batch_size=1)
    rows = [*trainer.train_dataset, *trainer.val_dataset]
    assert len(rows) < len(texts) and all(len(row["seq_lengths"]) >= 1 for row in rows)
    assert any(len(row["seq_lengths"]) > 1 for row in trainer.val_dataset)
    tokens = [len(byte_tokenizer(llama=True)(text)["input_ids"]) + 1 for text in texts["text"]]  # and the end
    assert sum(len(row["input_ids"]) for row in rows) == sum(tokens)
    trainer.train()
    assert (trainer.gates.logits != 0).all()


@pytest.mark.parametrize("hypergradient", ["first_order", "finite_difference"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_metrics_count_the_weight_steps_alone(tmp_path, hypergradient, accumulation):
    """num_tokens is that of the rows that trained weights, and accuracy and entropy are of those rows, as in an
    SFTTrainer that sees the same rows: before lora_B has moved the two compute the same."""
    changes = {"gradient_accumulation_steps": accumulation, "max_steps": 2}
    search = searcher(tmp_path, hypergradient=hypergradient, **changes)
    plain = searcher(tmp_path, search.train_dataset, SFTTrainer, SFTConfig, **changes)
    search.train(), plain.train()
    assert search.selection_passes > 0
    for name in ("num_tokens", "mean_token_accuracy", "entropy"):
        assert len(logged(plain, name)) == 2
        assert logged(search, name)[0] == pytest.approx(logged(plain, name)[0], rel=1e-5), name
    assert logged(search, "num_tokens") == logged(plain, "num_tokens")


def test_only_records_of_compute_loss_are_forgotten():
    class Counter:
        def __init__(self):
            self.steps, self.scores, self.nested = 1, {"a": [1.0]}, {"train": {"loss": [0.5]}, "eval": {}}
            self.model, self.train_dataset = {"weight": torch.zeros(1)}, {"rows": [1]}

    counter = Counter()
    with unrecorded(counter):
        counter.steps += 1
        counter.scores["a"].append(2.0)
        counter.nested["train"]["loss"].append(0.1)
        counter.model["weight"] += 1
        counter.train_dataset["rows"].append(2)
    assert (counter.steps, counter.scores) == (1, {"a": [1.0]})
    assert counter.nested == {"train": {"loss": [0.5]}, "eval": {}}
    assert counter.model["weight"] == 1 and counter.train_dataset == {"rows": [1, 2]}


def test_a_d_val_that_is_not_prepared_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="val_dataset lacks input_ids, .*AutoLoraSFTTrainer has made of train_dataset"
    ):
        sft.AutoLoraSFTTrainer(
            byte_llama(),
            short_training(tmp_path, sft.AutoLoraSFTConfig, bf16=False),
            train_dataset=Dataset.from_list(PAIRS),
            val_dataset=Dataset.from_list(PAIRS),
            processing_class=padded(byte_tokenizer(llama=True)),
            peft_config=LORA,
        )


def test_example_runs_and_its_adapter_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    byte_llama(initializer_range=0.1).save_pretrained("model")
    padded(byte_tokenizer(llama=True)).save_pretrained("model")
    write_rows(tmp_path / "pairs.jsonl", PAIRS * 6)
    sft.main("--model model --data pairs.jsonl --output out --search_steps 6 --steps 2".split())
    with open("out/ranks.json", encoding="utf-8") as file:
        learned = json.load(file)["modules"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "out")
    layers = {
        name: layer.r["default"] for name, layer in loaded.get_base_model().named_modules() if hasattr(layer, "r")
    }
    assert layers == {name: module["rank"] for name, module in learned.items() if module["rank"]}
