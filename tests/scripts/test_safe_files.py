"""Are files data? Pickles never run, whoever put them among the files of a run."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch

import run_glue
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.commands import cli
from autolora_trainer.errors import run_guarded
from autolora_trainer.runs.outputs import HANDOVER_FILE
from autolora_trainer.training import checkpoints
from autolora_trainer.training.checkpoints import MANIFEST, fault, file_hash, newest_checkpoint, sealed
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import three_steps
from tests.helpers.faults import interrupt


@pytest.fixture(scope="module")
def interrupted(place, tmp_path_factory):
    """{phase: output_dir of a run that was killed in its third step}; checkpoints 1 and 2 of the phase are whole."""
    folder = tmp_path_factory.mktemp("interrupted")
    for phase, trainer in (("search", AutoLoraTrainer), ("retrain", FinalTrainer)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, trainer, 2)
            run_glue.main(three_steps(place, folder / phase))
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
            head = path.read_bytes()[:9]
            is_pickle = head.startswith((b"PK\3\4", b"\x80")) and head[8:] != b"{"  # safetensors: a length, then JSON
            kinds["pickle" if is_pickle else "data"].add(path.name)
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} == kinds["pickle"]
    assert all(TRAINERS_OWN.fullmatch(name) for name in kinds["pickle"])
    ours = {"selection.safetensors", "selection.json", MANIFEST, "adapter_model.safetensors", "run.json"}
    ours |= {HANDOVER_FILE, "cost.json", "ranks.json"} if phase == "retrain" else set()
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
    results = run_glue.main([*three_steps(place, output), "--resume_from_checkpoint"])
    assert results["resumed_from"] == {"phase": phase, "step": 2}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(unpickled)
    assert all(TRAINERS_OWN.fullmatch(name) for name in unpickled) and "training_args.bin" not in unpickled
    run_glue.main([*three_steps(place, output), "--do_eval"])


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
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
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
    results = run_glue.main([*three_steps(place, output), "--resume_from_checkpoint"])
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
    argv = [*three_steps(place, output), "--resume_from_checkpoint"]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 1
    assert not (tmp_path / "marker").exists()
    assert "UnpicklingError" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_planted_checkpoint_that_is_asked_for_by_name_is_one_line(place, interrupted, tmp_path, capsys, phase):
    output = shutil.copytree(interrupted[phase], tmp_path / "o")
    folder = checkpoint(output, phase)
    plant(folder / "optimizer.pt", tmp_path / "marker", "torch")
    forge(folder)
    argv = three_steps(place, output, resume_from_checkpoint=folder)
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
        (f"search/{HANDOVER_FILE}", 1, f"{HANDOVER_FILE} is no safetensors file .*Search again."),
        ("run.json", 0, ""),
    ],
)
def test_planted_pickle_between_the_phases_is_one_line(place, interrupted, tmp_path, capsys, name, status, sentence):
    """A run that goes on between search and retrain reads what the search left."""
    output = shutil.copytree(interrupted["retrain"], tmp_path / "o")
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)
    plant(output / name, tmp_path / "marker")
    argv = [*three_steps(place, output), "--resume_from_checkpoint"]
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
    kept = output / "search" / HANDOVER_FILE
    content = kept.read_bytes()
    kept.unlink()
    results = run_glue.main([*three_steps(place, output), "--resume_from_checkpoint"])
    assert results["resumed_from"]["phase"] == ("retrain" if retrained else "search")
    assert not kept.exists() if retrained else kept.read_bytes() == content


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_planted_pickle_in_place_of_the_adapter_is_one_line(place, tmp_path, capsys, name):
    output = tmp_path / "o"
    run_glue.main(three_steps(place, output, method="lora", max_steps=1, retrain_init=None, save_strategy="no"))
    if name == "adapter_model.bin":
        os.remove(output / "adapter_model.safetensors")
    plant(output / name, tmp_path / "marker", "torch" if name.endswith("bin") else "pickle")
    capsys.readouterr()
    argv = [*three_steps(place, output, method="lora", retrain_init=None), "--do_eval"]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and f"The adapter in {output} does not load on" in lines[0]
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["cost.json", "all_results.json"])
def test_show_runs_no_planted_pickle(place, interrupted, tmp_path, capsys, name):
    output = shutil.copytree(interrupted["retrain"], tmp_path / "o")
    plant(output / name, tmp_path / "marker")
    assert run_guarded(lambda: cli.main(["show", str(output)]), "autolora") == 2
    assert f"{name} is not JSON" in capsys.readouterr().err and not (tmp_path / "marker").exists()
