"""Does code of strangers run only if typed, do secrets reach no file, and are names text?"""

import json
import shutil
import sys

import pytest
import yaml
from huggingface_hub import ModelCard

import run_glue
import run_ner
from autolora_trainer.commands import cli
from autolora_trainer.errors import run_guarded
from autolora_trainer.scripts.command_line import parse_arguments
from tests.helpers.commands import as_argv, three_steps, write_sst2
from tests.helpers.rows import reviews, write_rows

# ---- code of strangers

EVIL_CODE = """
import os
os.mkdir({marker!r})
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class EvilConfig(PretrainedConfig):
    model_type = "evil"
class EvilModel(PreTrainedModel):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def code_folder(place, tmp_path):
    """A model whose configuration names code that lies beside it."""
    folder = shutil.copytree(place / "tiny-roberta", tmp_path / "model")
    (folder / "evil.py").write_text(EVIL_CODE.format(marker=str(tmp_path / "marker")))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto_map}))
    return folder


@pytest.fixture
def tokenizer_folder(place, tmp_path):
    """A checkpoint whose tokenizer is a file of Python."""
    folder = shutil.copytree(place / "tiny-roberta", tmp_path / "model")
    (folder / "evil.py").write_text(EVIL_CODE.format(marker=str(tmp_path / "marker")))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_code_of_a_model_does_not_run_untyped(place, code_folder, tmp_path, capsys):
    argv = three_steps(place, tmp_path / "o", model_name_or_path=code_folder)
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "trust_remote_code" in lines[0]
    assert not (tmp_path / "marker").exists() and not (tmp_path / "o").exists()


def test_code_of_a_tokenizer_does_not_run_untyped(place, tokenizer_folder, tmp_path, capsys):
    given = {"model_name_or_path": tokenizer_folder}
    argv = three_steps(place, tmp_path / "o", **given, max_steps=1, search_max_steps=1)
    status = run_guarded(lambda: run_glue.main(argv), "run_glue.py")
    assert not (tmp_path / "marker").exists()
    assert status == 0 or len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("of", ["code_folder", "tokenizer_folder"])
def test_code_of_a_model_or_tokenizer_runs_if_typed(place, request, of, tmp_path, monkeypatch):
    """So the two tests above would see it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    given = {"model_name_or_path": request.getfixturevalue(of)}
    argv = [*three_steps(place, tmp_path / "o", **given), "--trust_remote_code"]
    run_guarded(lambda: run_glue.main(argv), "run_glue.py")  # it is no model; its code has run
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
@pytest.mark.parametrize("value", ["true", "'true'", "false", "1"])
def test_a_file_cannot_trust(place, code_folder, tmp_path, capsys, name, value):
    settings = {"task_name": "sst2", "model_name_or_path": str(code_folder), "train_file": str(place / "train.jsonl")}
    text = json.dumps(settings)[:-1] + f', "trust_remote_code": {value}}}'
    (tmp_path / name).write_text(text)
    for argv in ([str(tmp_path / name)], ["--config", str(tmp_path / name)], [f"--config={tmp_path / name}"]):
        assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
        line = capsys.readouterr().err.strip()
        assert "sets trust_remote_code. Type --trust_remote_code yourself" in line and "\n" not in line
    assert not (tmp_path / "marker").exists()


# ---- secrets

SECRETS = {
    "HF_TOKEN": "hf_EnvironmentTokenAAAAAAAAAAAA",
    "WANDB_API_KEY": "wandb0123456789abcdef0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "aws/Secret+Key/0123456789abcdefghij",
    "OPENAI_API_KEY": "sk-proj-0123456789abcdef",
    "MY_DATABASE_PASSWORD": "correct-horse-battery",
}
TYPED = {"token": "hf_TypedTokenBBBBBBBBBBBBBB", "hub_token": "hf_TypedHubTokenCCCCCCCCCCC"}
IN_PATH = "hf_PathTokenDDDDDDDDDDDDDDD"


@pytest.mark.parametrize("method", ["autolora", "lora"])
def test_secrets_reach_no_file_and_no_stream(place, tmp_path, monkeypatch, capfd, method):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    data = tmp_path / IN_PATH
    shutil.copytree(place, data)
    changes = {"retrain_init": None, "search_max_steps": None} if method == "lora" else {}
    argv = three_steps(
        data, tmp_path / "o", method=method, test_file=data / "test.jsonl", base_model_id="me/tiny", log_level="debug",
        model_name_or_path=place / "tiny-roberta", run_name=f"run-{IN_PATH}", **TYPED, **changes,
    )  # fmt: skip
    argv += ["--do_train", "--do_eval", "--do_predict"]
    monkeypatch.setattr(sys, "argv", ["run_glue.py", *argv])
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 0
    secrets = [*SECRETS.values(), *TYPED.values()]
    streams = "".join(capfd.readouterr())
    assert [value for value in (*secrets, IN_PATH) if value in streams] == []
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert {"training_args.bin", "run.json", "README.md", "all_results.json"} <= {path.name for path in files}
    found = [(path.name, v) for path in files for v in secrets if v.encode() in path.read_bytes()]
    assert found == []
    public = ("run.json", "README.md", "cost.json", "all_results.json", "adapter_config.json", "training_args.bin")
    assert [p.name for p in files if p.name in public and IN_PATH.encode() in p.read_bytes()] == []


WORD = "s3cret-w0rd"  # of no form that is known
HUB = "hf_" + "aB3dE6" * 6


