"""Are files data? Pickles never run, ranks of strangers are read with bounds, code of strangers only if typed, secrets
reach no file, and names are text.
"""

import json
import os
import pickle
import re
import shutil
import sys
import time

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import run_glue
import run_ner
from autolora_trainer import AutoLoraTrainer, LearnedRanks, checkpoints
from autolora_trainer.checkpoints import MANIFEST, _hash, fault, newest_checkpoint, sealed
from autolora_trainer.errors import run_guarded
from autolora_trainer.methods.autolora import KEPT_COMPONENTS
from autolora_trainer.ranks import ModuleRank
from autolora_trainer.trainer_utils import RetrainTrainer
from tests.test_ner import reviews
from tests.test_scripts import interrupt
from tests.tiny import as_argv, sst2_command, write_rows, write_sst2


def command(place, output, **changes):
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


@pytest.fixture(scope="module")
def interrupted(place, tmp_path_factory):
    """{phase: output_dir of a run that was killed in its third step}; checkpoints 1 and 2 of the phase are whole."""
    folder = tmp_path_factory.mktemp("interrupted")
    for phase, trainer in (("search", AutoLoraTrainer), ("retrain", RetrainTrainer)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, trainer, 2)
            run_glue.main(command(place, folder / phase))
    return {phase: folder / phase for phase in ("search", "retrain")}


def checkpoint(output, phase, step=2):
    return (output / "search" if phase == "search" else output) / f"checkpoint-{step}"


# ---- what is a pickle, and how it is read

TRAINERS_OWN = re.compile(r"optimizer\.pt|scheduler\.pt|rng_state(_\d+)?\.pth|training_args\.bin")


@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_only_trainers_own_files_are_pickles(interrupted, phase):
    kinds = {"data": set(), "pickle": set()}
    for path in interrupted[phase].rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:4]
            kinds["pickle" if head.startswith((b"PK\3\4", b"\x80")) else "data"].add(path.name)
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} == kinds["pickle"]
    assert all(TRAINERS_OWN.fullmatch(name) for name in kinds["pickle"])
    ours = {"selection.safetensors", "selection.json", MANIFEST, "adapter_model.safetensors", "run.json"}
    ours |= {KEPT_COMPONENTS, "cost.json", "ranks.json"} if phase == "retrain" else set()
    assert ours <= kinds["data"]


@pytest.fixture
def unpickled(monkeypatch):
    """What was unpickled: names of files that `torch.load` read with `weights_only=True`. Anything else fails."""
    read, load = [], torch.load

    def safe_load(file, *arguments, weights_only=None, **keywords):
        assert weights_only is True, f"torch.load of {file} without weights_only=True"
        read.append(os.path.basename(str(file)))
        return load(file, *arguments, weights_only=True, **keywords)

    def refuse(*arguments, **keywords):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", safe_load)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    return read


@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_resume_reads_trainers_own_files_as_weights_only_and_unpickles_nothing(
    place, interrupted, tmp_path, unpickled, phase
):
    output = shutil.copytree(interrupted[phase], tmp_path / "o")
    results = run_glue.main([*command(place, output), "--resume_from_checkpoint"])
    assert results["resumed_from"] == {"phase": phase, "step": 2}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(unpickled)
    assert all(TRAINERS_OWN.fullmatch(name) for name in unpickled) and "training_args.bin" not in unpickled
    run_glue.main([*command(place, output), "--do_eval"])


# ---- pickles of strangers


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def plant(path, marker, form="pickle"):
    """A pickle that runs code, in place of a file: bare, or as `torch.save` writes it."""
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save({"state": Bomb(marker), "param_groups": []}, path)


