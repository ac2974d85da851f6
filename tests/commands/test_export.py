"""Does what is exported build the learned ranks in the other tool, by that tool's own rules?"""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel, LlamaForCausalLM, Trainer

import run_nlg
from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.pipeline import prepare
from autolora_trainer.scripts.request import settle
from tests.helpers.models import byte_gpt2, byte_tokenizer, lora, tiny_llama
from tests.helpers.rows import write_rows
from tests.helpers.trainings import short_training

RANKS = {f"model.layers.{i}.self_attn.{p}": r for i, p, r in [(0, "q_proj", 3), (0, "v_proj", 1), (1, "q_proj", 2),
                                                              (1, "v_proj", 0)]}  # fmt: skip
IDS = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}


@pytest.fixture
def exported(tmp_path, capsys):
    """What `autolora export` says of RANKS at lora_alpha 16, scale 8."""
    LearnedRanks({n: ModuleRank(r) for n, r in RANKS.items()}, base_model="org/base").save(tmp_path / "ranks.json")

    def run(*typed):
        cli.main(["export", str(tmp_path), *typed])
        return capsys.readouterr().out

    return run


def ranks_and_scales(model):
    layers = lora_layers(model)
    return {n: layer.r["default"] for n, layer in layers.items()}, {x.scaling["default"] for x in layers.values()}


KEPT = {name: rank for name, rank in RANKS.items() if rank}


def test_a_trl_script_gets_a_peft_config(exported):
    names = {}
    exec(exported("--format", "trl"), names)
    assert ranks_and_scales(get_peft_model(tiny_llama(), names["peft_config"])) == (KEPT, {8.0})


def test_unsloth_hands_on_what_it_does_not_know(exported):
    """Its get_peft_model (2026.8) has **kwargs, which go into the LoraConfig."""
    make = lambda model, **settings: get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    names = {"FastLanguageModel": SimpleNamespace(get_peft_model=make), "model": tiny_llama()}
    exec(exported("--format", "unsloth"), names)
    assert ranks_and_scales(names["model"]) == (KEPT, {8.0})


class AxolotlLora(BaseModel):
    """The LoRA fields of axolotl 0.18.0's schema (utils/schemas/peft.py), restated."""

    model_config = ConfigDict(strict=True, extra="forbid")
    adapter: str
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_target_modules: str | list[str] | None = None
    lora_rank_pattern: dict[str, PositiveInt] | None = None
    lora_alpha_pattern: dict[str, PositiveInt] | None = None
    peft_use_rslora: bool | None = None


@pytest.mark.parametrize("alpha, scale, said", [(16, 8, False), (5, 2, True), (1, 1, True)])
def test_axolotl_takes_whole_numbers(exported, alpha, scale, said):
    text = exported("--format", "axolotl", "--lora_alpha", str(alpha))
    settings = AxolotlLora(**yaml.safe_load(text))
    config = LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, rank_pattern=settings.lora_rank_pattern,
                        alpha_pattern=settings.lora_alpha_pattern, target_modules=settings.lora_target_modules,
                        task_type="CAUSAL_LM")  # fmt: skip
    assert ranks_and_scales(get_peft_model(tiny_llama(), config)) == (KEPT, {float(scale)})
    assert ("its scale was 2.5" in text or "its scale was 0.5" in text) == said


def trained(folder, **changes):
    """A saved adapter of unequal ranks, whose updates are not zero."""
    torch.manual_seed(0)
    tiny_llama().save_pretrained(folder / "base")
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    settings = {"rank_pattern": {"q_proj": 2}, "task_type": "CAUSAL_LM", "lora_alpha": 8, **changes}
    model = lora(base, 4, ["q_proj", "v_proj", "down_proj"], **settings).eval()
    model.save_pretrained(folder / "adapter")
    return model


def loaded(folder, name, **settings):
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder / "base"), folder / name, **settings)


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 2}}], ids=["plain", "rslora", "scales"]
)
def test_a_padded_adapter_computes_the_same_and_stays_padded(tmp_path, changes):
    model = trained(tmp_path, **changes)
    cli.main(["export", str(tmp_path / "adapter"), "--format", "adapter", "--pad", "--output", str(tmp_path / "p")])
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"], config["r"]) == ({}, {}, 4)
    assert len(set(AdapterFile.from_pretrained(tmp_path / "p").scales.values())) == 1
    padded = loaded(tmp_path, "p", is_trainable=True)
    with torch.no_grad():
        assert torch.allclose(padded.eval()(**IDS).logits, model(**IDS).logits, rtol=1e-4, atol=1e-5)
    rows = [{name: value[0].tolist() for name, value in IDS.items()}] * 8
    before = {name: p.detach().clone() for name, p in padded.named_parameters() if p.requires_grad}
    Trainer(padded, short_training(tmp_path / "run", max_steps=4), train_dataset=rows).train()
    for name, layer in lora_layers(padded).items():
        if "q_proj" in name:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert a[2:].abs().max() == 0 and b[:, 2:].abs().max() == 0
            assert a[:2].abs().min(1).values.max() > 0
    assert all(not torch.equal(before[name], p) for name, p in padded.named_parameters() if p.requires_grad)