@pytest.mark.parametrize(
    "argv",
    [
        ["--hub_tokn", TYPED["hub_token"], "--resume_from_checkpoint", TYPED["token"]],
        [f"--train_file=x?token={SECRETS['WANDB_API_KEY']}"],
        ["--task_name", TYPED["token"]],
        [f"--tokn={WORD}"],
        ["--hub-tokn", WORD],
        ["-token", WORD],
        [f"--token{WORD}"],
        [f"\u2014token={WORD}"],
        ["token", WORD],
        ["--token", "x", WORD],
        [f"--token=two {WORD}"],
        ["--hub_token", f"{WORD}\u00e9"],
        ["--model_name_or_path", f"https://me:{WORD}@127.0.0.1:9/model"],
        ["--train_file", f"https://me:{WORD}@127.0.0.1:9/rows.jsonl"],
        ["--run_name", HUB],
        ["--output_dir", f"out-{HUB}"],
        [f"--{HUB}"],
    ],
)
def test_secrets_reach_no_error(tmp_path, monkeypatch, capfd, argv):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    argv = ["--task_name", "sst2", "--output_dir", str(tmp_path / "o"), *argv]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    shown = "".join(capfd.readouterr())
    assert shown.startswith("run_glue.py: error: ") and shown.count("\n") == 1
    assert not any(value in shown for value in (WORD, HUB, *TYPED.values(), *SECRETS.values()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [f"tokn: {WORD}", f"token: [{WORD}, x]", f"hub_token: *{WORD}", f"hub_token: !{WORD} x", f'token: "{WORD}',
     f"token: {{a: {WORD}}}", f"hub_token:\n- {WORD}\n- {WORD}"],
)  # fmt: skip
def test_secrets_in_a_config_reach_no_error(tmp_path, capfd, text):
    (tmp_path / "c.yaml").write_text(f"task_name: sst2\n{text}\n")
    argv = ["--config", str(tmp_path / "c.yaml"), "--output_dir", str(tmp_path / "o"), "--train_file", "none.jsonl"]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    shown = "".join(capfd.readouterr())
    assert shown.count("\n") == 1 and WORD not in shown


@pytest.mark.parametrize(
    "argv",
    [
        ["find", "m", "d", "--hub_tok", WORD, "--output_dir", "o"],
        ["--hub_tokn", WORD, "find", "m"],
        ["show", "m", WORD],
        ["export", "m", f"--tokn={WORD}"],
        ["show", f"https://me:{WORD}@host/x"],
        ["run", "glue", f"--tokn={WORD}"],
        ["compress", "m", "--rank", "1", "--output_dir", "o", "--hub_model_id", "a/b", "--hub_token", f"{WORD} x"],
    ],
)
def test_secrets_reach_no_error_of_the_command(tmp_path, monkeypatch, capfd, argv):
    monkeypatch.chdir(tmp_path)
    assert run_guarded(lambda: cli.main(argv), "autolora") == 2
    shown = "".join(capfd.readouterr())
    assert shown.startswith("autolora: error: ") and shown.count("\n") == 1 and WORD not in shown


def test_a_token_is_sent_as_it_was_meant(place, tmp_path):
    typed = ["--token", " hf_a\r\n", "--hub_token", "hf_b\n"]
    model, _, _, training = parse_arguments(three_steps(place, tmp_path) + typed)
    assert (model.token, training.hub_token) == ("hf_a", "hf_b") and "hf_a" not in repr(model)


# ---- names of strangers

HOSTILE_NAMES = {
    "folder": "m --- <img src=x onerror=alert(1)> [a](javascript:x) {{7*7}} 'q' \"d\": &y *b* |t|",
    "labels": ["B-<script>", "I-<script>", "B-a:b|c", "B-[x](y)", "B-`code`", "B-{{x}}", "O"],
}


def test_names_of_a_run_are_text_in_its_card(tmp_path):
    """A whole run on entity types and a folder that are Markdown, HTML, YAML and templates."""
    MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt
    place = write_sst2(tmp_path)
    folder = shutil.move(place / "tiny-roberta", tmp_path / HOSTILE_NAMES["folder"])
    swap = {"B-praise": HOSTILE_NAMES["labels"][0], "I-praise": HOSTILE_NAMES["labels"][1]}
    made = reviews(20)
    for index, row in enumerate(made):
        blame = HOSTILE_NAMES["labels"][2 + index % 4]
        row["tags"] = [swap.get(tag, blame if "blame" in tag else tag) for tag in row["tags"]]
    train = write_rows(tmp_path / "a ---.jsonl", made)
    settings = {
        "model_name_or_path": folder, "train_file": train, "validation_file": train, "output_dir": tmp_path / "o",
        "max_steps": 2, "search_max_steps": 2, "hypergradient_interval": 1, "initial_rank": 2, "use_cpu": True,
    }  # fmt: skip
    results = run_ner.main(as_argv(settings))
    assert any("<script>" in key for key in results)  # the metrics of a type carry its name
    text = (tmp_path / "o" / "README.md").read_text()
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["tags"] == ["peft", "lora", "autolora"] and "base_model" not in data
    named = [metric["name"] for metric in data["model-index"][0]["results"][0]["metrics"]]
    assert any("<script>" in name for name in named)
    card = ModelCard.load(tmp_path / "o" / "README.md")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    inline = [child for token in tokens for child in token.children or []]
    assert not [token for token in [*tokens, *inline] if token.type.startswith("html")]
    assert all(t.attrs["href"].startswith("https://") for t in inline if t.type == "link_open")
    assert [t.attrs["src"] for t in inline if t.type == "image"] == ["rank_heatmap.png"]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Ranks", "Scores", "Training", "Use", "Reproduce", "Citation"]
    shown = "".join(child.content for child in inline)
    assert "<script>" in shown and "49" not in headings[0]
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")
