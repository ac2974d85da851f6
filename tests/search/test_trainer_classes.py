"""The search as a mixin over other Trainers, and the examples as they are printed."""

import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from autolora_trainer import LearnedRanks
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.training.passes import fix_loss_scale
from examples import library, seq2seq
from tests.helpers.models import byte_tokenizer, padded
from tests.helpers.rows import write_rows
from tests.helpers.trainings import short_training

LORA = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], lora_alpha=8)
PAIRS = [{"source": word, "target": word[::-1]} for word in "one two three four five six seven eight".split()]


def tiny_t5():
    torch.manual_seed(0)
    sizes = dict(vocab_size=258, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0)
    return T5ForConditionalGeneration(
        T5Config(**sizes, decoder_start_token_id=257, pad_token_id=257, eos_token_id=257, initializer_factor=0.5)
    )


def pairs():
    tokenizer = byte_tokenizer(llama=True)
    return Dataset.from_list([dict(tokenizer(r["source"], text_target=r["target"])) for r in PAIRS * 4])


def searcher(folder, **changes):
    settings = dict(max_steps=6, initial_rank=4, hypergradient_interval=1, **changes)
    tokenizer, model = padded(byte_tokenizer(llama=True)), tiny_t5()
    return seq2seq.AutoLoraSeq2SeqTrainer(
        model,
        short_training(folder, seq2seq.AutoLoraSeq2SeqTrainingArguments, **settings),
        train_dataset=pairs(),
        eval_dataset=pairs(),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
        peft_config=LORA,
    )


def test_search_on_an_encoder_and_a_decoder(tmp_path):
    """Self-attention of both and cross-attention: six modules a block pair; the adapter loads and generates."""
    trainer = searcher(tmp_path, predict_with_generate=True, generation_max_length=6)
    trainer.train()
    ranks = trainer.learned_ranks
    assert len(ranks.ranks) == 2 * 6 and (trainer.gates.logits != 0).all()
    assert any("EncDecAttention" in name for name in ranks.ranks)
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(pairs()).predictions.shape[0] == 32  # of Seq2SeqTrainer: generated
    adapted = build_adapter(tiny_t5(), ranks, LORA)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_t5(), tmp_path / "adapter")
    assert loaded.generate(input_ids=torch.tensor([[5, 6, 257]]), max_new_tokens=3).shape[0] == 1


def test_accumulated_batches_are_one_batch(tmp_path):
    """The loss of four micro-batches is that of the whole batch: T5 averages over its own rows if nobody looks."""
    norms = []
    for size, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model, tokenizer = get_peft_model(tiny_t5(), LORA), padded(byte_tokenizer(llama=True))
        arguments = short_training(
            tmp_path,
            Seq2SeqTrainingArguments,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        collator = DataCollatorForSeq2Seq(tokenizer, model)
        trainer = fix_loss_scale(Seq2SeqTrainer(model, arguments, train_dataset=pairs(), data_collator=collator))
        trainer.train()
        norms.append([trainer.state.log_history[0][name] for name in ("loss", "grad_norm")])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_seq2seq_example_runs_and_its_adapter_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_t5().save_pretrained("model")
    padded(byte_tokenizer(llama=True)).save_pretrained("model")
    write_rows(tmp_path / "pairs.jsonl", PAIRS * 4)
    seq2seq.main("--model model --data pairs.jsonl --output out --search_steps 6 --steps 2".split())
    loaded = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained("model"), "out")
    learned = LearnedRanks.load("out/ranks.json").ranks
    assert {n: layer.r["default"] for n, layer in lora_layers(loaded).items()} == {
        n: r for n, r in learned.items() if r
    }


def test_library_example_learns_what_its_frozen_layers_cannot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    library.main(["--output", "out"])
    before, after = map(float, re.search(r"accuracy (\S+) before, (\S+) after", capsys.readouterr().out).groups())
    assert before < 0.7 and after > 0.9
    assert set(LearnedRanks.load("out/ranks.json").ranks) == {"first", "second", "last"}