def forge(folder):
    """A manifest whose sizes and hashes fit whatever lies in the folder."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    (folder / MANIFEST).write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_the_planted_pickle_would_run(tmp_path, form):
    plant(tmp_path / "x", tmp_path / "marker", form)
    with open(tmp_path / "x", "rb") as file:
        pickle.load(file) if form == "pickle" else torch.load(file, weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_planted_pickle_in_place_of_each_file_is_no_checkpoint(interrupted, tmp_path, phase, form):
    """Every file that a resume reads, under a manifest that fits: the checkpoint before is the newest."""
    kept = checkpoint(interrupted[phase], phase)
    names, passed_over = sorted(os.listdir(kept)), []
    for name in names:
        folder = shutil.copytree(kept.parent, tmp_path / name)
        plant(folder / kept.name / name, tmp_path / "marker", form)
        if name != MANIFEST:
            forge(folder / kept.name)
        newest, lines = newest_checkpoint(folder)
        assert os.path.basename(newest) == ("checkpoint-1" if lines else "checkpoint-2") and len(lines) <= 1
        assert all(name in line for line in lines)
        passed_over += [name] if lines else []
    assert set(names) - set(passed_over) <= {"training_args.bin", "README.md"}  # these are never read
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "optimizer.bin", "scaler.pt"])
def test_planted_pickle_beside_the_files_is_no_checkpoint(interrupted, tmp_path, name):
    """A library that finds another name than ours may prefer it: Trainer takes pytorch_model.bin before an adapter."""
    folder = shutil.copytree(checkpoint(interrupted["search"], "search"), tmp_path / "checkpoint-2")
    plant(folder / name, tmp_path / "marker", "torch")
    assert fault(folder) == f"has a {name} that is no data of a checkpoint"
    torch.save({"step": torch.ones(1)}, folder / name)  # data may lie there
    assert fault(folder) is None


@pytest.mark.parametrize("names", ["all", "unread"])
@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_resume_over_planted_pickles_runs_none_and_goes_on(place, interrupted, tmp_path, caplog, phase, names):
    output = shutil.copytree(interrupted[phase], tmp_path / "o")
    folder = checkpoint(output, phase)
    for path in folder.iterdir():
        if path.name != MANIFEST and (names == "all" or path.name in ("training_args.bin", "README.md")):
            plant(path, tmp_path / "marker", "torch" if path.suffix in (".pt", ".pth", ".bin") else "pickle")
    if names == "all":
        plant(folder / "pytorch_model.bin", tmp_path / "marker", "torch")
    forge(folder)
    results = run_glue.main([*command(place, output), "--resume_from_checkpoint"])
    assert not (tmp_path / "marker").exists()
    assert results["resumed_from"] == {"phase": phase, "step": 1 if names == "all" else 2}
    assert bool(re.search("passed over: .*checkpoint-2 has a .* that is no data", caplog.text)) == (names == "all")
    if names == "all":  # the new checkpoint holds nothing of the old one
        assert fault(folder) is None and not (folder / "pytorch_model.bin").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_trainer_itself_runs_no_planted_pickle(place, interrupted, tmp_path, capsys, monkeypatch, phase, name):
    """Behind the check of the files stands `weights_only=True`."""
    monkeypatch.setattr(checkpoints, "_is_data", lambda path: True)
    output = shutil.copytree(interrupted[phase], tmp_path / "o")
    plant(checkpoint(output, phase) / name, tmp_path / "marker", "torch")
    forge(checkpoint(output, phase))
    argv = [*command(place, output), "--resume_from_checkpoint"]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 1
    assert not (tmp_path / "marker").exists()
    assert "UnpicklingError" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_planted_checkpoint_that_is_asked_for_by_name_is_one_line(place, interrupted, tmp_path, capsys, phase):
    output = shutil.copytree(interrupted[phase], tmp_path / "o")
    folder = checkpoint(output, phase)
    plant(folder / "optimizer.pt", tmp_path / "marker", "torch")
    forge(folder)
    argv = command(place, output, resume_from_checkpoint=folder)
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "has a optimizer.pt that is no data of a checkpoint. Give a checkpoint-N" in lines[0]
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "[" * 100_000, '{"step": 2, "files": []}', '{"step": 2, "files": {"x": 1}, "cost": null}',
     '{"step": "2", "files": {}, "cost": null}', '{"step": 2, "files": {}, "cost": {"passes": "1"}}', '{"step": 2}'],
)  # fmt: skip
def test_manifest_of_another_shape_is_damaged(interrupted, tmp_path, content):
    folder = shutil.copytree(checkpoint(interrupted["search"], "search"), tmp_path / "checkpoint-2")
    if content.startswith("{"):
        content = json.dumps(sealed(json.loads(content)))
    (folder / MANIFEST).write_text(content)
    assert fault(folder) == "has a damaged manifest.json"


def test_a_changed_figure_in_a_manifest_is_damage(interrupted, tmp_path):
    folder = shutil.copytree(checkpoint(interrupted["search"], "search"), tmp_path / "checkpoint-2")
    assert fault(folder) is None
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"step": 2', '"step": 3'))
    assert fault(folder) == "has a damaged manifest.json"


@pytest.mark.parametrize(
    "name, status, sentence",
    [
        ("ranks.json", 1, "ranks.json is not a ranks.json: "),
        ("search/cost.json", 1, "cost.json is damaged: .* Remove it to do without it."),
        (f"search/{KEPT_COMPONENTS}", 1, f"{KEPT_COMPONENTS} is no safetensors file .*Search again."),
        ("run.json", 0, ""),
    ],
)
def test_planted_pickle_between_the_phases_is_one_line(place, interrupted, tmp_path, capsys, name, status, sentence):
    """A run that goes on between search and retrain reads what the search left."""
    output = shutil.copytree(interrupted["retrain"], tmp_path / "o")
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)
    plant(output / name, tmp_path / "marker")
    argv = [*command(place, output, max_steps=1), "--resume_from_checkpoint"]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == status
    assert not (tmp_path / "marker").exists()
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == (status > 0) and all(re.search(sentence, line) for line in errors)


@pytest.mark.parametrize("retrained", [False, True])
def test_search_whose_kept_components_are_gone_goes_on_to_make_them_again(place, interrupted, tmp_path, retrained):
    """Before the retrain has a checkpoint it begins with them; after that it does not need them."""
    output = shutil.copytree(interrupted["retrain"], tmp_path / "o")
    for path in () if retrained else output.glob("checkpoint-*"):
        shutil.rmtree(path)
    kept = output / "search" / KEPT_COMPONENTS
    content = kept.read_bytes()
    kept.unlink()
    results = run_glue.main([*command(place, output), "--resume_from_checkpoint"])
    assert results["resumed_from"]["phase"] == ("retrain" if retrained else "search")
    assert not kept.exists() if retrained else kept.read_bytes() == content


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_planted_pickle_in_place_of_the_adapter_is_one_line(place, tmp_path, capsys, name):
    output = tmp_path / "o"
    run_glue.main(command(place, output, method="lora", max_steps=1, retrain_init=None, save_strategy="no"))
    if name == "adapter_model.bin":
        os.remove(output / "adapter_model.safetensors")
    plant(output / name, tmp_path / "marker", "torch" if name.endswith("bin") else "pickle")
    capsys.readouterr()
    argv = [*command(place, output, method="lora", retrain_init=None), "--do_eval"]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and f"The adapter in {output} does not load on" in lines[0]
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["cost.json", "all_results.json"])
def test_show_runs_no_planted_pickle(place, interrupted, tmp_path, capsys, name):
    from autolora_trainer import cli

    output = shutil.copytree(interrupted["retrain"], tmp_path / "o")
    plant(output / name, tmp_path / "marker")
    assert run_guarded(lambda: cli.main(["show", str(output)]), "autolora") == 2
    assert f"{name} is not JSON" in capsys.readouterr().err and not (tmp_path / "marker").exists()


# ---- ranks of strangers


def ranks_file(modules='{"q": {"rank": 1}}', more=""):
    return f'{{"format_version": 1, "modules": {modules}{more}}}'


def many(count):
    return "{" + ",".join(f'"m{i}":{{"rank":1}}' for i in range(count)) + "}"


HOSTILE_RANKS = {
    "parent": (lambda: ranks_file('{"../../etc/passwd": {"rank": 1}}'), "is not a module name"),
    "absolute": (lambda: ranks_file('{"/etc/passwd": {"rank": 1}}'), "is not a module name"),
    "drive": (lambda: ranks_file('{"C:\\\\\\\\x": {"rank": 1}}'), "is not a module name"),
    "regex": (lambda: ranks_file('{"(a+)+$": {"rank": 1}}'), "is not a module name"),
    "long regex": (lambda: ranks_file('{"' + "(a|a?)+" * 100_000 + '": {"rank": 1}}'), "is not a module name"),
    "long name": (lambda: ranks_file('{"' + "a" * 1_000_000 + '!": {"rank": 1}}'), "is not a module name"),
    "terminal": (lambda: ranks_file(more=', "base_model": "\\u001b]0;x\\u0007"'), "must be a short text on one line"),
    "lines": (lambda: ranks_file(more=', "rank_rule": "a\\nb"'), "must be a short text on one line"),
    "surrogate": (lambda: ranks_file(more=', "base_model": "\\ud800"'), "must be a short text on one line"),
    "100 MB": (lambda: " " * 100_000_000, "has 100,000,000 bytes; a ranks.json has at most 20,000,000"),
    "brackets": (lambda: "[" * 100_000, "is not a ranks.json"),
    "braces": (lambda: '{"a":' * 100_000, "is not a ranks.json"),
    "nested modules": (lambda: ranks_file('{"q": ' + '{"rank":' * 100_000 + "}" * 100_000 + "}"), "is not a ranks"),
    "nested selection": (
        lambda: ranks_file('{"q": {"rank": 1, "selection": ' + "[" * 50_000 + "]" * 50_000 + "}}"),
        "is not a ranks.json",
    ),
    "NaN": (lambda: ranks_file('{"q": {"rank": NaN}}'), "NaN, which is no number"),
    "Infinity": (lambda: ranks_file(more=', "threshold": -Infinity'), "-Infinity, which is no number"),
    "overflow": (lambda: ranks_file(more=', "threshold": 1e999'), "threshold must be a number"),
    "huge rank": (lambda: ranks_file('{"q": {"rank": 1000000000}}'), "must be an integer from 0 to 4096"),
    "negative rank": (lambda: ranks_file('{"q": {"rank": -1}}'), "must be an integer from 0 to 4096"),
    "4000 digits": (lambda: ranks_file('{"q": {"rank": ' + "9" * 4000 + "}}"), "must be an integer from 0 to 4096"),
    "a million digits": (lambda: ranks_file('{"q": {"rank": ' + "9" * 1_000_000 + "}}"), "is not a ranks.json"),
    "huge alpha": (
        lambda: ranks_file('{"q": {"rank": 1, "selection": [' + "9" * 4000 + "]}}"),
        "must hold finite numbers",
    ),
    "long selection": (
        lambda: ranks_file('{"q": {"rank": 1, "selection": [' + "0," * 1_000_000 + "0]}}"),
        "must be a list of numbers",
    ),
    "200,000 modules": (lambda: ranks_file(many(200_000)), "modules must be an object with"),
    "a million modules": (lambda: ranks_file(many(1_000_000)), "a ranks.json has at most"),
    "duplicate module": (lambda: ranks_file('{"q": {"rank": 1}, "q": {"rank": 8}}'), "names something twice"),
    "duplicate rank": (lambda: ranks_file('{"q": {"rank": 1, "rank": 8}}'), "names something twice"),
    "no utf-8": (lambda: b"\xff\xfe\x00{", "is not a ranks.json"),
    "code": (lambda: ranks_file('{"__import__": {"rank": "1"}}'), "must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_RANKS)
def test_ranks_of_a_stranger_are_refused_within_a_second(tmp_path, case):
    content, sentence = HOSTILE_RANKS[case]
    content, path = content(), tmp_path / "ranks.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        LearnedRanks.load(path)
    assert time.process_time() - started < 1
    line = str(caught.value)
    assert line.startswith(str(path)) and len(line) < 700 and line.isprintable()


def test_a_name_is_a_name_in_the_pattern_too():
    """PEFT takes the keys of a pattern for regular expressions."""
    (key,) = LearnedRanks({"a.b-c_d.0": ModuleRank(1)}).to_lora_config().rank_pattern
    assert re.match(key, "a.b-c_d.0") and not re.match(key, "axb-c_d.0")


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
    argv = command(place, tmp_path / "o", model_name_or_path=code_folder)
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "trust_remote_code" in lines[0]
    assert not (tmp_path / "marker").exists() and not (tmp_path / "o").exists()


def test_code_of_a_tokenizer_does_not_run_untyped(place, tokenizer_folder, tmp_path, capsys):
    given = {"model_name_or_path": tokenizer_folder}
    argv = command(place, tmp_path / "o", **given, max_steps=1, search_max_steps=1)
    status = run_guarded(lambda: run_glue.main(argv), "run_glue.py")
    assert not (tmp_path / "marker").exists()
    assert status == 0 or len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("of", ["code_folder", "tokenizer_folder"])
def test_code_of_a_model_or_tokenizer_runs_if_typed(place, request, of, tmp_path, monkeypatch):
    """So the two tests above would see it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    given = {"model_name_or_path": request.getfixturevalue(of)}
    argv = [*command(place, tmp_path / "o", **given), "--trust_remote_code"]
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
    argv = command(
        data, tmp_path / "o", method=method, test_file=data / "test.jsonl", base_model_id="me/tiny", log_level="debug",
        model_name_or_path=place / "tiny-roberta", run_name=f"run-{IN_PATH}", **TYPED, **changes,
    )  # fmt: skip
    argv += ["--do_train", "--do_eval", "--do_predict"]
    monkeypatch.setattr(sys, "argv", ["run_glue.py", *argv])
    run_glue.main(argv)
    secrets = [*SECRETS.values(), *TYPED.values()]
    streams = "".join(capfd.readouterr())
    assert [value for value in secrets if value in streams] == []
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert {"training_args.bin", "run.json", "README.md", "all_results.json"} <= {path.name for path in files}
    found = [(path.name, v) for path in files for v in secrets if v.encode() in path.read_bytes()]
    assert found == []
    public = ("run.json", "README.md", "cost.json", "all_results.json", "adapter_config.json")
    assert [p.name for p in files if p.name in public and IN_PATH.encode() in p.read_bytes()] == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--task_name", "sst2", "--hub_tokn", TYPED["hub_token"], "--resume_from_checkpoint", TYPED["token"]],
        ["--task_name", "sst2", f"--train_file=x?token={SECRETS['WANDB_API_KEY']}"],
        ["--task_name", TYPED["token"]],
    ],
)
def test_secrets_reach_no_error(tmp_path, monkeypatch, capfd, argv):
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    assert run_guarded(lambda: run_glue.main([*argv, "--output_dir", str(tmp_path / "o")]), "run_glue.py") == 2
    shown = "".join(capfd.readouterr())
    assert "error: " in shown and not any(value in shown for value in (*TYPED.values(), *SECRETS.values()))


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
