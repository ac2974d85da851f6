"""The methods of `--method`: does each train what it should, meet its size, come back to its score, and resume?"""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
)

import run_glue
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.methods import adapter, bottleneck, eva
from autolora_trainer.methods.base import count_parameters
from autolora_trainer.methods.registry import METHODS, OUTPUTS
from autolora_trainer.runs.outputs import is_output
from autolora_trainer.scripts.job import make_trainer
from autolora_trainer.training.trainer import FinalTrainer, WholeTensorsTrainer
from tests.helpers.commands import command
from tests.helpers.faults import interrupt
from tests.helpers.measures import accuracy
from tests.helpers.methods import COST, HEAD, PEFT_FILE, needs_optuna, prepared
from tests.helpers.models import tiny_gpt2, tiny_llama, tiny_roberta

NORMS = 2 * 16 * 5


# ---- what tells the methods apart: what they train, how much of it, and what they leave

# (arguments, what is trained besides the head, adapter parameters, the file that is left)
QUERY_VALUE = r"attention\.self\.(query|value)\.lora_[AB]\.default\.weight"
IDENTITIES = {
    "full": ({}, r"roberta\..*(weight|bias)", 6176, "model.safetensors"),
    "adapter": (
        {"adapter_size": 8},
        r"output\.dense\.bottleneck\.(down|up)\.(weight|bias)|LayerNorm\.(weight|bias)",
        4 * (2 * 16 * 8 + 8 + 16) + NORMS,
        "bottleneck_adapter.safetensors",
    ),
    "lora": ({"lora_r": 2}, QUERY_VALUE, 4 * 2 * COST, PEFT_FILE),
    "eva": ({"size": "lora:2"}, QUERY_VALUE, 4 * 2 * COST, PEFT_FILE),
    "linear": ({"size": "lora:2"}, QUERY_VALUE, 4 * 2 * COST, PEFT_FILE),
    "svd": ({"size": "lora:1"}, QUERY_VALUE, 4 * COST, PEFT_FILE),
    "ia3": ({}, r"(key|value|output\.dense)\.ia3_l\.default", 2 * (16 + 16 + 16 + 32), PEFT_FILE),
    "prefix_tuning": ({}, r"prompt_encoder\.default\.embedding\.weight", 20 * 2 * 2 * 16, PEFT_FILE),
    "prompt_tuning": ({}, r"prompt_encoder\.default\.embedding\.weight", 20 * 16, PEFT_FILE),
    "p_tuning": (
        {},
        r"prompt_encoder\.default\.(embedding|mlp_head\.\d)\.(weight|bias)",
        20 * 16 + 3 * 272,
        PEFT_FILE,
    ),
    "peft": (
        {"peft_type": "vera", "peft_kwargs": '{"r": 8}'},
        r"(query|value)\.vera_lambda_[bd]\.default",
        4 * (16 + 8),
        PEFT_FILE,
    ),
}


@pytest.mark.parametrize("method", IDENTITIES)
def test_a_method_trains_its_own_parameters_and_the_head(place, tmp_path, method):
    arguments, pattern, _, _ = IDENTITIES[method]
    job = prepared(place, tmp_path / "o", method=method, max_steps=3, **arguments)
    job.folder.clear = lambda: None
    model = METHODS[method].prepare(job)().model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    make_trainer(job, model, []).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    head = {name for name in changed if re.search(r"classifier\.(modules_to_save\.default\.)?(dense|out_proj)", name)}
    assert len(head) == 4
    assert [name for name in changed - head if not re.search(f"({pattern})$", name)] == []
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    unmoved = {name for name in trainable - changed if "key.bias" not in name}  # softmax ignores it
    assert unmoved == set(), "these parameters have not changed"


@pytest.mark.parametrize("method", IDENTITIES)
def test_a_method_counts_its_parameters_and_comes_back_to_its_score(place, tmp_path, method):
    arguments, _, parameters, file = IDENTITIES[method]
    output = tmp_path / "o"
    results = run_glue.main(command(place, output, method=method, **arguments))
    assert (results["adapter_params"], results["head_params"]) == (parameters, HEAD)
    assert results["method"] == method and (output / file).is_file()
    weights = {name for _, _, _, name in IDENTITIES.values()}
    assert [name for name in weights - {file} if (output / name).exists()] == []
    again = run_glue.main(command(place, output) + ["--do_eval"])
    assert again["eval_loss"] == results["eval_loss"] and again["eval_accuracy"] == results["eval_accuracy"]


