"""Does everything arrive that should, and only that? And does a Hub that fails cost one line and no result?

The real client of huggingface_hub talks to `hub_server.HubServer`.
"""

import contextlib
import io
import json
import os
import threading
import time

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import run_glue
from autolora_trainer import LearnedRanks, hub_client
from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.hub.push import PushError, push_to_hub
from autolora_trainer.ranks.adapter import fingerprint
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.runs.record import write_record
from autolora_trainer.scripts.arguments import ModelArguments
from autolora_trainer.scripts.source import load_pretrained
from tests.helpers.commands import sst2_command
from tests.helpers.hub_server import HubServer, use
from tests.helpers.models import tiny_checkpoint, tiny_roberta
from tests.helpers.rows import sentences

TOKEN = "hf_tokenofthetests123456"
RANKS = LearnedRanks(
    {"roberta.encoder.layer.0.attention.self.query": ModuleRank(3, (0.5, 0.3, 0.15, 0.05))},
    base_model="me/tiny-roberta",
    initial_rank=4,
    rank_rule="adaptive",
)
ADAPTER = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "all_results.json", "cost.json",
    "curve.json", "rank_curve.png", "rank_curve.svg", "rank_heatmap.png", "rank_heatmap.svg", "ranks.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


CURVE = {"curve.json", "rank_curve.png", "rank_curve.svg"}
WITHOUT_RANKS = ADAPTER - {"ranks.json", "rank_heatmap.png", "rank_heatmap.svg"} - CURVE


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as server:
        server.pauses = use(server, monkeypatch, tmp_path / "cache")
        yield server


def command(place, output, **changes):
    settings = {
        "base_model_id": "me/tiny-roberta",
        "max_steps": 2,
        "search_max_steps": 4,
        "hypergradient_interval": 2,
        "push_to_hub": True,
        "hub_model_id": "me/sst2-autolora",
        "hub_token": TOKEN,
    }
    return sst2_command(place, output, **{**settings, **changes})


def only_line(text):
    assert len(text.strip().splitlines()) == 1, text
    return text.strip()


