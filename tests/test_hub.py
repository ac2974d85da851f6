"""Does the model card say what was done, on one page that parses, and without a word about this machine?"""

import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from autolora_trainer import hub
from autolora_trainer.ranks import LearnedRanks, ModuleRank

RANKS = LearnedRanks(
    {f"roberta.encoder.layer.{i}.attention.self.{p}": ModuleRank(i) for i in range(3) for p in ("query", "value")},
    base_model="FacebookAI/roberta-base",
    rank_rule="threshold",
    constraint="softmax",
    threshold=0.125,
)
PHASE = {"wall_seconds": 61.0, "passes": 120, "examples": 1920, "peak_memory_mb": 512.0}


def write_card(folder, ranks=RANKS, **changes):
    settings = dict(
        base_model="FacebookAI/roberta-base",
        task_name="mrpc",
        dataset_id="nyu-mll/glue",
        dataset_name="GLUE MRPC",
        metrics={"eval_loss": 0.5, "eval_accuracy": 0.74, "eval_accuracy_mm": 0.7, "eval_runtime": 3.0, "epoch": 3.0},
        method="autolora",
        cost={"search": PHASE, "retrain": PHASE, "total": PHASE},
        command="python run_glue.py --task_name mrpc",
        adapter_params=73728,
        head_params=592130,
        seed=42,
    )
    hub.write_model_card(folder, ranks, **{**settings, **changes})
    text = (folder / "README.md").read_text(encoding="utf-8")
    return ModelCard.load(folder / "README.md"), text


# ---- the card


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


# ---- the command


@pytest.mark.parametrize(
    "typed, public",
    [
        ("/opt/x/run.py --task_name mrpc --bf16", "python run.py --task_name mrpc --bf16"),
        ("run.py --train_file /a/b/train.jsonl", "python run.py --train_file $DATA/train.jsonl"),
        ("run.py --train_file=../b/train.csv", "python run.py --train_file=$DATA/train.csv"),
        ("run.py --output_dir /home/me/outputs/x/", "python run.py --output_dir x"),
        ("run.py --output_dir ./outputs/run.one", "python run.py --output_dir run.one"),
        ("run.py --config /home/me/c.yaml", "python run.py --config c.yaml"),
        ("run.py --config=/home/me/settings.json", "python run.py --config=settings.json"),
        ("run.py /home/me/c.yaml", "python run.py c.yaml"),
        ("run.py --model_name_or_path FacebookAI/roberta-base", None),
        ("run.py --model_name_or_path /models/roberta", "python run.py --model_name_or_path roberta"),
        ("run.py --hub_model_id me/x --hub_token hf_abc", "python run.py --hub_model_id me/x --hub_token ***"),
        ("run.py --token=abc --api-key k --x 1", "python run.py --token=*** --api-key *** --x 1"),
        ("run.py --db_password a b --client_secret c", "python run.py --db_password *** *** --client_secret ***"),
        ("HF_TOKEN=abc HF_HOME=/c/hf python3.11 /a/run.py", "HF_TOKEN=*** HF_HOME=hf python3.11 run.py"),
        ("run.py --tokenizer_name gpt2 --max_new_tokens 5", "python run.py --tokenizer_name gpt2 --max_new_tokens 5"),
        ("run.py --run_name hf_abcdefghijklm", "python run.py --run_name ***"),
        ("run.py --endpoint https://u:p@host/x", "python run.py --endpoint $URL"),
        ("""run.py --x '{"p": "/home/me/x", "token": "abc"}'""", """python run.py --x '{"p": "x", "token": "***"}'"""),
        ("run.py --lora_target_modules '.*\\.(query|value)$'", None),
        ("run.py --train_file '/a b/my file.jsonl'", "python run.py --train_file $DATA/'my file.jsonl'"),
        ("run.py --train_file 'C:\\Users\\me\\train.jsonl'", "python run.py --train_file $DATA/train.jsonl"),
        ("/usr/bin/autolora --seed 1 --learning_rate -1e-4", "autolora --seed 1 --learning_rate -1e-4"),
        ("/x/autolora_trainer/__main__.py --seed 1", "python -m autolora_trainer --seed 1"),
        ("/usr/bin/python3 -m torch.distributed.run /x/run.py", "python -m torch.distributed.run run.py"),
        ("run.py --output_dir / --cache_dir ~ --x ../..", "python run.py --output_dir . --cache_dir '~' --x ."),
    ],
)  # fmt: skip
def test_public_command(typed, public):
    shown = hub.public_command(shlex.split(typed))
    assert shown == (f"python {typed}" if public is None else public)
    assert hub.public_command(shlex.split(shown)) == shown