def test_full_is_an_ordinary_checkpoint(place, tmp_path):
    results = run_glue.main(command(place, tmp_path / "o", method="full"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    assert accuracy(place, model) == results["eval_accuracy"]
    assert set(load_file(tmp_path / "o" / "model.safetensors")) == set(model.state_dict())
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_cards_of_methods_without_peft_do_not_name_it(place, tmp_path):
    for method, library, call in (
        ("full", "transformers", "AutoModelForSequenceClassification.from_pretrained(name)"),
        ("adapter", "autolora_trainer", "model = load_bottleneck_adapter(model, adapter)"),
    ):
        run_glue.main(command(place, tmp_path / method, method=method, max_steps=1))
        card = ModelCard.load(tmp_path / method / "README.md")
        assert card.data.library_name == library and "peft" not in str(card).lower() and call in str(card)


def test_switching_the_method_leaves_nothing_of_the_old_one(place, tmp_path):
    run_glue.main(command(place, tmp_path / "o", method="full", max_steps=1))
    run_glue.main([*command(place, tmp_path / "o", method="adapter", max_steps=1), "--overwrite"])
    assert not (tmp_path / "o" / "model.safetensors").exists() and not (tmp_path / "o" / "config.json").exists()
    assert is_output("model-00001-of-00002.safetensors") and not is_output("model-x.safetensors")
    assert is_output("grid", OUTPUTS)


def test_parameters_of_every_kind_of_model():
    assert count_parameters(add_lora(tiny_gpt2(), LoraConfig(task_type="CAUSAL_LM", r=3))) == (2 * 2 * 3 * COST, 0)
    dora = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=2, use_dora=True))
    assert count_parameters(dora) == (4 * (2 * COST + 16), HEAD)
    assert count_parameters(bottleneck.add_bottlenecks(tiny_gpt2(), 4, layer_norm=False)) == (4 * (2 * 16 * 4 + 20), 0)
    for kind in (GPT2ForSequenceClassification, LlamaForSequenceClassification):
        model = tiny_llama(kind) if kind is LlamaForSequenceClassification else kind(tiny_gpt2().config)
        assert count_parameters(model) == (sum(p.numel() for p in model.parameters()) - 32, 32)


# ---- an interrupted run goes on as if it had not been


@pytest.mark.parametrize(
    "method, file",
    [
        ("full", "model.safetensors"),
        ("adapter", "bottleneck_adapter.safetensors"),
        ("p_tuning", PEFT_FILE),  # of which PEFT keeps only the output of an encoder
        ("eva", PEFT_FILE),
        ("svd", PEFT_FILE),
    ],
)
def test_resume_is_exact(place, tmp_path, monkeypatch, method, file):
    settings = {"method": method, "save_strategy": "steps", "save_steps": 4}
    if method in ("eva", "svd"):
        settings["size"] = "lora:1"
    whole = run_glue.main(command(place, tmp_path / "whole", **settings))
    trainer = {"adapter": adapter.BottleneckTrainer, "p_tuning": WholeTensorsTrainer}.get(method, FinalTrainer)
    with monkeypatch.context() as patch:
        interrupt(patch, trainer, 10)
        with pytest.raises(KeyboardInterrupt):
            run_glue.main(command(place, tmp_path / "part", **settings))
    if method == "eva":
        monkeypatch.setattr(eva, "calibrate", None)  # it is not repeated
    resumed = run_glue.main([*command(place, tmp_path / "part", **settings), "--resume_from_checkpoint"])
    assert resumed["resumed_from"] == {"phase": "retrain", "step": 8}
    assert resumed["eval_loss"] == whole["eval_loss"]
    assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("method", ["full", "adapter", "p_tuning"])
