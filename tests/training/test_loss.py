"""Is the loss the mean over what is predicted, however a batch is split?"""

import pytest
import torch
import transformers.trainer
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BertConfig,
    BertLMHeadModel,
    CLIPConfig,
    ConvNextConfig,
    ConvNextForImageClassification,
    CTRLConfig,
    CTRLLMHeadModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Siglip2Config,
    Swinv2Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments
from autolora_trainer.tasks import nlg
from autolora_trainer.training.passes import _reads_item_count, fix_loss_scale
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.measures import by_hand
from tests.helpers.models import byte_gpt2, byte_llama, byte_tokenizer, lora, tiny_gpt2, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import arguments, short_training


def training_rows(tokenizer):
    texts = {"name : A": ["one", "another text"], "name : B | near : C": ["a third, longer text", "x"]}
    return nlg.encode_pairs(nlg.encode_prompts(list(texts), tokenizer), list(texts.values()), tokenizer, 99)[0]


def trainer_of(model, folder, rows, trainer_class=FinalTrainer, **arguments):
    settings = {"output_dir": str(folder), "use_cpu": True, "report_to": [], "optim": "sgd", "max_grad_norm": 0.0}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "lr_scheduler_type": "constant", "learning_rate": 0.1}
    arguments = TrainingArguments(**{**settings, **arguments})
    return fix_loss_scale(
        trainer_class(model=model, args=arguments, train_dataset=rows, data_collator=nlg.PairCollator(256))
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("build, target", [(byte_gpt2, "c_attn"), (byte_llama, "q_proj")])
def test_loss_is_the_mean_over_text_tokens_however_the_batch_is_split(tmp_path, build, target, smoothing):
    """transformers 5.23's label smoothing divides by the tokens of the whole step, as the models' own loss does."""
    rows, weights = training_rows(byte_tokenizer()), []
    for batch, steps in ((4, 1), (1, 4)):
        torch.manual_seed(0)
        model = get_peft_model(build(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[target]))
        expected = by_hand(model, rows, smoothing)
        trainer = trainer_of(
            model,
            tmp_path,
            rows,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            label_smoothing_factor=smoothing,
        )
        assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)
        weights.append([p.detach() for n, p in model.named_parameters() if "lora_B" in n])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*weights))
    assert any(weight.abs().max() > 0 for weight in weights[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_search_descends_the_same_loss_on_both_splits(tmp_path, smoothing):
    """Its first step, in two micro-batches, whose texts have unequal lengths."""
    rows = training_rows(byte_tokenizer())
    model = lora(byte_gpt2(), 2, ["c_attn"], task_type="CAUSAL_LM")
    expected = by_hand(model, rows, smoothing)
    arguments = AutoLoraTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        logging_steps=1,
        label_smoothing_factor=smoothing,
        initial_rank=2,
        hypergradient_interval=1,
        size="lora:1",  # all of D_val orders
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    collator = nlg.PairCollator(256)
    trainer = AutoLoraTrainer(model, arguments, train_dataset=rows, val_dataset=rows, data_collator=collator)
    trainer.train()
    logs = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert logs["search_train_loss"] == pytest.approx(expected, rel=1e-4)
    assert logs["search_val_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", ["search", "plain"])
def test_loss_is_the_mean_over_the_window(tmp_path, kind, accumulation):
    """Uncorrected, transformers 5.23 reports and differentiates `accumulation` times the loss of a classification
    head."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4))
    settings = dict(
        max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation, logging_steps=1
    )
    if kind == "search":
        trainer = AutoLoraTrainer(model, arguments(tmp_path, **settings), train_dataset=rows())
    else:
        args = TrainingArguments(
            str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", **settings
        )
        trainer = fix_loss_scale(Trainer(model, args, train_dataset=rows()))
    trainer.train()
    first = trainer.state.log_history[0]
    assert 0.5 < first.get("loss", first.get("search_train_loss")) < 0.9  # ln 2


@pytest.mark.parametrize(
    "kind, labels", [("CLIP", 2), ("Siglip2", 2), ("Beit", 2), ("ConvNext", 1), ("Swinv2", 2), ("ViT", 2), ("ViT", 1)]
)
def test_loss_of_an_image_classifier_is_the_mean_over_the_window(tmp_path, kind, labels):
    """The head of ViT divides by the count that Trainer passes, though not for regression; those of the others never,
    though their `forward` has `**kwargs`."""
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=labels)
    config = {
        "CLIP": lambda: CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 16}, num_labels=labels),
        "Siglip2": lambda: Siglip2Config(vision_config={**vision, "num_patches": 4, "patch_size": 16}),
        "Beit": lambda: BeitConfig(image_size=32, **vision),
        "ConvNext": lambda: ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_labels=labels),
        "Swinv2": lambda: Swinv2Config(
            image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=labels
        ),
        "ViT": lambda: ViTConfig(image_size=32, **vision),
    }[kind]()
    torch.manual_seed(0)
    config.num_labels = labels
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    targets = torch.randint(0, 2, (8,)) if labels > 1 else torch.randn(8, 1)
    shapes = {"pixel_values": (3, 32, 32)} if kind != "Siglip2" else {"pixel_values": (4, 3 * 16 * 16)}
    data = [
        {**{name: torch.randn(shape) for name, shape in shapes.items()}, "labels": target.squeeze()}
        for target in targets
    ]
    if kind == "Siglip2":
        for row in data:
            row |= {"pixel_attention_mask": torch.ones(4, dtype=torch.long), "spatial_shapes": torch.tensor([2, 2])}
    logged = []
    for size, accumulation in ((8, 1), (2, 4)):
        settings = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, learning_rate=0.0)
        args = short_training(tmp_path, max_steps=1, logging_steps=1, **settings)
        trainer = fix_loss_scale(Trainer(model, args, train_dataset=data))
        trainer.train()
        logged.append(trainer.state.log_history[0]["loss"])
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)


def test_who_reads_the_count_of_items():
    readers = [GPT2LMHeadModel, OpenAIGPTLMHeadModel, CTRLLMHeadModel, BertLMHeadModel, LlamaForCausalLM]
    others = [T5ForConditionalGeneration, ConvNextForImageClassification, BeitForSemanticSegmentation]
    for kind in readers + others:
        assert _reads_item_count(kind.__new__(kind)) == (kind in readers), kind.__name__


@pytest.mark.parametrize(
    "model",
    [
        tiny_gpt2,
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=40)),
        lambda: CTRLLMHeadModel(CTRLConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, dff=32)),
        lambda: BertLMHeadModel(
            BertConfig(
                vocab_size=64,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                is_decoder=True,
            )
        ),
    ],
    ids=["gpt2", "openai-gpt", "ctrl", "bert"],
)
def test_loss_of_a_language_model_counts_every_target(tmp_path, model):
    model = model()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    ids = torch.randint(0, 60, (2, 10))
    trainer = fix_loss_scale(Trainer(model, args))
    batch = {"input_ids": ids, "labels": ids}
    items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(model.eval(), batch, num_items_in_batch=items)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
