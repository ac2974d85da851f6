"""Ranks for trainings that a search cannot run itself: the examples as they are printed."""

import re

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from autolora_trainer import LearnedRanks
from autolora_trainer.lora.parts import lora_layers
from examples import grpo, smollm2
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


# ---- from a model to texts of a merged one

TURNS = "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}a:{% endif %}"


def test_a_model_end_to_end(tmp_path, monkeypatch, capsys):
    """Ranks, training, a smaller adapter, and a merged model that writes the same: sizes and losses are in order."""
    monkeypatch.chdir(tmp_path)
    byte_llama(initializer_range=0.1, num_hidden_layers=1).save_pretrained("model")
    tokenizer = padded(byte_tokenizer(llama=True))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained("model")
    sums = [(a, b) for a in range(6) for b in range(6)]
    rows = [{"question": f"{a}+{b}?", "answer": f"<<{a}+{b}={a + b}>>#### {a + b}"} for a, b in sums]
    write_rows(tmp_path / "sums.jsonl", rows)
    smollm2.main(
        "--model model --data sums.jsonl --rows 16 --held_out_rows 8 --max_length 96 --search_steps 6 --steps 2 "
        "--learning_rate 1e-2 --new_tokens 4 --output out".split()
    )
    printed = capsys.readouterr().out
    found = re.findall(r"^(.+?) +([\d,]+) parameters (?:(\S+) held-out loss)?$", printed, re.MULTILINE)
    sizes, losses = {n: int(p.replace(",", "")) for n, p, _ in found}, {n: float(loss) for n, _, loss in found if loss}
    assert sizes["rank 16 everywhere"] == 2 * sizes["rank 8 everywhere"] == 16 * (3 * 48 + 2 * 24 + 2 * 32)
    assert sizes["no adapter"] == 0 < sizes["compressed"] <= sizes["learned ranks"] <= sizes["rank 8 everywhere"]
    assert losses["learned ranks"] < losses["no adapter"]
    assert "the merged model writes 4 of 4 texts as its adapter does" in printed
    assert smollm2.chat(rows[8])["completion"][0]["content"] == "#### 3"
