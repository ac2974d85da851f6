"""`find_ranks`: a plain LoraConfig from any trainer's rows, and the model as it was given."""

import pickle

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    LlamaForSequenceClassification,
    RobertaForQuestionAnswering,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig, SFTTrainer

from autolora_trainer import AutoLoraTrainingArguments, find_ranks
from autolora_trainer.compat import has_fused_head
from autolora_trainer.find.rank_search import RankSearch
from autolora_trainer.heldout.passes import target_loss
from autolora_trainer.heldout.trainer import HeldOutMixin
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.search.measure import MeasurementMixin
from autolora_trainer.training.kinds import trainer_of
from tests.helpers.models import FAMILIES, byte_llama, byte_tokenizer, padded, tiny_gpt2, tiny_roberta
from tests.helpers.planted import Planted, planted_data
from tests.helpers.rows import rows
from tests.helpers.state import everything, same
from tests.helpers.trainings import short_training

LORA = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=8, lora_dropout=0.1)
PAIRS = [{"prompt": f"name : {n} |", "completion": f" {n} is a pub ."} for n in "Alba Bo Cenador Dori Et Fano".split()]
CHOICES = [{"prompt": p["prompt"], "chosen": p["completion"], "rejected": " no ."} for p in PAIRS] * 2
JUDGED = [{**pair, "label": i % 2 == 0} for i, pair in enumerate(PAIRS * 2)]
PREFERRED = [{"chosen": p["prompt"] + p["completion"], "rejected": p["prompt"] + " no ."} for p in PAIRS] * 2


def test_the_planted_ranks_are_found_in_one_call(tmp_path, capsys):
    torch.manual_seed(0)
    model = Planted()
    own = {"weight_decay": 0.0, "per_device_train_batch_size": 32, "disable_tqdm": False}
    args = short_training(tmp_path, learning_rate=2e-2, **own)
    config = find_ranks(
        model, planted_data(model), LoraConfig(target_modules=r"layers\.\d", lora_alpha=8), args=args,
        val_fraction=0.5, tolerance=0.001, search_steps=250,
    )  # fmt: skip
    assert config.rank_pattern == {rf"^layers\.{i}": rank for i, rank in enumerate(Planted.ranks) if rank}
    said = "found 216 parameters, 28% of rank 8's: total rank 9 in 4 modules, 1 of them at rank 0"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert type(config) is LoraConfig and pickle.loads(pickle.dumps(config)).rank_pattern == config.rank_pattern
    config.save_pretrained(tmp_path / "saved")
    assert LoraConfig.from_pretrained(tmp_path / "saved").rank_pattern == config.rank_pattern
    assert {layer.r["default"] for layer in lora_layers(get_peft_model(model, config)).values()} == {1, 2, 6}


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_comes_back_as_it_was(tmp_path, monkeypatch, capsys, error):
    model = tiny_roberta(hidden_dropout_prob=0.1)
    model.classifier.dense.requires_grad_(False)
    args = short_training(tmp_path, bf16=True)
    before = everything(model)
    if error:

        def fail(self):
            raise error("on the way")

        monkeypatch.setattr(MeasurementMixin, "find", fail)
        with pytest.raises(error):
            find_ranks(model, rows(), LORA, args=args, search_steps=6)
    else:
        config = find_ranks(model, rows(), LORA, args=args, search_steps=6, size="lora:1")
        assert config.lora_dropout == 0.1 and config.task_type == "SEQ_CLS"
        assert "found" not in "".join(capsys.readouterr())
    assert same(before, everything(model))
    assert not hasattr(model, "peft_config")


TRL = {
    "sft": (SFTConfig, PAIRS * 2, {}),
    "dpo": (DPOConfig, CHOICES, {}),
    "kto": (KTOConfig, JUDGED, {}),
    "reward": (RewardConfig, PREFERRED, {}),
}


@pytest.mark.parametrize("kind, data, more", TRL.values(), ids=TRL)
def test_trl_prepares_the_rows_of_its_configs(tmp_path, kind, data, more):
    torch.manual_seed(0)
    model = byte_llama(kind=LlamaForSequenceClassification, num_labels=1) if kind is RewardConfig else byte_llama()
    args = short_training(tmp_path, kind, per_device_train_batch_size=2, bf16=False, **more)
    before = everything(model)
    config = find_ranks(
        model, Dataset.from_list(data), args=args, size="lora:1", search_steps=6, val_fraction=0.5,
        processing_class=padded(byte_tokenizer(llama=True)),
    )  # fmt: skip
    assert same(before, everything(model))
    assert type(config) is LoraConfig and config.task_type == ("SEQ_CLS" if kind is RewardConfig else "CAUSAL_LM")
    assert sum(config.rank_pattern.values()) >= 1 and "q_proj" in " ".join(config.rank_pattern) or config.r >= 1