def test_what_is_no_linear_layer_is_not_padded(tmp_path):
    trained(tmp_path, use_dora=True)
    with pytest.raises(UsageError, match="The adapter is DoRA, which is not filled up with zeros"):
        cli.main(
            ["export", str(tmp_path / "adapter"), "--format", "adapter", "--pad", "--output", str(tmp_path / "p")]
        )
    assert not (tmp_path / "p").exists()


def test_llama_factory_goes_on_training_the_folder(tmp_path, capsys):
    trained(tmp_path)
    start = str(tmp_path / "start")
    cli.main(["export", str(tmp_path / "adapter"), "--format", "llama-factory", "--output", start])
    lines = yaml.safe_load(capsys.readouterr().out.split("YAML:\n")[1])
    assert lines == {"model_name_or_path": str(tmp_path / "base"), "adapter_name_or_path": start,
                     "finetuning_type": "lora", "create_new_adapter": False}  # fmt: skip
    assert loaded(tmp_path, "start", is_trainable=True).peft_config["default"].inference_mode is False


def test_a_run_hands_over_what_its_search_had_learned(tmp_path):
    """Parts of fused projections among them; not what the retrain made of it."""
    byte_tokenizer().save_pretrained(tmp_path / "base")
    byte_gpt2().save_pretrained(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", [{"input": f"ab {i}", "reference": "cd"} for i in range(16)])
    run = tmp_path / "run"
    run_nlg.main(["--task_name", "nlg", "--train_file", rows, "--validation_file", rows, "--output_dir", str(run),
                  "--model_name_or_path", str(tmp_path / "base"), "--search_max_steps", "8", "--max_steps", "2",
                  "--size", "lora:1", "--decode", "false", "--per_device_train_batch_size", "4", "--use_cpu",
                  "--lora_target_modules", "c_attn#q", "c_attn#v", "--report_to", "none", "--seed", "0"])  # fmt: skip
    cli.main(["export", str(run), "--format", "adapter", "--output", str(tmp_path / "start")])
    start, end = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "start", run))
    kept = load_file(run / "search" / "kept_components.safetensors")
    assert start.keys() == end.keys() and any(not torch.equal(start[name], end[name]) for name in start)
    scales = AdapterFile.from_pretrained(tmp_path / "start").scales
    for name, tensor in start.items():
        if name.endswith("lora_B.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            update = scales[module] * tensor @ start[name.replace("lora_B", "lora_A")]
            third = update.shape[0] // 3
            for part, place in (("q", 0), ("k", 1), ("v", 2)):
                own = update[place * third : (place + 1) * third]
                if f"B.{module}#{part}" in kept:
                    assert torch.allclose(own, kept[f"B.{module}#{part}"] @ kept[f"A.{module}#{part}"], atol=1e-6)
                else:
                    assert own.abs().max() == 0


def test_plain_peft_and_a_plain_trainer_end_where_the_retrain_does(tmp_path):
    """The folder that is handed over, trained by nothing of this package, on the rows of the run."""
    byte_tokenizer().save_pretrained(tmp_path / "base")
    byte_gpt2().save_pretrained(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", [{"input": f"ab {i}", "reference": "cd"} for i in range(24)])
    run, start = tmp_path / "run", tmp_path / "start"
    typed = ["--task_name", "nlg", "--train_file", rows, "--validation_file", rows, "--output_dir", str(run),
             "--model_name_or_path", str(tmp_path / "base"), "--search_max_steps", "8", "--max_steps", "6",
             "--size", "lora:1", "--decode", "false", "--per_device_train_batch_size", "4", "--use_cpu",
             "--learning_rate", "1e-2", "--lora_dropout", "0.1", "--label_smoothing_factor", "0",
             "--report_to", "none", "--seed", "3"]  # fmt: skip
    run_nlg.main(typed)
    cli.main(["export", str(run), "--format", "adapter", "--output", str(start)])
    model = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(tmp_path / "base"), start, is_trainable=True)
    asked = parse_arguments([*typed, "--overwrite"], data_arguments=run_nlg.NlgArguments, **run_nlg.DEFAULTS)
    job = prepare(settle(run_nlg.Nlg(), *asked))
    arguments = copy.copy(job.request.training)
    arguments.output_dir = str(tmp_path / "plain")
    Trainer(model, arguments, job.rows.collator, train_dataset=job.rows.datasets["train"]).train()
    model.save_pretrained(tmp_path / "plain")
    ours, plain, begun = (load_file(place / "adapter_model.safetensors") for place in (run, tmp_path / "plain", start))
    scales = [AdapterFile.from_pretrained(place).scales for place in (run, tmp_path / "plain")]
    assert scales[0] == scales[1] and ours.keys() == plain.keys()
    assert all(torch.allclose(tensor, plain[name], atol=1e-6) for name, tensor in ours.items())
    assert any(not torch.allclose(tensor, begun[name], atol=1e-3) for name, tensor in ours.items())


@pytest.mark.parametrize(
    "typed, sentence",
    [
        (["--format", "adapter"], "--output DIR belongs to --format adapter, llama-factory, method_comparison, got"),
        (["--format", "trl", "--pad"], "--pad belongs to --format adapter and llama-factory, got --format trl"),
        (["--format", "adapter", "--output", "x", "--lora_alpha", "8"], "keeps the adapter's own scale"),
        (["--format", "adapter", "--output", "x"], "holds no adapter_config.json"),
    ],
)
def test_what_does_not_go_together(exported, typed, sentence):
    with pytest.raises(UsageError, match=sentence):
        exported(*typed)
