"""Does the model card say what was done, on one page that parses, and without a word about this machine?"""

import shlex

import pytest
import torch
import yaml
from safetensors.torch import save_file

from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from tests.helpers.cards import RANKS, write_card


def test_card_has_the_metadata_that_the_hub_reads(tmp_path):
    card, text = write_card(tmp_path)
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["library_name"] == "peft" and data["pipeline_tag"] == "text-classification"
    assert data["tags"] == ["peft", "lora", "autolora", "base_model:adapter:FacebookAI/roberta-base"]
    assert data["base_model"] == "FacebookAI/roberta-base" and data["datasets"] == ["nyu-mll/glue"]
    first, second = card.data.eval_results
    assert (first.metric_type, first.metric_value, first.dataset_config) == ("accuracy", 0.74, "mrpc")
    assert (first.dataset_split, second.dataset_split) == ("validation_matched", "validation_mismatched")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_card_shows_ranks_scores_cost_and_how_to_load(tmp_path):
    (tmp_path / "rank_heatmap.png").touch()
    (tmp_path / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    save_file(
        {"base_model.model.classifier.out_proj.weight": torch.zeros(3, 4)}, tmp_path / "adapter_model.safetensors"
    )
    _, text = write_card(tmp_path)
    assert "](rank_heatmap.png)" in text
    assert "| `query` |    0 |    1 |    2 |" in text
    assert r"| accuracy | validation\_matched " in text and "loss" not in text and "runtime" not in text
    assert "| search  | 1 min 01 s |    120 |    1,920 |      512 MB |" in text
    assert "from_pretrained(base, num_labels=3)" in text and "PeftModel.from_pretrained(model, adapter)" in text
    assert "2 of them at rank 0" in text and "73,728" in text and "seed: 42" in text
    assert "python run_glue.py --task_name mrpc" in text and "@inproceedings{zhang-etal-2024-autolora" in text
    assert "max-lora-rank" not in text  # no server for classifiers


def test_load_snippet_is_python(tmp_path):
    for changes in ({}, {"base_model": None}, {"method": "full"}, {"repo_id": "owner/name"}):
        _, text = write_card(tmp_path, **changes)
        compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_causal_language_model_gets_the_servers_rank(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    ranks = LearnedRanks({"transformer.h.0.attn.c_attn#q": ModuleRank(9)})
    card, text = write_card(tmp_path, ranks, base_model="openai-community/gpt2")
    assert "vllm serve openai-community/gpt2 --enable-lora --max-lora-rank 16" in text
    assert card.data.pipeline_tag == "text-generation" and "AutoModelForCausalLM" in text
    assert "`c_attn#q`" in text


@pytest.mark.parametrize(
    "method, tags", [("lora", ["peft", "lora"]), ("adapter", ["adapter"]), ("random", ["peft", "lora"]), ("full", [])]
)
def test_only_autolora_is_tagged_autolora(tmp_path, method, tags):
    card, text = write_card(tmp_path, None, method=method, base_model=None)
    assert (card.data.tags or []) == tags
    assert "## Ranks" not in text and "heatmap" not in text


def test_card_without_scores_or_cost(tmp_path):
    card, text = write_card(tmp_path, metrics={}, cost={}, dataset_id=None)
    assert card.data.eval_results is None and "## Scores" not in text and card.data.get("datasets") is None


def test_score_that_is_not_finite_stays_out_of_the_metadata(tmp_path):
    card, text = write_card(tmp_path, metrics={"eval_accuracy": 0.5, "eval_f1": float("nan")})
    assert [result.metric_type for result in card.data.eval_results] == ["accuracy"]
    assert "nan" in text


def test_scores_are_not_mistaken_for_times_and_counts(tmp_path):
    kinds = ("time", "loss", "samples", "epoch")  # of entities
    scores = {f"eval_f1_{kind}": 0.5 for kind in kinds}
    others = {"eval_samples_per_second": 9.0, "eval_model_preparation_time": 1.0, "train_loss": 1.0, "eval_samples": 8}
    card, _ = write_card(tmp_path, metrics={"eval_loss": 1.0, **others, **scores, "train_runtime": 3.0})
    assert [result.metric_type for result in card.data.eval_results] == [f"f1_{kind}" for kind in kinds]
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}


def test_card_names_no_folder_of_this_machine(tmp_path):
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir(), model.mkdir()
    (data / "train.jsonl").touch()
    _, text = write_card(
        tmp_path,
        LearnedRanks(RANKS.modules, base_model=str(model)),
        base_model=str(model),
        dataset_id=str(data),
        dataset_name=str(data / "train.jsonl"),
        task_name=f"rows of {data}",
        command=f"{tmp_path}/run.py --train_file {data}/train.jsonl --model_name_or_path {model} --token=hf_ab",
    )
    assert str(tmp_path) not in text and str(tmp_path.parent) not in text and "hf_ab" not in text
    assert "python run.py --train_file $DATA/train.jsonl --model_name_or_path model --token=***" in text


HOSTILE = [
    "</title><script>alert(1)</script>",
    "a | b\n---\ntags: [evil]\n---\n# heading",
    "[click](javascript:alert(1)) ![x](y) `code` *b* _i_ ~s~",
    "'\"}: {a: &b !!python/object:os.system",
    "{{ 7 * 7 }}{% for x in y %}",
    "\ufeff---\r\nx: y\u2028---\x00",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_arrive_as_text(tmp_path, name):
    MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt
    ranks = LearnedRanks({f"layer.0.{name}": ModuleRank(1)}, base_model=name, rank_rule=name, constraint=name)
    card, text = write_card(
        tmp_path, ranks, base_model=name, task_name=name, dataset_id=name, dataset_name=name, method=name,
        repo_id=name, metrics={f"eval_{name}": 0.5}, command=f"run --x {shlex.quote(name)} ``` ````",
    )  # fmt: skip
    assert card.data.tags == ["peft"] and card.data.get("base_model") is None and card.data.get("datasets") is None
    shown = " ".join(name.replace("\x00", " ").replace("\ufeff", " ").split())
    assert card.data.eval_results[0].dataset_name == shown
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    inline = [child for token in tokens for child in token.children or []]
    assert not [token for token in [*tokens, *inline] if token.type.startswith("html")]
    links = [token.attrs.get("href", "") for token in inline if token.type == "link_open"]
    assert all(link.startswith("https://") for link in links) and not [t for t in inline if t.type == "image"]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Ranks", "Scores", "Training", "Use", "Reproduce"]
    title = next(token for token in tokens if token.type == "inline")
    assert shown in "".join(child.content for child in title.children)
