"""From search to report without a network: this process and a fresh one try no connection and look up no host.

Without HF_HUB_OFFLINE: with it the client of the Hub refuses by itself, and a model in a folder must not even ask.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
from huggingface_hub import constants

import run_glue
import run_ner
import run_nlg
from tests.helpers.commands import ROOT, as_argv, write_sst2
from tests.helpers.faults import hide_java
from tests.helpers.models import byte_gpt2, byte_tokenizer
from tests.helpers.rows import restaurants, reviews, write_rows

SHORT = {
    "max_steps": 2,
    "search_max_steps": 4,
    "hypergradient_interval": 2,
    "initial_rank": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
}
FILES = ["adapter_model.safetensors", "ranks.json", "rank_heatmap.png", "all_results.json", "cost.json", "README.md"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny checkpoint and rows for each script."""
    folder = write_sst2(tmp_path_factory.mktemp("place"))
    write_rows(folder / "ner.jsonl", reviews(20))
    write_rows(folder / "nlg.jsonl", restaurants(12))
    byte_gpt2(initializer_range=0.1).save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture
def attempts(monkeypatch):
    """Every try to reach anything but a Unix socket, which fails; without HF_HUB_OFFLINE."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    tried = []
    connect = socket.socket.connect

    def refuse(self, address, *arguments):
        if self.family == socket.AF_UNIX:
            return connect(self, address, *arguments)
        tried.append(address)
        raise OSError("no network")

    def unknown(host, *arguments, **keywords):
        tried.append(host)
        raise socket.gaierror("no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, unknown)
    return tried


def glue(place, output, **changes):
    files = {f"{split}_file": place / f"{split}.jsonl" for split in ("train", "validation", "test")}
    settings = {"task_name": "sst2", "model_name_or_path": place / "tiny-roberta", "output_dir": output, **files}
    return as_argv({**settings, **SHORT, **changes})


def test_the_guard_counts(attempts):
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(OSError):
        socket.socket().connect(("127.0.0.1", 9))
    assert len(attempts) == 2


def test_search_retrain_and_report_need_no_network(place, tmp_path, attempts):
    argv = glue(place, tmp_path / "o", save_strategy="epoch", base_model_id="me/tiny-roberta", report_to="none")
    results = run_glue.main([*argv, "--do_train", "--do_eval", "--do_predict"])
    assert 0 <= results["eval_accuracy"] <= 1
    assert set(FILES) <= set(os.listdir(tmp_path / "o"))
    run_glue.main([*glue(place, tmp_path / "o"), "--do_eval"])  # and the finished adapter alone
    assert attempts == []


def test_entities_need_no_network(place, tmp_path, attempts):
    settings = {
        "model_name_or_path": place / "tiny-roberta",
        "train_file": place / "ner.jsonl",
        "validation_file": place / "ner.jsonl",
        "output_dir": tmp_path / "o",
    }
    assert 0 <= run_ner.main(as_argv({**settings, **SHORT}))["eval_f1"] <= 1
    assert set(FILES) <= set(os.listdir(tmp_path / "o")) and attempts == []


def test_texts_and_their_metrics_need_no_network(place, tmp_path, attempts, monkeypatch):
    hide_java(monkeypatch)
    settings = {
        "task_name": "e2e",
        "model_name_or_path": place / "gpt2",
        "train_file": place / "nlg.jsonl",
        "validation_file": place / "nlg.jsonl",
        "output_dir": tmp_path / "o",
        "max_new_tokens": 8,
        "num_beams": 1,
    }
    results = run_nlg.main(as_argv({**settings, **SHORT}))
    assert {"eval_bleu", "eval_nist"} <= set(results)
    assert set(FILES) <= set(os.listdir(tmp_path / "o")) and attempts == []


@pytest.mark.parametrize("method", ["lora", "full", "adalora", "eva", "peft"])
def test_no_method_asks_the_hub(place, tmp_path, attempts, method):
    changes = {"peft_type": "IA3"} if method == "peft" else {}
    run_glue.main(
        glue(place, tmp_path / "o", method=method, search_max_steps=None, max_steps=6, test_file=None, **changes)
    )
    assert attempts == []


GUARD = """
import os, socket, sys
tried = []
def refuse(*arguments, **keywords):
    tried.append(arguments[1:] or arguments)
    raise OSError("no network")
connect = socket.socket.connect
socket.socket.connect = lambda self, a: connect(self, a) if self.family == socket.AF_UNIX else refuse(self, a)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
sys.path.insert(0, sys.argv.pop(1))
import run_glue
sys.argv[0] = "run_glue.py"
run_glue.main()
print("attempts", tried)
"""


def test_a_process_of_its_own_needs_no_network_and_no_cache(place, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", GUARD, ROOT, *glue(place, tmp_path / "o", base_model_id="me/tiny-roberta")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "attempts []"
    assert json.loads((tmp_path / "o" / "all_results.json").read_text())["task"] == "sst2"
