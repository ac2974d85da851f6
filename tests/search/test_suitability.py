"""What cannot be searched is refused before the first step, with the reason that is true."""

import types

import pytest
import torch
import trl
from datasets import Dataset, DatasetDict
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Trainer

from autolora_trainer import AutoLoraMixin, AutoLoraTrainer, build_adapter, compress, find_ranks
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.ranks import learned
from tests.helpers.rows import rows
from tests.helpers.trainings import LORA, StopAt, arguments, searcher


def search(folder, model=None, config=LORA, args=None, kind=AutoLoraTrainer, **changes):
    model = tiny_roberta() if model is None else model
    data = {"train_dataset": rows(16), **changes}
    return kind(model, arguments(folder, **(args or {})), peft_config=config, **data)


def config(**changes):
    return LoraConfig(**{"task_type": "SEQ_CLS", "target_modules": ["query"], **changes})


# ---- settings of LoRA

CONFIGS = [
    (config(lora_bias=True), "needs lora_bias=False: a bias of lora_B belongs to no component"),
    (config(layer_replication=[(0, 2), (1, 2)]), "layer_replication makes others, whose names no other model has"),
    (config(init_lora_weights="orthogonal"), "takes even ranks alone, and learned ranks may be odd"),
    (
        AdaLoraConfig(target_modules=["query"], total_step=9),
        "of plain LoRA, got AdaLoraConfig, which shares out ranks",
    ),
    (config(rank_pattern={"query": 2}), "the same rank k in every LoRA layer"),
]


@pytest.mark.parametrize("settings, reason", CONFIGS, ids=[reason[:20] for _, reason in CONFIGS])
def test_settings_of_lora_that_contradict_a_search(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=reason):
        search(tmp_path, config=settings)
    if not (settings.rank_pattern or settings.layer_replication) and settings.peft_type == "LORA":  # it is there
        settings.r = 4
        with pytest.raises(ValueError, match=reason):
            search(tmp_path, get_peft_model(tiny_roberta(), settings), None)
    with pytest.raises(ValueError, match="must be a peft.LoraConfig" if type(settings) is AdaLoraConfig else reason):
        find_ranks(tiny_roberta(), rows(16), settings)


