"""Losses of the user's own: what plain Trainer runs, a search runs, and accumulated batches are one batch."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import DataCollatorForTokenClassification, RobertaForTokenClassification, RobertaModel, Trainer

from autolora_trainer import AutoLoraMixin, AutoLoraTrainer, build_adapter, compress, find_ranks, fix_loss_scale
from autolora_trainer.training.own_loss import Scale, scale_of, wants_count
from tests.helpers.models import lora, tiny_roberta, tiny_tokenizer
from tests.helpers.trainings import arguments, short_training

LORA = LoraConfig(task_type="TOKEN_CLS", target_modules=["query", "value"], lora_alpha=8)
WEIGHTS = torch.tensor([1.0, 5.0])


def tagged(count=32):
    """Rows of unequal length: the mean over micro-batches is another than that over tokens."""
    lengths = [2 + 7 * (row % 3) for row in range(count)]
    return Dataset.from_list(
        [
            {"input_ids": [5 + i % 4 for i in range(n)], "labels": [-100, *(i % 2 for i in range(n - 1))]}
            for n in lengths
        ]
    )


def tagger():
    torch.manual_seed(0)
    return RobertaForTokenClassification(tiny_roberta().config)


def weighted(outputs, labels, reduction="sum"):
    return cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), weight=WEIGHTS, reduction=reduction)


class Divides:
    """As transformers' documentation asks."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = weighted(outputs, labels) / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class DividesWhatItIsGiven:
    def compute_loss(self, model, inputs, **kwargs):  # and gives no outputs, asked or not
        labels = inputs.pop("labels")
        return weighted(model(**inputs), labels) / kwargs["num_items_in_batch"]


class Short:
    def compute_loss(self, model, inputs, num_items_in_batch=None):  # which plain Trainer trains with
        labels = inputs.pop("labels")
        return weighted(model(**inputs), labels) / num_items_in_batch


class Averages:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        return (loss, outputs) if return_outputs else loss


class HandsOn:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)


class HandsOnAll:
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs)


class ForgetsTheCount:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


def divided(outputs, labels, num_items_in_batch=None):
    return weighted(outputs, labels) / num_items_in_batch


OWN = {
    Divides: Scale.COUNT,
    DividesWhatItIsGiven: Scale.COUNT,
    Short: Scale.COUNT,
    Averages: Scale.MEAN,
    HandsOn: Scale.MODEL,
    HandsOnAll: Scale.MODEL,
    ForgetsTheCount: Scale.MEAN,
    None: Scale.MODEL,
}


def kind_of(loss, base=Trainer):
    return base if loss is None else type("Own", (loss, base), {})


@pytest.mark.parametrize("loss", OWN, ids=lambda loss: getattr(loss, "__name__", "Trainer's"))
def test_who_divides_by_the_count_is_read_from_the_code(tmp_path, loss):
    trainer = kind_of(loss)(get_peft_model(tagger(), LORA), short_training(tmp_path), train_dataset=tagged())
    assert scale_of(trainer) is OWN[loss] and wants_count(trainer) == (OWN[loss] is Scale.COUNT)
    counts = trainer.model_accepts_loss_kwargs
    assert fix_loss_scale(trainer).model_accepts_loss_kwargs == (counts and OWN[loss] is Scale.COUNT)
    mixed = type("Mixed", (AutoLoraMixin, kind_of(loss)), {})
    assert scale_of(object.__new__(mixed)) is OWN[loss]


def test_a_loss_without_a_source_is_left_as_plain_trainer_has_it(tmp_path):
    names = {"cross_entropy": cross_entropy}
    exec("def compute_loss(self, model, inputs, num_items_in_batch=None): return 0", names)
    own = type("Own", (Trainer,), {"compute_loss": names["compute_loss"]})
    trainer = own(get_peft_model(tagger(), LORA), short_training(tmp_path), train_dataset=tagged())
    assert fix_loss_scale(trainer).model_accepts_loss_kwargs