def test_the_best_checkpoint_comes_back(place, tmp_path, method):
    settings = {"method": method, "save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    run_glue.main(command(place, tmp_path / "o", metric_for_best_model="loss", **settings))
    state = json.loads((tmp_path / "o" / "trainer_state.json").read_text())
    best = min(entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry and entry["epoch"] > 0)
    results = json.loads((tmp_path / "o" / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(best, rel=1e-6)


# ---- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "lora", "adapter_size": 8}, "--adapter_size is for --method adapter, got --method lora. Drop it."),
        (
            {"method": "full", "adapter_layer_norm": False},
            "--adapter_layer_norm is for --method adapter, got --method",
        ),
        ({"method": "ia3", "peft_type": "IA3"}, "--peft_type is for --method peft, got --method ia3. Drop it."),
        ({"method": "lora", "peft_kwargs": "{}"}, "--peft_kwargs is for --method peft, got --method lora. Drop it."),
        ({"method": "random", "sampler": "tpe"}, "--sampler is for --method grid, got --method random. Drop it."),
        ({"grid_trials": 4}, "--grid_trials is for --method grid, got --method autolora. Drop it."),
        ({"method": "grid", "sampler": "bayes"}, "sampler must be one of grid, random, tpe, got 'bayes'"),
        ({"method": "grid", "grid_trials": 0}, "grid_trials must be at least 1, got 0"),
        ({"method": "adapter", "adapter_size": 0}, "adapter_size must be at least 1, got 0"),
        ({"method": "peft"}, "--method peft needs --peft_type, one of ADAMSS, "),
        ({"method": "peft", "peft_type": "lowrank"}, "--peft_type must be one of PEFT's types, got 'lowrank'"),
        ({"method": "ia3", "peft_kwargs": "r=2"}, "--peft_kwargs is not JSON: .* Type e.g."),
        ({"method": "ia3", "peft_kwargs": "[1]"}, "--peft_kwargs must be a JSON object, e.g. .*, got \\[1\\]"),
        ({"method": "full", "size": "lora:2"}, "--size is for methods with ranks, got --method full"),
        ({"method": "adapter", "lora_target_modules": "query"}, "--lora_target_modules is for LoRA and PEFT's other"),
        (
            {"method": "grid", "ranks": "r.json"},
            "--ranks is for autolora, eva and the pattern baselines, got --method",
        ),
        ({"method": "p_tuning", "label_smoothing_factor": 0.1}, "Trainer has no label smoothing for virtual tokens"),
        pytest.param(
            {"method": "grid", "size": 100},
            "the smallest configuration has 128. Raise size",
            marks=needs_optuna,
        ),
        (
            {"method": "uniform", "lora_r": 8},
            "--lora_r 8 has no effect on --method uniform, whose size is --size",
        ),
        (
            {"lora_r": 16},
            "--lora_r 16 has no effect on --method autolora, whose size is --size lora:16. Drop it",
        ),
        ({"method": "full", "lora_r": 2}, "--lora_r 2 has no effect on --method full. Drop it."),
        (
            {"method": "peft", "peft_type": "LOHA", "lora_r": 2},
            "--lora_r 2 is for LoRA, got --peft_type LOHA. Set what",
        ),
        (
            {
                "method": "ia3",
                "load_best_model_at_end": True,
                "save_only_model": True,
                "save_strategy": "epoch",
                "eval_strategy": "epoch",
            },
            "--save_only_model leaves that out. Drop one of the two.",
        ),
        ({"attn_implementation": "flash_attention_2"}, "takes no fp32, .* Type --attn_implementation sdpa."),
        ({"auto_find_batch_size": True}, "--auto_find_batch_size tries batch sizes until one fits, and the search"),
        (
            {"method": "eva", "size": 100},
            "--method eva hands out uniform ranks anew, and a size of 100 adapter",
        ),
        (
            {"method": "eva", "size": "lora:9"},
            "looks for 18 directions in the inputs of '.*query', twice its uniform rank, and they have 16. Lower",
        ),
        ({"method": "svd", "size": "lora:9"}, "asks for .* adapter parameters, and rank 4 in every module has"),
        (
            {"method": "svd", "initial_rank": 32, "size": "lora:24"},
            "asks for 3,072 adapter parameters, and rank 16 in every module has 2,048. Lower",
        ),
        *(
            (
                {"method": method, "lora_target_modules": ["query", "word_embeddings"]},
                f"--method {method} finds ranks of linear layers, and --lora_target_modules has 'roberta.embeddings."
                r"word_embeddings' \(Embedding\). Leave it out, or type --method lora",
            )
            for method in ("autolora", "adalora", "eva", "linear", "random", "svd", "uniform")
        ),
        pytest.param(
            {"method": "grid", "lora_target_modules": "word_embeddings"},
            "--method grid finds ranks of linear layers",
            marks=needs_optuna,
        ),
        *(
            (
                {**method, "lora_target_modules": "all-linear", "min_rank": 0, "size": 40},
                "size 40 has no room for a component of the largest module, 48 adapter parameters",
            )
            for method in ({"method": "svd"}, {"method": "autolora"})
        ),
        ({"method": "random", "size": "lora:9"}, "asks for .* adapter parameters, and rank 4 in every module"),
        ({"method": "linear", "size": 100}, "size 100 is 100 adapter parameters, and the least that"),
    ],
)
def test_arguments_of_other_methods_and_impossible_sizes_are_refused(place, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run_glue.main(command(place, tmp_path / "o", **changes))
    assert not (tmp_path / "o").exists()


def test_nothing_to_evaluate_is_refused(place, tmp_path):
    with pytest.raises(UsageError, match="holds no adapter to evaluate. Add --do_train"):
        run_glue.main(command(place, tmp_path / "o") + ["--do_eval"])