def test_an_adapter_that_cannot_have_ranks_of_its_own():
    names = [f"roberta.encoder.layer.{i}.attention.self.query" for i in range(2)]
    for settings, reason in (
        (config(init_lora_weights="orthogonal"), "takes even ranks alone, and 1 of 2 are odd"),
        (
            config(layer_replication=[(0, 2), (1, 2)]),
            "layer_replication makes other layers than those that have ranks",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            build_adapter(tiny_roberta(), learned(dict(zip(names, (3, 4))), 4), settings)
    even = build_adapter(tiny_roberta(), learned(dict(zip(names, (2, 4))), 4), config(init_lora_weights="orthogonal"))
    assert even.peft_config["default"].r == 4


# ---- the adapter


def frozen(model):
    return model.requires_grad_(False)


def one_layer_frozen(model):
    next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad_(False)
    next(p for n, p in model.named_parameters() if "lora_B" in n).requires_grad_(False)
    return model


def another_active(model):
    model.add_adapter("other", config(r=4))
    model.set_adapter("other")
    return model


def two_active(model):  # without a head, of which one alone may be active
    model = lora(model.unload(), task_type=None)
    model.add_adapter("other", config(r=4, task_type=None))
    model.base_model.set_adapter(["default", "other"])
    return model


def merged(model):
    model.merge_adapter()
    return model


def off(model):
    model.base_model.disable_adapter_layers()
    return model


ADAPTERS = [
    (frozen, "frozen in 4 of 4 modules, the first is '.*query', and the search trains it. Load it with is_trainable"),
    (one_layer_frozen, "frozen in 1 of 4 modules"),
    (another_active, "of the adapter 'default', and 'other' runs. Call model.set_adapter"),
    (two_active, "of the adapter 'default', and 'default', 'other' runs"),
    (merged, "merged at '.*query', and would not train. Call model.unmerge_adapter"),
    (off, "off at '.*query', and would not train. Call model.enable_adapter_layers"),
]


@pytest.mark.parametrize("change, reason", ADAPTERS, ids=[change.__name__ for change, _ in ADAPTERS])
def test_an_adapter_that_does_not_run_or_train_is_named(tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        search(tmp_path, change(lora(tiny_roberta())), None)


def test_a_saved_adapter_is_searched_when_it_is_loaded_to_be_trained(tmp_path):
    lora(tiny_roberta()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_trainable=True"):
        search(tmp_path, PeftModel.from_pretrained(tiny_roberta(), tmp_path), None)
    assert search(tmp_path, PeftModel.from_pretrained(tiny_roberta(), tmp_path, is_trainable=True), None).gates


def injected():
    model = tiny_roberta()
    model.add_adapter(config(r=4))
    return model


SENTENCES = type("SentenceTransformer", (torch.nn.Sequential,), {"__module__": "sentence_transformers.models"})
SETFIT = type("SetFitModel", (), {"__module__": "setfit.modeling"})
MODELS = [
    (lambda: lora(tiny_roberta()), LORA, "got a PeftModel and a peft_config. Drop peft_config, or pass model.unload"),
    (injected, LORA, "a RobertaForSequenceClassification with LoRA layers inside"),
    (injected, None, "with LoRA layers inside .of add_adapter"),
    (
        SENTENCES,
        LORA,
        "a SentenceTransformer is run by its own losses. Search the transformers model in it, with a Tr",
    ),
    (SETFIT, LORA, "a SetFitModel is run by its own losses"),
    (types.SimpleNamespace, LORA, "needs a torch.nn.Module, got SimpleNamespace"),
    (lambda: "org/model", LORA, "needs the model itself, got 'org/model'. Load it"),
]


@pytest.mark.parametrize("build, settings, reason", MODELS, ids=range(len(MODELS)))
def test_models_that_are_none_of_transformers(tmp_path, build, settings, reason):
    with pytest.raises(ValueError, match=reason):
        search(tmp_path, build(), settings)
    if build in (SENTENCES, SETFIT, types.SimpleNamespace):
        with pytest.raises(ValueError, match=reason):
            find_ranks(build(), rows(16))


# ---- rows


class Stream(IterableDataset):
    def __iter__(self):
        return iter(rows(4))


SETS = [
    (Stream, "drawn by their numbers, and a stream .Stream. has none"),
    (lambda: Dataset.from_list(rows(4)).to_iterable_dataset(), "a stream .IterableDataset. has none"),
    (list, "no rows"),
    (lambda: {"a": rows(4), "b": rows(4)}, "must be one set of rows, got a dict of them .a, b."),
    (lambda: DatasetDict(test=Dataset.from_list(rows(4))), "got a dict of them .test."),
]


@pytest.mark.parametrize("build, reason", SETS, ids=range(len(SETS)))
def test_held_out_rows_that_cannot_be_drawn(tmp_path, build, reason):
    for name in ("val_dataset", "size_dataset"):
        with pytest.raises(ValueError, match=f"{name}.* {reason}"):
            search(tmp_path, **{name: build()})
    with pytest.raises(ValueError, match=f"eval_dataset.* {reason}"):
        find_ranks(tiny_roberta(), rows(16), LORA, eval_dataset=build())
    with pytest.raises(ValueError, match=f"eval_dataset.* {reason}"):
        compress(lora(tiny_roberta()), build())
    if "stream" not in reason:  # of training rows a stream is right
        with pytest.raises(ValueError, match=f"train_dataset .*{reason}"):
            search(tmp_path, train_dataset=build(), val_dataset=rows(4))


def test_a_stream_of_training_rows_beside_a_d_val_is_searched(tmp_path):
    stream = Dataset.from_list(rows(16)).to_iterable_dataset()
    trainer = search(tmp_path, train_dataset=stream, val_dataset=Dataset.from_list(rows(8)), args={"max_steps": 3})
    trainer.train()
    assert trainer.learned_ranks is not None


def test_one_set_as_evaluation_and_d_val_may_be_no_dict(tmp_path):
    sets = {"a": rows(4)}
    with pytest.raises(ValueError, match="val_dataset must be one set"):
        search(tmp_path, eval_dataset=sets, val_dataset=sets)
    assert len(search(tmp_path, eval_dataset=sets, val_dataset=rows(4)).val_dataset) == 4


# ---- labels, optimizers, lengths


def scores(count):
    return [{**row, "labels": float(row["labels"])} for row in rows(count)]


@pytest.mark.parametrize(
    "labels, changes, reason",
    [
        (scores, {"num_labels": 1}, "the labels of this RobertaForSequenceClassification are scores"),
        (rows, {"num_labels": 1}, "are scores"),  # whole numbers are scores too: their loss would be zero
        (scores, {"num_labels": 2, "problem_type": "multi_label_classification"}, "are sets of classes"),
        (
            lambda n: [{**row, "labels": [1.0, 0.0]} for row in rows(n)],
            {},
            "smooths classes, and these labels are num",
        ),
    ],
)
def test_label_smoothing_is_of_classes(tmp_path, labels, changes, reason):
    settings = {"label_smoothing_factor": 0.1}
    with pytest.raises(ValueError, match=reason):
        search(tmp_path, tiny_roberta(**changes), args=settings, train_dataset=labels(16)).train()
    assert search(tmp_path, args=settings).label_smoother is not None


def own_optimizer(kind, **settings):
    model = lora(tiny_roberta())
    weights = [p for p in model.parameters() if p.requires_grad]
    return {"model": model, "config": None, "optimizers": (kind(weights, lr=1e-3, **settings), None)}


OTHERS = [
    (torch.optim.SGD, {}, "SGD"),
    (torch.optim.NAdam, {}, "NAdam"),  # whose settings and moments have the same names
    (torch.optim.Adam, {"weight_decay": 0.1}, "Adam"),
    (torch.optim.AdamW, {"amsgrad": True}, "AdamW with amsgrad or maximize"),
]


@pytest.mark.parametrize("kind, settings, name", OTHERS, ids=[name for *_, name in OTHERS])
def test_the_virtual_step_of_adamw_reads_no_other_optimizer(tmp_path, kind, settings, name):
    trainer = search(tmp_path, **own_optimizer(kind, **settings), args={"hypergradient": "finite_difference"})
    with pytest.raises(ValueError, match=f"reads the state of PyTorch's AdamW, got {name}. Use virtual_step sgd, or"):
        trainer.train()
    assert trainer.state.global_step == 0
    other = search(tmp_path, **own_optimizer(kind, **settings), args={"virtual_step": "sgd", "max_steps": 4})
    other.train()
    assert other.learned_ranks is not None


def test_an_optimizer_made_before_the_adapter_is_named(tmp_path):
    model = tiny_roberta()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="lacks 8 LoRA weights, so they would not be trained. Make it of the Peft"):
        search(tmp_path, model, optimizers=(optimizer, None))


def test_a_search_too_short_for_a_selection_step_does_not_begin(tmp_path):
    for interval, steps, warmup, first in ((4, 4, 0, 5), (1, 1, 0, 2), (1, 2, 5, 3)):
        settings = {"hypergradient_interval": interval, "max_steps": steps, "warmup_steps": warmup}
        trainer = searcher(tmp_path, hypergradient="first_order", lr_scheduler_type="constant_with_warmup", **settings)
        with pytest.raises(ValueError, match=f"A search of {steps} steps takes no .* first would be in step {first}"):
            trainer.train()
        assert trainer.state.global_step == 0
    trained = search(  # lora_B is not zero
        tmp_path, lora(tiny_roberta()), None, {"hypergradient": "first_order", "max_steps": 1}
    )
    trained.train()
    assert trained.learned_ranks is not None
    with pytest.raises(ValueError, match="adam_epsilon must be a positive number, got 0.0: lora_A has no gradient"):
        arguments(tmp_path, adam_epsilon=0.0)


def test_a_search_that_is_stopped_before_alpha_moved_says_so(tmp_path, caplog):
    settings = {"hypergradient": "first_order", "hypergradient_interval": 8}
    with pytest.raises(RuntimeError, match="stopped after step 3 of 12, before a selection variable moved"):
        searcher(tmp_path / "a", callbacks=[StopAt(3)], **settings).train()
    early = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss", "learning_rate": 0.0}
    stopped = search(
        tmp_path / "b", args={**settings, **early}, eval_dataset=rows(8), callbacks=[EarlyStoppingCallback(1)]
    )
    with pytest.raises(RuntimeError, match="stopped after step 2 of 12, before a selection variable moved"):
        stopped.train()
    saved = searcher(tmp_path / "c", callbacks=[StopAt(3)], **settings, save_strategy="steps", save_steps=3)
    saved.train()
    assert saved.learned_ranks is None and "its checkpoint goes on: train(resume_from_checkpoint" in caplog.text
    resumed = searcher(tmp_path / "c", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.learned_ranks is not None


# ---- classes


def test_the_search_comes_first_among_the_base_classes(tmp_path):
    class Mine(Trainer):
        pass

    for bases, first in (((Mine, AutoLoraMixin), "Mine"), ((Seq2SeqTrainer, AutoLoraTrainer), "Seq2SeqTrainer")):
        with pytest.raises(TypeError, match=f"class T would train without a search: {first} comes before AutoLoraMix"):
            type("T", bases, {})
    with pytest.raises(TypeError, match=r"Write class T\(AutoLoraMixin, Trainer\)"):
        type("T", (Trainer, AutoLoraMixin), {})

    class Loss:
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    class Right(Loss, AutoLoraMixin, Mine):
        pass

    assert search(tmp_path, kind=Right).gates and type("T", (AutoLoraTrainer, Seq2SeqTrainer), {})


ONLINE = [
    name for name in ("GRPO", "RLOO", "Distillation") if hasattr(trl, f"{name}Trainer")
]  # TRL 1.8 has not the last


@pytest.mark.parametrize("name", ONLINE)
def test_trainers_that_make_their_rows_are_refused(tmp_path, name):
    own = type("Mine", (getattr(trl, f"{name}Trainer"),), {})
    told = f"^{name}Trainer makes its rows while it trains.* give {name}Trainer the result as peft_config.$"
    with pytest.raises(ValueError, match=told):
        type("T", (AutoLoraMixin, own), {})
    settings = getattr(trl, f"{name}Config")(str(tmp_path), bf16=False, report_to="none")
    for asked in ({"args": settings}, {"trainer_class": own}):
        with pytest.raises(ValueError, match=told):
            find_ranks(tiny_roberta(), rows(16), LORA, **asked)
    assert type("T", (AutoLoraMixin, trl.SFTTrainer), {}) and type("T", (AutoLoraMixin, trl.DPOTrainer), {})


def test_batches_that_are_no_dicts_are_named_before_a_step(tmp_path):
    """Of trainers whose names nobody knows, that generate their batches of rows."""

    class Generating(AutoLoraMixin, Trainer):
        pass

    trainer = search(tmp_path, kind=Generating, data_collator=list, args={"remove_unused_columns": False})
    with pytest.raises(ValueError, match="Generating gives its steps a list: it makes its rows while it trains. Sear"):
        trainer.train()
    assert trainer.state.global_step == 0