def test_losses_by_row_take_trl_one_pass(tmp_path, recwarn):
    torch.manual_seed(0)
    trainer = type("HeldOut", (HeldOutMixin, SFTTrainer), {})(
        byte_llama(), short_training(tmp_path, SFTConfig, per_device_train_batch_size=4, bf16=False),
        train_dataset=Dataset.from_list(PAIRS), processing_class=padded(byte_tokenizer(llama=True)),
        peft_config=LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False),
    )  # fmt: skip
    batch = trainer._batches(*trainer._as_the_model_takes(trainer.train_dataset))[0]
    passes = []
    trainer.model.register_forward_hook(lambda *given: passes.append(given))
    own = lambda inputs: [torch.as_tensor(value).float() for value in inputs]
    by_row = has_fused_head(trainer.model.get_base_model())  # before TRL 1.16 a batch is one number
    with torch.no_grad():
        rows = own(trainer._held_out_loss(trainer.model, batch))
        assert len(passes) == 1
        for got, wanted in zip(rows, own(target_loss(trainer.model, dict(batch)))):
            assert got.shape == ((4,) if by_row else ())
            assert torch.allclose(got, wanted if by_row else wanted.sum(), rtol=1e-4)
    total, count = own(trainer._held_out_loss(trainer.model, batch))
    assert len(passes) == 3 and torch.allclose(total, rows[0].sum(), rtol=1e-4) and count == rows[1].sum()
    assert not [warning for warning in recwarn if "return_outputs" in str(warning.message)]


def test_an_encoder_and_decoder(tmp_path):
    torch.manual_seed(0)
    small = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**small, decoder_start_token_id=0))
    data = [{"input_ids": [5, 6, 7, 8], "labels": [8, 7, 6, 5]}] * 24
    args = short_training(tmp_path, Seq2SeqTrainingArguments, per_device_train_batch_size=4)
    before = everything(model)
    config = find_ranks(model, data, args=args, size="lora:1", search_steps=6, initial_rank=4)
    assert same(before, everything(model)) and config.task_type == "SEQ_2_SEQ_LM"
    assert any("decoder" in name for name in config.rank_pattern)


def test_held_out_rows_of_ones_own_are_prepared_too(tmp_path):
    torch.manual_seed(0)
    search = RankSearch(
        byte_llama(), Dataset.from_list(PAIRS * 2), eval_dataset=Dataset.from_list(PAIRS), search_steps=6,
        args=short_training(tmp_path, SFTConfig, per_device_train_batch_size=2, bf16=False),
        processing_class=padded(byte_tokenizer(llama=True)),
    ).run()  # fmt: skip
    assert search.curve is not None and search.ranks.rank_rule == "contributions"


def test_a_peft_model_gives_its_base_and_its_settings(tmp_path):
    model = get_peft_model(tiny_roberta(), LORA)
    before = everything(model)
    config = find_ranks(model, rows(), args=short_training(tmp_path), search_steps=6, size="same")
    assert same(before, everything(model))
    assert config.lora_dropout == 0.1 and set(config.modules_to_save) >= {"classifier"}
    parameters = sum(32 * rank for rank in config.rank_pattern.values())
    assert parameters == 32 * 4 * LORA.r


@pytest.mark.parametrize(
    "given, asked, width, most",
    [
        ({"r": 4}, {}, 8, None),
        ({"r": 12}, {}, 12, None),
        ({"r": 12}, {"size": "same"}, 24, 12),
        ({"r": 8}, {"size": "lora:8"}, 16, 8),
        ({"r": 12}, {"size": "lora:2", "initial_rank": 6}, 6, 2),
        ({"r": 8}, {"rank_rule": "threshold"}, 8, None),
    ],
)
def test_the_search_is_as_wide_as_the_rank_given(tmp_path, monkeypatch, given, asked, width, most):
    """Which then has the scale that was chosen for it; a size that is given leaves something to choose."""
    lora, scales = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=24, **given), []
    find = MeasurementMixin.find

    def watched(self):
        scales.extend({part.scaling for part in self.gates.parts.values()})
        return find(self)

    monkeypatch.setattr(MeasurementMixin, "find", watched)
    args = short_training(tmp_path, learning_rate=3e-2)
    search = RankSearch(tiny_roberta(), rows(60), lora, args=args, search_steps=6, **asked).run()
    assert search.ranks.initial_rank == width and scales == [24 / width]
    assert most is None or search.parameters == 4 * 32 * most
    ranks = search.ranks.ranks.values()
    assert max(ranks) <= width and (most in (None, 2) or len(set(ranks)) > 1)


