"""Ranks for trainings that a search cannot run itself: the examples as they are printed."""

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from autolora_trainer import LearnedRanks
from autolora_trainer.lora.parts import lora_layers
from examples import grpo
from tests.helpers.models import byte_llama, byte_tokenizer, padded
from tests.helpers.rows import write_rows

PAIRS = [{"prompt": f"name : {n} |", "completion": f" {n} is a pub ."} for n in "Alba Bo Cenador Dori Et Fano".split()]


@pytest.fixture
def causal(tmp_path, monkeypatch):
    """An empty folder to be in, with a tiny causal model and rows."""
    monkeypatch.chdir(tmp_path)
    byte_llama(initializer_range=0.1, num_hidden_layers=1).save_pretrained("model")
    padded(byte_tokenizer(llama=True)).save_pretrained("model")
    write_rows(tmp_path / "pairs.jsonl", PAIRS * 4)


def test_ranks_of_a_search_are_trained_by_a_reward(causal):
    """GRPO with a search before it, then RLOO with its ranks: the adapters have those ranks, and have learned."""
    command = "--model model --data pairs.jsonl --steps 2 --generations 4 --max_completion_length 8".split()
    command += "--learning_rate 1e-2".split()
    grpo.main([*command, "--output", "a", "--search_steps", "6"])
    grpo.main([*command, "--output", "b", "--trainer", "rloo", "--ranks", "a/ranks.json"])
    ranks = {name: rank for name, rank in LearnedRanks.load("a/ranks.json").ranks.items() if rank}
    for folder in "ab":
        layers = lora_layers(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), folder))
        assert {name: layer.r["default"] for name, layer in layers.items()} == ranks
        assert any(layer.lora_B["default"].weight.abs().max() > 1e-3 for layer in layers.values())


def test_the_reward_of_the_example_is_nearness_in_length():
    told = [{"role": "assistant", "content": "abcd"}]
    assert grpo.as_long(["abcd", "", told], reference=["1234", "12", [{"content": "12345678"}]]) == [0, -1, -0.5]
