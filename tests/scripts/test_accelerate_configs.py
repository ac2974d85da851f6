"""The configurations in examples/accelerate: accelerate reads them, and what cannot be sharded is refused."""

import glob
import os

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from peft import LoraConfig
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

import run_glue
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.pipeline import execute
from tests.helpers.commands import ROOT, sst2_command
from tests.helpers.models import lora, tiny_gpt2, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import short_training

FOLDER = os.path.join(ROOT, "examples", "accelerate")
NAMES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(FOLDER, "*.yaml")))


def launch_arguments(name, *more):
    parsed = launch_command_parser().parse_args(["--config_file", os.path.join(FOLDER, name), *more, "run_glue.py"])
    return _validate_launch_command(parsed)[0]


def launch_environment(name):
    """The variables through which `accelerate launch` speaks to the processes that it starts."""
    arguments = launch_arguments(name)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        environment = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


def command(place, output, **changes):
    settings = {
        "max_steps": 2,
        "search_max_steps": 5,
    }
    return sst2_command(place, output, **{**settings, **changes})


# ---- accelerate reads them


def test_every_way_of_training_has_a_configuration():
    assert NAMES == ["cpu.yaml", "ddp.yaml", "deepspeed_zero2.yaml", "fsdp2.yaml", "nodes.yaml", "one_gpu.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key(name):
    config = load_config_from_file(os.path.join(FOLDER, name))  # raises for keys it does not know
    known = vars(launch_command_parser().parse_args(["run_glue.py"]))
    for group in (config.fsdp_config, config.deepspeed_config):
        assert set(group or {}) <= set(known)  # it would take any key there, in silence


@pytest.mark.parametrize(
    "name, processes, precision, kind",
    [
        ("one_gpu.yaml", 1, "bf16", None),
        ("ddp.yaml", 8, "bf16", "multi_gpu"),
        ("nodes.yaml", 16, "bf16", "multi_gpu"),
        ("fsdp2.yaml", 8, "bf16", "use_fsdp"),
        ("deepspeed_zero2.yaml", 8, "bf16", "use_deepspeed"),
        ("cpu.yaml", 2, "no", "multi_gpu"),
    ],
)
def test_accelerate_launches_what_the_name_says(name, processes, precision, kind):
    arguments = launch_arguments(name)
    assert (arguments.num_processes, arguments.mixed_precision) == (processes, precision)
    kinds = ("multi_gpu", "use_fsdp", "use_deepspeed")
    assert [key for key in kinds if getattr(arguments, key)] == ([kind] if kind else [])


def test_typed_values_win_over_the_file():
    assert launch_arguments("ddp.yaml", "--num_processes", "3").num_processes == 3


def test_two_machines_share_the_processes():
    arguments = launch_arguments("nodes.yaml", "--machine_rank", "1", "--main_process_ip", "10.0.0.5")
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 1)
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "10.0.0.5:29500")


# ---- what cannot be sharded is refused before anything is written; that a search can be: tests/search/test_sharded.py


@pytest.mark.parametrize(
    "environment, changes, says",
    [
        ({}, {"hypergradient": "finite_difference"}, "Under FSDP the search has hypergradient first_order alone"),
        ({"FSDP_VERSION": "1"}, {}, "The search runs under FSDP2, got FSDP version 1. Set fsdp_version: 2."),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "fsdp_activation_checkpointing renames the modules"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {}, "Set fsdp_state_dict_type: FULL_STATE_DICT."),
    ],
)
def test_a_search_that_fsdp_cannot_have_ends_before_it_writes(place, monkeypatch, capsys, environment, changes, says):
    for key, value in {**launch_environment("fsdp2.yaml"), **environment}.items():
        monkeypatch.setenv(key, value)
    output = place / "refused"
    assert run_guarded(lambda: run_glue.main(command(place, output, **changes)), "run_glue.py") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("run_glue.py: error: ") and says in message
    assert not output.exists()


def test_a_search_under_deepspeed_ends_before_it_writes(place, monkeypatch):
    groups = parse_arguments(command(place, place / "refused"))
    for key, value in launch_environment("deepspeed_zero2.yaml").items():  # later: parsing would ask for the library
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match="The search does not run under DeepSpeed, .* takes the weight step at once"):
        execute(run_glue.Glue(), *groups)
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"method": "adalora"}, "AdaLoRA reads whole gradients"),
        ({"method": "adapter"}, "--method adapter saves whole tensors"),
        ({"method": "svd"}, "A truncated SVD takes whole LoRA weights"),
    ],
)
def test_other_methods_that_need_whole_tensors_are_refused(place, monkeypatch, changes, what):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match=f"{what}, and FSDP shards them"):
        run_glue.main(command(place, place / "refused", **changes))
    assert not (place / "refused").exists()


