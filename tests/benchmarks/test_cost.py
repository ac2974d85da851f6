"""Seconds and memory: what the meter reads, and what a table of steps makes of interrupted rounds."""

from types import SimpleNamespace

import pytest
import torch

from autolora_trainer.training import cost as meter
from benchmarks import cost


def test_peak_memory_is_the_process_s_where_a_gpu_is_there_but_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    assert meter.peak_memory_mb() > 50  # an interpreter with torch
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert meter.peak_memory_mb() == 3


def test_a_training_that_begins_again_counts_once():
    model, counter = torch.nn.Linear(2, 2), meter.CostMeter()
    for _ in range(2):
        counter.on_train_begin(SimpleNamespace(world_size=1), None, None, model=model)
    model(torch.ones(3, 2))
    counter.on_train_end(None, None, None)
    model(torch.ones(3, 2))
    assert (counter.stop()["passes"], counter.stop()["examples"]) == (1, 3)


def measured(seconds, memory=100.0):
    return {"adapter_params": 4, "step_seconds": seconds, "passes": 1.0, "peak_memory_mb": memory}


def test_rows_are_medians_and_the_highest_peak():
    figures = {cost.REFERENCE: [measured(1.0), measured(5.0), measured(2.0)], "DoRA r=8": [], "EVA r=8": []}
    figures["AdaLoRA 6->4"] = [measured(3.0, 80.0), measured(5.0, 120.0)]
    lora, adalora = cost.compared(cost.steps_rows(figures))
    assert (lora["wall_seconds"], lora["rounds"], lora["step_ratio"]) == (2.0, 3, 1.0)
    assert (adalora["wall_seconds"], adalora["rounds"], adalora["step_ratio"]) == (4.0, 2, 2.0)
    assert adalora["peak_memory_mb"] == 120.0 and adalora["memory_ratio"] == 1.2
    with pytest.raises(RuntimeError, match="was not measured"):
        cost.compared(cost.steps_rows({cost.REFERENCE: [], "DoRA r=8": [measured(1.0)]}))


def test_an_interrupted_measurement_keeps_its_rounds(monkeypatch):
    left = [measured(1.0), measured(2.0), measured(3.0)]

    def measure(name):
        if not left:
            raise KeyboardInterrupt
        return left.pop(0)

    monkeypatch.setattr(cost, "Bench", lambda arguments: SimpleNamespace(measure=measure))
    arguments = SimpleNamespace(variants=["AdaLoRA", "DoRA"], rounds=2, device="cuda")
    rows, lines = cost.table_steps(arguments)
    assert [(row["method"], row["rounds"]) for row in rows] == [
        (cost.REFERENCE, 1),
        ("AdaLoRA 6->4", 1),
        ("DoRA r=8", 1),
    ]
    assert "| AdaLoRA 6->4 |   2,000.0 |    2.00 |" in lines[0]


def test_a_variant_that_was_never_reached_is_named(monkeypatch):
    def measure(name):
        if name == "DoRA r=8":
            raise KeyboardInterrupt
        return measured(1.0)

    monkeypatch.setattr(cost, "Bench", lambda arguments: SimpleNamespace(measure=measure))
    rows, lines = cost.table_steps(SimpleNamespace(variants=["DoRA"], rounds=2, device="cuda"))
    assert len(rows) == 1 and "DoRA r=8: not measured, interrupted before its first round" in lines
