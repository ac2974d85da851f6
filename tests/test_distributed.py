"""The same search on one process and on two (gloo): the same global batch gives the same ranks."""

import os
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from autolora_trainer import LearnedRanks
from tests.conftest import sentences, tiny_checkpoint, write_rows


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAUNCHERS = ("torchrun", "accelerate")


def launch_command(launcher: str, processes: int) -> tuple[list[str], dict[str, str]]:
    """(command, environment) that start a script in several processes on CPUs."""
    if launcher == "torchrun":
        typed = f"-m torch.distributed.run --standalone --nproc_per_node {processes}"
        return [sys.executable, *typed.split()], {}
    # `accelerate launch --cpu` starts a single process; this is how it starts several on CPUs
    several = "--multi_gpu" if processes > 1 else ""
    typed = f"-m accelerate.commands.launch {several} --num_processes {processes} --num_machines 1"
    typed += f" --mixed_precision no --dynamo_backend no --main_process_port {free_port()}"
    return [sys.executable, *typed.split()], {"ACCELERATE_USE_CPU": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_rows(folder / "train.jsonl", sentences(64))
    write_rows(folder / "validation.jsonl", sentences(10, seed=1))
    return folder


def search(place, output, launcher, batch):
    prefix, environment = launch_command(launcher, 2) if launcher else ([sys.executable], {})
    argv = [
        *prefix,
        os.path.join(ROOT, "run_glue.py"),
        "--task_name",
        "sst2",
        "--model_name_or_path",
        str(place / "model"),
    ]
    argv += ["--train_file", str(place / "train.jsonl"), "--validation_file", str(place / "validation.jsonl")]
    argv += ["--output_dir", str(output), "--learning_rate", "1e-2", "--per_device_train_batch_size", str(batch)]
    argv += [
        "--gradient_accumulation_steps",
        "2",
        "--initial_rank",
        "4",
        "--hypergradient_interval",
        "1",
        "--lora_dropout",
        "0",
    ]
    argv += [
        "--search_epochs",
        "2",
        "--max_steps",
        "2",
        "--use_cpu",
        "--optim",
        "adamw_torch",
        "--adam_epsilon",
        "1e-4",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, **environment}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return LearnedRanks.load(output / "ranks.json"), load_file(output / "adapter_model.safetensors"), done.stdout


def test_two_processes_learn_the_ranks_of_one(place):
    ranks, adapter, _ = search(place, place / "one", None, batch=8)
    for launcher in LAUNCHERS:
        same, same_adapter, output = search(place, place / launcher, launcher, batch=4)
        assert same.ranks == ranks.ranks
        for name, module in ranks.modules.items():
            assert module.selection == pytest.approx(same.modules[name].selection, abs=1e-5)
        for name, tensor in adapter.items():
            assert (tensor - same_adapter[name]).abs().max() < 1e-4
        assert output.count("total rank") == 1  # one process speaks
