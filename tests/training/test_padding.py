"""Does padding change nothing: its token, its side, in the library as in the scripts?"""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaConfig,
)

from autolora_trainer import AutoLoraTrainer, compress
from autolora_trainer.tasks.generation import generate_texts
from autolora_trainer.training.padding import align_tokens, padding_error, settle_side, tolerance, two_lengths
from tests.helpers.models import byte_gpt2, byte_llama, byte_tokenizer, lora, padded, tiny_llama
from tests.helpers.trainings import arguments, short_training

LORA = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])


def classified(count=32):
    generator = torch.Generator().manual_seed(0)
    lengths = [3 + i * 5 % 9 for i in range(count)]
    ids = [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_list([{"input_ids": own, "attention_mask": [1] * len(own), "labels": i % 2}
                              for i, own in enumerate(ids)])  # fmt: skip


def classifier(kind="llama"):
    """A decoder whose config does not have the padding token of `byte_tokenizer`, 256."""
    torch.manual_seed(0)
    shape = {"vocab_size": 258, "initializer_range": 0.5, "pad_token_id": 0}
    if kind == "llama":
        return tiny_llama(LlamaForSequenceClassification, **shape)
    return GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **shape))


def test_the_side_is_the_one_that_the_model_passes_over():
    tokenizer, model, rows = padded(byte_tokenizer()), classifier("gpt2"), classified()
    tokenizer.padding_side = "left"
    collate = DataCollatorWithPadding(tokenizer)
    assert padding_error(model, collate, *two_lengths(rows)) > 0.1
    assert settle_side(model, tokenizer, collate, rows, ("left",)).keys() == {"left"}  # it stays as it was
    align_tokens(model, tokenizer)
    assert settle_side(model, tokenizer, collate, rows, ("left", "right")) == {} and tokenizer.padding_side == "right"
    assert padding_error(model, collate, *two_lengths(rows)) < tolerance(model)
    assert two_lengths(rows.select([0, 0])) is None and two_lengths([(1, 2), (3, 4)]) is None


def test_the_text_part_of_a_model_gets_the_token_too():
    config = LlavaConfig(text_config=LlamaConfig(vocab_size=300, pad_token_id=0))
    align_tokens(
        SimpleNamespace(config=config, generation_config=None, named_modules=lambda: ()), padded(byte_tokenizer())
    )
    assert config.get_text_config().pad_token_id == config.pad_token_id == 256


def test_what_cannot_be_told_is_no_error():
    """A collator that draws words to mask, and a model that fails."""
    tokenizer, rows, drawn = padded(byte_tokenizer()), classified(), torch.get_rng_state()
    tokenizer.add_special_tokens({"mask_token": "a"})
    masks = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.9)
    assert math.isnan(padding_error(GPT2LMHeadModel(byte_gpt2().config), masks, *two_lengths(rows)))
    failing = classifier()
    failing.forward = lambda input_ids, attention_mask: 1 / 0
    torch.set_rng_state(drawn)
    assert math.isnan(padding_error(failing, DataCollatorWithPadding(tokenizer), *two_lengths(rows)))
    assert math.isnan(padding_error(failing, masks, *two_lengths(rows))) and torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("given", ["processing_class", "data_collator"])
def test_a_search_reads_rows_as_they_are_alone(tmp_path, caplog, given):
    tokenizer = padded(byte_tokenizer())
    own = {given: tokenizer if given == "processing_class" else DataCollatorWithPadding(tokenizer)}
    search = AutoLoraTrainer(classifier(), arguments(tmp_path), train_dataset=classified(), peft_config=LORA, **own)
    pair = two_lengths(search.train_dataset)
    assert padding_error(search.model, search.data_collator, *pair) < tolerance(search.model)
    assert "depends on the rows beside it" not in caplog.text
    tokenizer.padding_side = "left"
    targets = LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"])
    AutoLoraTrainer(classifier("gpt2"), arguments(tmp_path), train_dataset=classified(), peft_config=targets, **own)
    assert "what GPT2ForSequenceClassification computes of a row depends on the rows beside it" in caplog.text


def test_a_curve_of_compress_does_not_depend_on_the_batch_and_the_model_keeps_its_config(tmp_path):
    model = lora(classifier(), targets=["q_proj", "v_proj"])
    collate, found = DataCollatorWithPadding(padded(byte_tokenizer())), []
    for size in (1, 17):
        args = short_training(tmp_path, per_device_train_batch_size=size)
        small = compress(model, classified(), args=args, data_collator=collate)
        found.append([point.loss for point in small.curve.points])
    assert found[0][-1] == pytest.approx(found[1][-1], rel=1e-4) and found[0][0] == pytest.approx(
        found[1][0], rel=1e-4
    )
    assert model.config.pad_token_id == 0


class CountsFromTheFirstColumn(GPT2LMHeadModel):
    """As code that comes with a model may do."""

    def forward(self, input_ids=None, position_ids=None, **inputs):
        return super().forward(input_ids, **inputs)


def test_texts_are_the_same_in_any_batch_where_padding_counts():
    tokenizer, model = padded(byte_tokenizer()), CountsFromTheFirstColumn(byte_gpt2().config)
    prompts = [[7] * length + [256] for length in (1, 4, 2, 4, 9)]
    settings = {"num_beams": 1, "max_new_tokens": 8, "one_line": False, "progress": False}
    alone, together = (generate_texts(model, tokenizer, prompts, batch_size=size, **settings) for size in (1, 8))
    assert alone == together


def test_llama_decodes_with_padding():
    tokenizer = padded(byte_tokenizer(llama=True))
    prompts = [[7] * length + [256] for length in (1, 4, 2)]
    asked = []
    model = byte_llama()
    model.register_forward_pre_hook(
        lambda module, args, inputs: asked.append(len(inputs["input_ids"])), with_kwargs=True
    )
    generate_texts(model, tokenizer, prompts, num_beams=1, max_new_tokens=2, batch_size=8, progress=False)
    assert 3 in asked
