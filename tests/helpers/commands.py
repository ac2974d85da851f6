"""The commands of short runs on tiny data, and how processes are launched."""

import os
import re
import sys

from tests.helpers.models import tiny_checkpoint
from tests.helpers.rows import sentences, write_rows

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def write_sst2(folder):
    """A tiny checkpoint and rows of SST-2 in miniature in `folder`, which is returned."""
    tiny_checkpoint(folder / "tiny-roberta")
    write_rows(folder / "train.jsonl", sentences(40))
    write_rows(folder / "validation.jsonl", sentences(20, seed=1))
    write_rows(folder / "test.jsonl", [{**row, "label": -1} for row in sentences(6, seed=2)])
    return folder


def sst2_command(folder, output, **settings):
    """The arguments of a short run of `run_glue.py` on what `write_sst2` wrote; None leaves one out."""
    common = {
        "task_name": "sst2",
        "model_name_or_path": folder / "tiny-roberta",
        "train_file": folder / "train.jsonl",
        "validation_file": folder / "validation.jsonl",
        "output_dir": output,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 4,
        "initial_rank": 4,
        "val_fraction": 0.5,  # of few rows
        "save_strategy": "no",
        "use_cpu": True,
    }
    if settings.get("method") not in ("full", "adapter"):  # which take no modules; these are fewer than all-linear
        common["lora_target_modules"] = "query-value"
    return as_argv({**common, **settings})


def as_argv(settings):
    """{"seed": 1, "ranks": None, "lora_target_modules": ["a", "b"]} -> --seed 1 --lora_target_modules a b"""
    argv = []
    for name, value in settings.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def command(place, output, **changes):
    """A command of `run_glue.py` whose search has one epoch and whose retrain has two."""
    settings = {
        "num_train_epochs": 2,
        "hypergradient": "finite_difference",
        "hypergradient_interval": 2,
        "search_epochs": None if "search_max_steps" in changes else 1,
    }
    return sst2_command(place, output, **{**settings, **changes})


def three_steps(place, output, **changes):
    """A command of `run_glue.py` whose search and retrain have three steps, with a checkpoint at every one."""
    settings = {
        "max_steps": 3,
        "search_max_steps": 3,
        "initial_rank": 2,
        "hypergradient_interval": 1,
        "retrain_init": "search",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    return sst2_command(place, output, **{**settings, **changes})


LAUNCHERS = {
    "torchrun": "-m torch.distributed.run --standalone --nproc_per_node {processes}",
    "accelerate": "-m accelerate.commands.launch --config_file {root}/examples/accelerate/cpu.yaml "
    "--num_processes {processes}",
}


def launch_command(launcher: str, processes: int) -> list[str]:
    """What starts a script in several processes on CPUs."""
    return [sys.executable, *(word.format(root=ROOT, processes=processes) for word in LAUNCHERS[launcher].split())]


def groups_of_help(text: str) -> dict[str, list[str]]:
    """{title: arguments, without their hyphens} of what `--help` shows."""
    groups, title = {}, None
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            title = line[:-1]
        elif title and (match := re.match(r"  (?:-h, )?--(\w+)", line)) is not None:  # usage may begin a line so
            groups.setdefault(title, []).append(match[1])
    return groups