def test_a_search_under_fp16_of_the_configuration_is_refused(place, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="does not run in fp16"):
        run_glue.main(command(place, place / "refused"))


def test_evaluation_alone_scores_as_the_run_did_under_bf16_of_the_configuration(place, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    training = command(place, place / "bf16", method="lora")
    results = run_glue.main(training)
    again = run_glue.main([*training, "--do_eval"])
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-7)


def test_the_library_refuses_to_search_under_deepspeed(tmp_path):
    arguments = short_training(tmp_path, AutoLoraTrainingArguments, initial_rank=4, max_steps=1)
    trainer = AutoLoraTrainer(lora(tiny_roberta()), arguments, train_dataset=rows())
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="does not run under DeepSpeed"):
        trainer.train()


@pytest.fixture(scope="module")
def ranks(place):
    run_glue.main(command(place, place / "searched"))
    return place / "searched" / "ranks.json"


def test_a_retrain_takes_the_environment_of_fsdp(place, monkeypatch, ranks):
    """On CPUs accelerate trains data-parallel in place of FSDP; so this tests that nothing refuses it."""
    for key, value in launch_environment("fsdp2.yaml").items():
        monkeypatch.setenv(key, value)
    results = run_glue.main(command(place, place / "retrained", ranks=ranks))
    assert LearnedRanks.load(place / "retrained" / "ranks.json").ranks == LearnedRanks.load(ranks).ranks
    assert results["adapter_params"] == 32 * LearnedRanks.load(ranks).total_rank  # 16 + 16 for a component


@pytest.fixture
def mesh():
    """A group of this process alone: `fully_shard` then works as with several, on shards that hold everything."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def trained_weights(model, blocks, labels, mesh):
    for block in blocks if mesh else []:
        fully_shard(block, mesh=mesh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.randint(3, 60, (4, 10), generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        model(input_ids=ids, labels=ids if labels is None else labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert all(hasattr(weight, "full_tensor") == bool(mesh) for weight in weights.values())
    return {name: weight.full_tensor() if mesh else weight for name, weight in weights.items()}


def test_an_adapter_of_unequal_ranks_trains_sharded_as_it_does_whole(mesh):
    def weights(mesh):
        torch.manual_seed(0)
        base = tiny_roberta()
        names = [name for name, _ in base.named_modules() if name.endswith((".query", ".value"))]
        ranks = LearnedRanks({name: ModuleRank(rank) for rank, name in enumerate(names, start=1)})
        model = build_adapter(base, ranks, LoraConfig(task_type="SEQ_CLS", lora_alpha=16))
        return trained_weights(model, [*base.roberta.encoder.layer, model], torch.tensor([0, 1, 0, 1]), mesh)

    whole, sharded = weights(None), weights(mesh)
    assert [name for name in whole if not torch.allclose(whole[name], sharded[name], atol=1e-6)] == []


@pytest.mark.filterwarnings("ignore:Model config")
def test_parts_of_a_fused_projection_train_sharded_as_they_do_whole(mesh):
    def weights(mesh):
        torch.manual_seed(0)
        base = tiny_gpt2(bos_token_id=0, eos_token_id=0)
        names = [name for name, _ in base.named_modules() if name.endswith("c_attn")]
        ranks = LearnedRanks({f"{name}#{part}": ModuleRank(2) for name in names for part in "qv"})
        model = build_adapter(base, ranks, LoraConfig(task_type="CAUSAL_LM"))
        return trained_weights(model, [*base.transformer.h, model], None, mesh)

    whole, sharded = weights(None), weights(mesh)
    assert [name for name in whole if not torch.allclose(whole[name], sharded[name], atol=1e-6)] == []
    keys = [weight[16:32] for name, weight in sharded.items() if "lora_B" in name]
    assert keys and not any(own.any() for own in keys)  # the zeros of what has no part


def test_parts_of_fused_projections_may_be_sharded(place, monkeypatch):
    folder = str(place / "tiny-gpt2")
    tokenizer = AutoTokenizer.from_pretrained(place / "tiny-roberta")
    tokenizer.save_pretrained(folder)
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40, pad_token_id=1)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    changes = {"method": "lora", "model_name_or_path": folder, "max_steps": 1}
    run_glue.main(command(place, place / "fused", **changes))
