"""Sizes and runs of the methods of `--method`."""

import importlib.util
import json
import os

import pytest
import torch

import run_glue
from autolora_trainer.runs.outputs import TRIAL_FILE
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.job import Job
from autolora_trainer.scripts.pipeline import prepare
from autolora_trainer.scripts.request import settle
from tests.helpers.commands import command

HEAD = 16 * 17 + 16 * 2 + 2  # of the tiny RoBERTa: dense and out_proj
COST = 16 + 16  # one component of query or value; there are four modules
PEFT_FILE = "adapter_model.safetensors"


def prepared(place, output, **changes) -> Job:
    """A run that has been checked, before its method prepares."""
    job = prepare(settle(run_glue.Glue(), *parse_arguments(command(place, output, **changes))))
    os.makedirs(output, exist_ok=True)
    return job


def collate(batch):
    """Rows of one length as a batch."""
    return {key: torch.tensor([row[key] for row in batch]) for key in batch[0]}


needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="the extra `grid`")


class Trials:
    """In place of processes: a trial's loss is a formula, and some trial is the last one before the run dies."""

    def __init__(self, dies_after=None):
        self.ran, self.dies_after = [], dies_after

    def __call__(self, ranks, folder):
        if len(self.ran) == self.dies_after:
            raise KeyboardInterrupt
        self.ran.append(os.path.basename(folder))
        query, value = (ranks[f"roberta.encoder.layer.1.attention.self.{name}"] for name in ("query", "value"))
        cost = {"wall_seconds": 1.0, "passes": 10, "examples": 40, "peak_memory_mb": 100.0 + query}
        with open(os.path.join(folder, TRIAL_FILE), "w") as file:
            json.dump({"loss": abs(query - 4) + abs(value - 2) + 0.5, "cost": cost}, file)
        return 0