def first_step(folder, batch, loss, **changes):
    """(loss, norm of the gradient) of the first step of a plain Trainer that was put right, and of a search's."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 8 // batch, "max_steps": 1}
    data = {
        "train_dataset": tagged(),
        "data_collator": DataCollatorForTokenClassification(tiny_tokenizer()),
        **changes,
    }
    plain = kind_of(loss)(
        lora(tagger(), task_type="TOKEN_CLS"), short_training(folder, logging_steps=1, **sizes), **data
    )
    fix_loss_scale(plain).train()
    search = kind_of(loss, AutoLoraTrainer)(
        lora(tagger(), task_type="TOKEN_CLS"),
        arguments(folder, **sizes, logging_steps=1, size="lora:1", hypergradient="first_order"),
        val_dataset=tagged(),
        **data,
    )
    search.train()
    assert search.learned_ranks.total_rank > 0  # measured by the same loss
    logs = [{k.removeprefix("search_").replace("train_", ""): v for k, v in t.state.log_history[0].items()}
            for t in (plain, search)]  # fmt: skip
    return [[log[name] for name in ("loss", "grad_norm")] for log in logs]


@pytest.mark.parametrize(
    "loss",
    [Divides, Averages, divided],
    ids=lambda loss: getattr(loss, "__name__", "Trainer's"),
)
def test_accumulated_batches_are_one_batch(tmp_path, loss):
    changes = {"compute_loss_func": divided} if loss is divided else {}
    (plain, search), (plain_4, search_4) = (
        first_step(tmp_path, batch, None if changes else loss, **changes) for batch in (8, 2)
    )
    assert plain_4 == pytest.approx(plain, rel=0.2 if loss is Averages else 1e-5)  # which plain Trainer weighs alike
    assert search_4 == pytest.approx(search, rel=1e-4)


def test_find_and_compress_measure_by_a_loss_that_divides(tmp_path):
    collator = DataCollatorForTokenClassification(tiny_tokenizer())
    own = {"trainer_class": kind_of(Short), "data_collator": collator, "args": short_training(tmp_path)}
    assert find_ranks(tagger(), tagged(24), LORA, size="lora:1", search_steps=6, **own).rank_pattern
    assert compress(lora(tagger(), task_type="TOKEN_CLS"), tagged(24), **own).ranks.total_rank > 0


# ---- a loss on pairs, as of sentence-transformers, on the transformers model inside


class Pairs:
    """Every anchor finds its own among the positives of the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = [model(input_ids=inputs[name]).last_hidden_state[:, 0] for name in ("anchor", "positive")]
        logits = 20 * cosine_similarity(found[0][:, None], found[1][None], dim=-1)  # (batch, batch)
        loss = cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


def pairs():
    ids = torch.randint(3, 60, (32, 6), generator=torch.Generator().manual_seed(0))
    return [{"anchor": row.tolist(), "positive": row.flip(0).tolist()} for row in ids]


def collate(rows):
    texts = {name: torch.tensor([row[name] for row in rows]) for name in ("anchor", "positive")}
    return {**texts, "labels": torch.arange(len(rows))}


def test_a_loss_on_pairs_is_searched_and_its_ranks_go_into_add_adapter(tmp_path):
    torch.manual_seed(0)
    base = RobertaModel(tiny_roberta().config)
    settings = {"remove_unused_columns": False, "size": "lora:2"}
    search = kind_of(Pairs, AutoLoraTrainer)(
        base, arguments(tmp_path, **settings), train_dataset=pairs(), data_collator=collate,
        peft_config=LoraConfig(target_modules=["query", "value"]),
    )  # fmt: skip
    search.train()
    own = RobertaModel(tiny_roberta().config)
    own.add_adapter(search.learned_ranks.to_lora_config())
    built = build_adapter(RobertaModel(tiny_roberta().config), search.learned_ranks)
    shapes = {n.replace("base_model.model.", ""): p.shape for n, p in built.named_parameters() if "lora_A" in n}
    assert shapes == {n: p.shape for n, p in own.named_parameters() if "lora_A" in n}


def test_a_pooler_that_the_checkpoint_lacks_and_the_loss_does_not_read(tmp_path):
    """As of most encoders of sentences, whose vectors are means over tokens: without an adapter nothing is trained."""
    torch.manual_seed(0)
    RobertaModel(tiny_roberta().config, add_pooling_layer=False).save_pretrained(tmp_path)
    base = RobertaModel.from_pretrained(tmp_path)
    own = {"trainer_class": kind_of(Pairs), "data_collator": collate}
    args = short_training(tmp_path, remove_unused_columns=False)
    config = find_ranks(base, pairs(), LoraConfig(target_modules=["query"]), args=args, search_steps=6, **own)
    assert config.modules_to_save == ["pooler.dense"] and set(config.target_modules)