def test_a_schedule_of_its_own(tmp_path):
    """Neither a warm-up that is longer than the search nor a rate that falls within it; looks that are asked for."""
    kind = {"kind": AutoLoraTrainingArguments, "search_look_steps": 10}
    for own, asked, warmup, looks in (
        ({}, {}, 28, 28),
        ({}, {"search_steps": 300}, 28, 0),
        (kind, {"search_steps": 300}, 28, 10),
        ({"warmup_steps": 0.5}, {}, 28, 28),
        ({"warmup_steps": 0.02}, {"search_steps": 300}, 6, 0),
    ):
        args = short_training(tmp_path, **{"warmup_steps": 500, "lr_scheduler_type": "cosine", **own})
        trainer, _ = RankSearch(tiny_roberta(), rows(60), LORA, args=args, **asked)._trainer(str(tmp_path))
        found = trainer.args
        assert (found.warmup_steps, found.search_look_steps) == (warmup, looks)
        assert found.lr_scheduler_type == "constant_with_warmup"


def test_what_the_search_learned_is_an_adapter_to_train_on(tmp_path):
    torch.manual_seed(0)
    model = tiny_roberta()
    model.save_pretrained(tmp_path / "base")
    args = short_training(tmp_path, learning_rate=3e-2)
    search = RankSearch(model, rows(200), LORA, args=args, search_steps=30, size="lora:2").run()
    search.save_adapter(tmp_path / "start")
    loaded = PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "base"), tmp_path / "start")
    assert {n: layer.r["default"] for n, layer in lora_layers(loaded).items()} == {
        n: rank for n, rank in search.ranks.ranks.items() if rank
    }
    batch = {name: torch.tensor(rows(200)[name]) for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        assert loaded(**batch).loss < model.eval()(**batch).loss - 0.05
    with pytest.raises(ValueError, match="There is no curve"):
        search.plot()


def test_parts_of_a_fused_projection_are_saved_whole(tmp_path):
    torch.manual_seed(0)
    model = tiny_gpt2()
    model.save_pretrained(tmp_path / "base")
    data = [{"input_ids": [1, 2, 3, 4, 5, 6], "labels": [1, 2, 3, 4, 5, 6]}] * 16
    search = RankSearch(model, data, LoraConfig(task_type="CAUSAL_LM"), args=short_training(tmp_path), search_steps=8,
                        size="lora:1").run()  # fmt: skip
    search.save_adapter(tmp_path / "start")
    loaded = PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "base"), tmp_path / "start")
    for layer in lora_layers(loaded).values():
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert update.shape == (48, 16) and update[16:32].abs().max() == 0  # no keys


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"train_dataset": IterableDataset.from_generator(lambda: iter(PAIRS))}, "a stream .* cannot be"),
        ({"peft_config": "lora"}, "peft_config must be a peft.LoraConfig, got str"),
        ({"size": "small"}, "size must be a number of adapter parameters or lora:R, got 'small'"),
        ({"rank_rule": "adaptive"}, "The rank rule adaptive is gone"),
        ({"train_dataset": rows(1)}, "leaves"),
        ({"initial_rank": 1}, "initial_rank must be at least 2"),
        ({"search_steps": 0}, "search_steps must be at least 1, got 0"),
        ({"size": "same", "max_lora_rank": 4}, "raise what caps them: initial_rank, max_lora_rank"),
    ],
)
def test_what_cannot_be_searched(tmp_path, asked, sentence):
    model = tiny_roberta()
    before = everything(model)
    with pytest.raises(ValueError, match=sentence) as raised:
        find_ranks(model, **{"train_dataset": rows(), "peft_config": LORA, "args": short_training(tmp_path), **asked})
    assert "\n" not in str(raised.value) and same(before, everything(model))


def test_the_trainer_follows_the_arguments(tmp_path):
    assert trainer_of(TrainingArguments(str(tmp_path), report_to="none")) is Trainer
    assert trainer_of(Seq2SeqTrainingArguments(str(tmp_path), report_to="none")).__name__ == "Seq2SeqTrainer"
    assert trainer_of(SFTConfig(str(tmp_path), bf16=False)) is SFTTrainer


@pytest.mark.parametrize("kind", ["distilbert", "roberta tokens", "questions"])
def test_heads_are_no_targets_of_all_linear(tmp_path, kind):
    """PEFT trains them whole, and would adapt them too: without exclude_modules it refuses itself."""
    build = FAMILIES.get(kind, lambda: RobertaForQuestionAnswering(tiny_roberta().config))
    data = [{"input_ids": [5, 6, 7], "labels": [0, 1, 0] if kind == "roberta tokens" else 1} for _ in range(16)]
    if kind == "questions":
        data = [{"input_ids": [5, 6, 7], "start_positions": 0, "end_positions": 2} for _ in range(16)]
    args = short_training(tmp_path, TrainingArguments)
    config = find_ranks(build(), Dataset.from_list(data), args=args, size="lora:1", search_steps=6)
    assert not any(name.endswith(("classifier", "qa_outputs")) for name in config.target_modules)
    assert get_peft_model(build(), config).peft_config["default"].rank_pattern == config.rank_pattern