@pytest.fixture
def in_seconds():
    """Fails a test that waits for a Hub that does not answer."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30  # the server's silence lasts 60


# ---- a push


@pytest.fixture(scope="module")
def pushed(place, tmp_path_factory):
    """A whole run of the script that ends in a push: (output_dir, what it printed, the server)."""
    folder = tmp_path_factory.mktemp("pushed")
    argv = command(place, folder / "o", test_file=place / "test.jsonl", save_strategy="epoch", num_train_epochs=1)
    (folder / "o").mkdir()
    (folder / "o" / "notes.txt").write_text("mine")
    with HubServer() as server, pytest.MonkeyPatch.context() as patch, io.StringIO() as printed:
        use(server, patch, folder / "cache")
        with contextlib.redirect_stdout(printed):
            run_glue.main([*argv, "--do_train", "--do_eval", "--do_predict"])
        yield folder / "o", printed.getvalue(), server


def test_script_pushes_the_adapter_with_what_belongs_to_it_and_nothing_else(place, pushed):
    output, printed, server = pushed
    files = server.repositories["me/sst2-autolora"]
    assert set(files) == ADAPTER
    assert all((output / path).read_bytes() == content for path, content in files.items())
    left = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()} - ADAPTER
    assert {"notes.txt", "training_args.bin", "run.json", "predict_results_sst2.txt"} <= left  # there, and not sent
    assert any(path.startswith("search/checkpoint-") for path in left)
    assert any(path.startswith("checkpoint-") for path in left)
    sent = b"".join(files.values())
    assert str(place).encode() not in sent and str(output).encode() not in sent and TOKEN.encode() not in sent
    assert server.tokens == {TOKEN} and TOKEN not in printed


def test_push_comes_last_and_once(pushed):
    """Training asks the Hub nothing: PEFT would at every checkpoint, and a Hub that is silent would hold it up."""
    output, printed, server = pushed
    assert printed.splitlines()[-1] == f"pushed to {server.endpoint}/me/sst2-autolora"
    assert server.asked[0] == ("POST", "/api/repos/create")
    commits = [path for method, path in server.asked if "/commit/" in path]
    assert commits == ["/api/models/me/sst2-autolora/commit/main"]
    files = server.repositories["me/sst2-autolora"]
    assert json.loads(files["all_results.json"]) == json.loads((output / "all_results.json").read_text())


def test_card_of_a_push_parses_and_keeps_the_tags(pushed):
    files = pushed[2].repositories["me/sst2-autolora"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.tags == ["peft", "lora", "autolora", "base_model:adapter:me/tiny-roberta"]
    assert card.data.library_name == "peft" and card.data.base_model == "me/tiny-roberta"
    accuracy = json.loads(files["all_results.json"])["eval_accuracy"]
    assert card.data.eval_results[0].metric_value == pytest.approx(accuracy, abs=1e-6)


def test_pushed_adapter_loads_from_the_hub_and_computes_the_same(place, pushed, tmp_path, monkeypatch):
    output, _, server = pushed
    use(server, monkeypatch, tmp_path)
    assert HfApi(endpoint=server.endpoint).model_info("me/sst2-autolora").sha == server.commit_of("me/sst2-autolora")
    base = AutoModelForSequenceClassification.from_pretrained(place / "tiny-roberta")
    model = PeftModel.from_pretrained(base, "me/sst2-autolora").eval()
    tensors = load_file(output / "adapter_model.safetensors")
    loaded = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert loaded and all(torch.equal(tensors[name], parameter) for name, parameter in loaded.items())
    tokenizer = AutoTokenizer.from_pretrained("me/sst2-autolora")
    rows = sentences(20, seed=1)
    batch = tokenizer([row["sentence"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        right = model(**batch).logits.argmax(-1) == torch.tensor([row["label"] for row in rows])
    results = json.loads((output / "all_results.json").read_text())
    assert right.double().mean().item() == results["eval_accuracy"]


def test_second_push_replaces_the_first(place, server, tmp_path):
    argv = command(place, tmp_path / "o", method="lora")
    run_glue.main(argv)
    run_glue.main([*argv, "--overwrite", "--seed", "7"])
    assert len([path for _, path in server.asked if "/commit/" in path]) == 2
    assert json.loads(server.repositories["me/sst2-autolora"]["all_results.json"])["seed"] == 7


def test_private_repository_is_created_private(place, server, tmp_path):
    run_glue.main(command(place, tmp_path / "o", method="lora", hub_private_repo=True))
    assert server.private == {"me/sst2-autolora"}


# ---- ranks by themselves


def test_ranks_come_back_as_they_went(server):
    assert RANKS.push_to_hub("me/ranks", token=TOKEN) == f"{server.endpoint}/me/ranks"
    assert set(server.repositories["me/ranks"]) == {"ranks.json"}
    assert LearnedRanks.from_pretrained("me/ranks") == RANKS
    assert LearnedRanks.from_pretrained("me/ranks", revision=server.commit_of("me/ranks")) == RANKS


def test_ranks_once_loaded_are_there_without_the_hub(server, monkeypatch):
    RANKS.push_to_hub("me/ranks", token=TOKEN)
    LearnedRanks.from_pretrained("me/ranks")
    server.fail("resolve", 500)
    assert LearnedRanks.from_pretrained("me/ranks") == RANKS


def test_any_adapter_is_shown_from_a_few_kilobytes(server, tmp_path, capsys):
    get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=6)).save_pretrained(tmp_path)
    names = ("adapter_config.json", "adapter_model.safetensors")
    server.repositories["they/adapter"] = {name: (tmp_path / name).read_bytes() for name in names}
    cli.main(["show", "they/adapter"])
    out = capsys.readouterr().out
    assert "query  3  3" in out and "largest rank 3, scale 2" in out and "--max-lora-rank 8" in out
    del server.repositories["they/adapter"]["adapter_model.safetensors"]
    with pytest.raises(UsageError, match="nor a repository with adapter_config.json and adapter_model.safetensors"):
        cli.main(["show", "they/adapter"])


def test_ranks_of_other_weights_are_told_on_use(place, server, tmp_path, caplog):
    """The pattern goes by the Hub to a base model of other weights: the run says so, and goes on."""
    run_glue.main(command(place, tmp_path / "first", push_to_hub=None))
    LearnedRanks.load(tmp_path / "first" / "ranks.json").push_to_hub("me/ranks", token=TOKEN)
    fetched = LearnedRanks.from_pretrained("me/ranks")
    fetched.save(tmp_path / "ranks.json")
    same = AutoModelForSequenceClassification.from_pretrained(place / "tiny-roberta")
    assert fetched.base_model_fingerprint == fingerprint(same, fetched.modules)
    other = tiny_checkpoint(tmp_path / "other", initializer_range=0.5)
    for model, told in ((place / "tiny-roberta", False), (other, True)):
        caplog.clear()
        argv = command(
            place,
            tmp_path / f"o{told}",
            ranks=tmp_path / "ranks.json",
            model_name_or_path=model,
            push_to_hub=None,
        )
        run_glue.main(argv)
        assert ("the ranks were learned on me/tiny-roberta, and this base model has other weights" in caplog.text) == (
            told
        )


def test_show_reads_ranks_of_the_hub(server, capsys):
    RANKS.push_to_hub("me/ranks", token=TOKEN)
    cli.main(["show", "me/ranks"])
    assert "ranks of me/tiny-roberta" in capsys.readouterr().out


# ---- failures

FAILURES = [
    ("/api/repos/create", "hang", "timed out"),
    ("/api/repos/create", 401, "401"),
    ("/api/repos/create", 403, "403"),
    ("/api/repos/create", 500, "500"),
    ("/api/repos/create", "cut", "."),
    ("/preupload/", "hang", "timed out"),
    ("/preupload/", 404, "404"),
    ("/preupload/", "cut", "peer closed connection"),
    ("/objects/batch", 500, "500"),
    ("^/lfs/", "hang", "timed out"),
    ("^/lfs/", 503, "503"),
    ("^/lfs/", "cut", "peer closed connection"),
    ("/validate-yaml", "cut", "peer closed connection"),
    ("/commit/", "hang", "timed out"),
    ("/commit/", 401, "401"),
    ("/commit/", 500, "500"),
    ("/commit/", "cut", "peer closed connection"),
]
REMEDIES = {401: "hf auth login", 403: "hf auth login", 404: "repository's name", 500: "Wait until the Hub answers"}


@pytest.fixture(scope="module")
def folder(place, tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("finished") / "o"
    run_glue.main(command(place, output, push_to_hub=None))
    return output


@pytest.mark.parametrize("path, how, message", FAILURES)
def test_failed_push_is_one_line_in_bounded_time(folder, server, in_seconds, path, how, message):
    server.fail(path, how)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(PushError) as caught:
        push_to_hub(folder, "me/x", token=TOKEN)
    line = only_line(str(caught.value))
    assert line.startswith("Could not push to me/x: ") and message in line and TOKEN not in line
    assert f"The run itself is finished, in {folder}. " in line and "type: python -c " in line
    assert REMEDIES.get(how, "Check the connection" if isinstance(how, str) else "Wait") in line
    assert sum(server.pauses) < 80  # what the client would have waited between its attempts, at three pictures
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "adapter_config.json" not in server.repositories.get("me/x", {}) or "/commit/" in path


def test_call_without_an_end_ends():
    with pytest.raises(TimeoutError, match="no whole answer within 0.05 seconds"):
        hub_client.within(0.05, threading.Event().wait)
    assert hub_client.within(5, max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        hub_client.within(5, lambda: 1 / 0)


def test_waits_of_the_user_are_seconds_too():
    """The tests above shorten the waits; these are the real ones, for the first answer and for a small file."""
    assert hub_client.SILENCE_SECONDS <= 60 and hub_client.DOWNLOAD_SECONDS <= 180


def test_the_clients_of_others_are_left_as_they_were(folder, server):
    from huggingface_hub import get_session

    before = get_session().timeout
    push_to_hub(folder, "me/x", token=TOKEN)
    server.fail("create", 500)
    with pytest.raises(PushError):
        push_to_hub(folder, "me/x", token=TOKEN)
    assert get_session().timeout == before


def test_hub_that_is_not_there_is_one_line(folder, server, in_seconds):
    server.shutdown()
    server.server_close()
    with pytest.raises(PushError, match="Connection refused.* Check the connection, then type") as caught:
        push_to_hub(folder, "me/x", token=TOKEN)
    only_line(str(caught.value))
    with pytest.raises(ValueError, match="Connection refused") as caught:
        LearnedRanks.from_pretrained("me/ranks")
    only_line(str(caught.value))


@pytest.mark.parametrize("path, how", [("/repos/create", "hang"), ("/commit/", 500), ("^/lfs/", "cut")])
def test_script_whose_push_fails_has_status_1_and_every_result(place, server, tmp_path, capsys, path, how, in_seconds):
    server.fail(path, how)
    argv = command(place, tmp_path / "o", method="lora")
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("run_glue.py: error: PushError: Could not push to me/sst2-autolora: ") and TOKEN not in last
    assert WITHOUT_RANKS <= set(os.listdir(tmp_path / "o"))
    results = json.loads((tmp_path / "o" / "all_results.json").read_text())
    assert 0 <= results["eval_accuracy"] <= 1

    server._failures.clear()  # what the line says to type does it
    push_to_hub(tmp_path / "o", "me/sst2-autolora", token=TOKEN)
    assert set(server.repositories["me/sst2-autolora"]) == WITHOUT_RANKS


@pytest.mark.parametrize("name", ["a/b/c", "me/x y", "-x", "me/a--b", "me/" + "x" * 200])
def test_name_that_no_repository_can_have_is_refused_before_the_run(place, server, tmp_path, capsys, name):
    argv = command(place, tmp_path / "o", hub_model_id=None)
    assert run_guarded(lambda: run_glue.main([*argv, f"--hub_model_id={name}"]), "run_glue.py") == 2
    assert "hub_model_id must be a repository's name" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "o").exists() and server.asked == []


def test_name_that_the_hub_refuses_is_told(folder, server):
    server.fail("/repos/create", 400)
    with pytest.raises(PushError, match="400.*Check the repository's name and your rights to it") as caught:
        push_to_hub(folder, "me/reserved", token=TOKEN)
    only_line(str(caught.value))


@pytest.mark.parametrize(
    "path, how, message",
    [
        ("resolve", "hang", "timed out"),
        ("resolve", 500, "500"),
        ("resolve", 401, "401"),
        ("resolve", 404, "404"),
        ("ranks.json", "cut", "peer closed connection"),
    ],
)
def test_ranks_that_do_not_come_are_one_line_in_bounded_time(server, in_seconds, path, how, message):
    RANKS.push_to_hub("me/ranks", token=TOKEN)
    server.fail(path, how)
    with pytest.raises(ValueError, match=message) as caught:
        LearnedRanks.from_pretrained("me/ranks", token=TOKEN)
    line = only_line(str(caught.value))
    assert "'me/ranks' is neither a folder or file here nor a repository that gives a ranks.json: " in line
    assert TOKEN not in line and sum(server.pauses) < 60


def test_ranks_that_hang_in_the_middle_end_too(server, in_seconds):
    """The Hub says what it has, and then nothing."""
    RANKS.push_to_hub("me/ranks", token=TOKEN)
    server.fail("resolve", "hang", method="GET")
    with pytest.raises(ValueError, match="timed out|no whole answer"):
        LearnedRanks.from_pretrained("me/ranks")


@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}])
def test_a_hub_that_asks_for_a_day_is_not_waited_for(folder, server, in_seconds, caplog, headers):
    server.fail("^/lfs/", 429, headers=headers)
    with pytest.raises(PushError, match="429"):
        push_to_hub(folder, "me/x", token=TOKEN)
    assert sum(server.pauses) < 80 and "127.0.0.1 asks to wait 86,400 seconds" in caplog.text


def test_short_waits_are_taken_on_until_they_are_long_together(folder, server, in_seconds, monkeypatch):
    monkeypatch.setattr(hub_client, "PATIENCE_SECONDS", 150)
    server.fail("^/lfs/", 429, headers={"Retry-After": "60"})
    with pytest.raises(PushError, match="429"):
        push_to_hub(folder, "me/x", token=TOKEN)
    assert [pause for pause in server.pauses if pause > 50] == [61, 61]


@pytest.mark.parametrize(
    "name, most",
    [("ranks.json", 20_000_000), ("adapter_config.json", 5_000_000), ("adapter_model.safetensors", 30_000_000)],
)
def test_a_body_without_an_end_has_one(server, in_seconds, tmp_path, name, most):
    server.repositories["me/ranks"] = {name: b"{}", "adapter_config.json": b"{}"}
    server.fail(f"/{name}$", "endless", method="GET")
    with pytest.raises(ValueError, match=f"127.0.0.1 sent more than {most:,} bytes, and did not say how many"):
        LearnedRanks.from_pretrained("me/ranks")
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept <= most and server.sent < most + 20_000_000  # what lies in buffers


def test_huge_file_of_a_stranger_is_not_even_read(server, in_seconds):
    server.repositories["me/ranks"] = {"ranks.json": b" " * 30_000_000}
    with pytest.raises(ValueError, match="its ranks.json has 30,000,000 bytes; at most 20,000,000 are read"):
        LearnedRanks.from_pretrained("me/ranks")
    assert ("GET", "/me/ranks/resolve/main/ranks.json") not in server.asked


@pytest.mark.parametrize("how", ["hang", 401, 500, "cut"])
def test_ranks_that_cannot_be_pushed_are_one_line(server, in_seconds, how):
    server.fail("/commit/", how)
    with pytest.raises(ValueError, match="Could not push the ranks to me/ranks: ") as caught:
        RANKS.push_to_hub("me/ranks", token=TOKEN)
    assert TOKEN not in only_line(str(caught.value))


def test_base_model_of_a_silent_hub_comes_from_the_cache_or_costs_one_line(place, server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_client, "HUB_TIMEOUT", 0.5)
    files = {path.name: path.read_bytes() for path in (place / "tiny-roberta").iterdir()}
    server.repositories["me/base"] = files
    model = ModelArguments(cache_dir=str(tmp_path / "models"))
    for auto_class in (AutoTokenizer, AutoConfig, AutoModelForSequenceClassification):
        load_pretrained(auto_class, "me/base", model)
    server.fail("", "hang")
    started = time.monotonic()
    loaded = load_pretrained(AutoModelForSequenceClassification, "me/base", model)
    assert loaded.config.hidden_size == 16
    argv = command(place, tmp_path / "o", model_name_or_path="me/other", base_model_id=None)
    with pytest.raises(
        UsageError, match="Could not load 'me/other': .* the Hugging Face Hub does not give it"
    ) as caught:
        run_glue.main(argv)
    only_line(str(caught.value))
    assert time.monotonic() - started < 30 and not (tmp_path / "o").exists()


def test_card_that_is_no_yaml_is_refused_by_the_hub_and_told(folder, server, tmp_path):
    """The server reads the front matter, as the Hub does: what this package writes passes, this does not."""
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "README.md").write_text("---\ntags: [a\n---\n# x\n")
    write_record(tmp_path / "o", {})
    with pytest.raises(PushError, match="the metadata is no YAML"):
        push_to_hub(tmp_path / "o", "me/x", token=TOKEN)
    assert yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["library_name"] == "peft"