def test_public_command_knows_what_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "1").touch()
    (tmp_path / "mrpc").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "rows").touch()
    typed = ["run_glue.py", "--train_file", "train.jsonl", "--seed", "1", "--task_name", "mrpc"]
    typed += ["--model_name_or_path", "owner/name", "--test_file", str(tmp_path / "rows")]
    assert hub.public_command(typed) == (
        "python run_glue.py --train_file $DATA/train.jsonl --seed 1 --task_name mrpc --model_name_or_path name "
        "--test_file $DATA/rows"
    )


# ---- the upload


class Hub(BaseHTTPRequestHandler):
    """The four requests of an upload of small files."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.seen.append(self.path)
        if self.path in self.server.failing:
            return self.answer(500, {"error": "out of order"})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": f"{self.server.endpoint}/me/adapter", "name": "me/adapter"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.files += [line["value"]["path"] for line in lines if line["key"] == "file"]
            return self.answer(
                200, {"commitUrl": f"{self.server.endpoint}/me/adapter/commit/{'0' * 40}", "commitOid": "0" * 40}
            )
        return self.answer(200, {"errors": [], "warnings": []})

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its store speaks another protocol
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.endpoint, server.seen, server.files, server.failing = f"http://127.0.0.1:{server.server_port}", [], [], ()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run_folder(tmp_path):
    write_card(tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors", "cost.json", "training_args.bin", "my_notes.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "search" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "search" / "checkpoint-4" / "adapter_model.safetensors").write_text("x")
    return tmp_path


def test_push_sends_the_adapter_and_nothing_else(tmp_path, server):
    url = hub.push_to_hub(run_folder(tmp_path), "me/adapter", token="hf_secret", endpoint=server.endpoint)
    assert url == f"{server.endpoint}/me/adapter"
    assert sorted(server.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "cost.json"]


def test_push_goes_to_the_branch_that_is_asked_for(tmp_path, server, monkeypatch):
    folder = run_folder(tmp_path)
    hub.push_to_hub(folder, "me/adapter", endpoint=server.endpoint, revision="dev")
    changing = [path for path in server.seen if "/branch/" in path or "/commit/" in path]
    assert changing == ["/api/models/me/adapter/branch/dev", "/api/models/me/adapter/commit/dev"]
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.failing = ("/api/models/me/adapter/branch/dev",)
    with pytest.raises(hub.PushError, match="type: python -c .*revision=.*dev"):
        hub.push_to_hub(folder, "me/adapter", endpoint=server.endpoint, revision="dev")


@pytest.mark.parametrize("path", ["/api/repos/create", "/api/validate-yaml", "/api/models/me/adapter/commit/main"])
def test_failed_push_is_one_line_and_loses_nothing(tmp_path, server, path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    folder = run_folder(tmp_path)
    before = sorted(p.name for p in folder.rglob("*"))
    server.failing = (path,)
    with pytest.raises(
        hub.PushError, match="Could not push to me/adapter: .*500.* is finished, in .* type: python -c"
    ) as caught:
        hub.push_to_hub(folder, "me/adapter", token="hf_secret", endpoint=server.endpoint)
    assert "\n" not in str(caught.value) and "hf_secret" not in str(caught.value)
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_push_without_a_network_says_so(tmp_path):
    with pytest.raises(hub.PushError, match="Unset HF_HUB_OFFLINE"):
        hub.push_to_hub(run_folder(tmp_path), "me/adapter", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("repo_id", ["a/b/c", "", "a b", "-x", "a--b"])
def test_name_that_no_repository_can_have_is_refused_before_anything_is_sent(tmp_path, repo_id):
    with pytest.raises(ValueError, match="hub_model_id must be a repository's name"):
        hub.push_to_hub(tmp_path, repo_id)
