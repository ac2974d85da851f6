"""Is no file of others ever cleared or written over, whatever lies in the output folder?"""

import json

import pytest

import run_glue
from autolora_trainer import AutoLoraTrainer, LearnedRanks
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.faults import interrupt


def test_finished_run_is_refused_and_overwrite_replaces_only_its_own_files(place, tmp_path):
    output = tmp_path / "o"
    run_glue.main(command(place, output, max_steps=1))
    (output / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="holds a finished run. Add --overwrite to replace it"):
        run_glue.main(command(place, output, max_steps=1))
    run_glue.main([*command(place, output, max_steps=1, method="lora"), "--overwrite"])
    assert not (output / "ranks.json").exists() and not (output / "search").exists()
    assert (output / "mine.txt").read_text() == "kept"


def test_ranks_of_another_model_are_refused_before_anything_is_written(place, tmp_path):
    LearnedRanks({"model.layers.0.q_proj": ModuleRank(2)}, base_model="org/llama").save(tmp_path / "ranks.json")
    with pytest.raises(UsageError, match="the model lacks 1 of them; the first is 'model.layers.0.q_proj'.*org/llama"):
        run_glue.main(command(place, tmp_path / "o", ranks=tmp_path / "ranks.json"))
    assert not (tmp_path / "o").exists()


def test_files_of_others_are_never_cleared(place, tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "README.md").write_text("mine")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(UsageError, match=r"holds files that no run of this package wrote \(README.md, search\)"):
            run_glue.main([*command(place, tmp_path), *extra])
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "spiece.model", "run.json"])
def test_files_that_a_run_writes_and_never_clears_are_not_written_over(place, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"holds files that no run of this package wrote \({name}\)"):
        run_glue.main([*command(place, tmp_path), "--overwrite", "--resume_from_checkpoint"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"command": "x", "version": "1"}', '{"settings": {}}'])
@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--resume_from_checkpoint"]], ids=str)
def test_a_run_json_of_another_program_makes_no_folder_ours(place, tmp_path, content, extra):
    (tmp_path / "search").mkdir()
    for name, text in (("run.json", content), ("search/notes.txt", "mine"), ("all_results.json", "{}")):
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="wrote .all_results.json, run.json, search., and the run would replace them"):
        run_glue.main([*command(place, tmp_path), *extra])
    assert (tmp_path / "search" / "notes.txt").read_text() == "mine" and (tmp_path / "run.json").read_text() == content


def test_names_that_begin_like_ours_are_not_cleared(place, tmp_path):
    run_glue.main(command(place, tmp_path, method="lora", max_steps=1, test_file=place / "test.jsonl"))
    (tmp_path / "predictions_plots").mkdir()
    mine = ["predictions_plots/a.png", "predictions_mine.csv", "predict_results_mine.txt", "checkpoint-best"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    run_glue.main([*command(place, tmp_path, method="lora", max_steps=1), "--overwrite"])
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert not (tmp_path / "predict_results_sst2.txt").exists()  # of the first run


def test_where_run_json_is_damaged_a_run_goes_on_and_clears_nothing(place, tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1, "method": "lora", "max_steps": 4}
    with monkeypatch.context() as patch:
        interrupt(patch, FinalTrainer, 3)
        with pytest.raises(KeyboardInterrupt):
            run_glue.main(command(place, tmp_path, **settings))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="holds files that no run of this package wrote"):
        run_glue.main([*command(place, tmp_path, **settings), "--overwrite"])
    newest = tmp_path / "checkpoint-3" / "optimizer.pt"
    whole = newest.read_bytes()
    newest.write_bytes(b"")  # so it would be passed over, and removed
    argv = [*command(place, tmp_path, **settings), "--resume_from_checkpoint"]
    with pytest.raises(
        UsageError, match="a damaged run.json, and to go on .* remove checkpoint-3. Remove it yourself"
    ):
        run_glue.main(argv)
    newest.write_bytes(whole)
    assert run_glue.main(argv)["resumed_from"] == {"phase": "retrain", "step": 3}
    assert "settings" in json.loads((tmp_path / "run.json").read_text())


def test_a_model_in_its_own_output_dir_is_refused(place, tmp_path):
    run_glue.main(command(place, tmp_path / "o", method="full", max_steps=1))
    argv = [*command(place, tmp_path / "o", method="lora", model_name_or_path=tmp_path / "o"), "--overwrite"]
    with pytest.raises(UsageError, match="--model_name_or_path .* lies where this run writes its own"):
        run_glue.main(argv)
    assert (tmp_path / "o" / "model.safetensors").exists()


def test_output_dir_on_a_file_is_refused(place, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    status = run_guarded(lambda: run_glue.main(command(place, tmp_path / "file" / "o")), "run_glue.py")
    assert status == 2 and "lies on a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_one_run_s_at_a_time(place, tmp_path):
    folder = RunFolder(str(tmp_path / "o"))
    with folder.claim({}):
        with pytest.raises(
            UsageError, match=r"is another run's \(process \d+ on .*, since 20.*\), which has not ended"
        ):
            run_glue.main(command(place, tmp_path / "o", method="lora", max_steps=1))
    assert not (tmp_path / "o").exists()  # it was made for the claim, and nothing was written
    run_glue.main(command(place, tmp_path / "o", method="lora", max_steps=1))


def test_a_run_that_another_has_overtaken_is_refused(place, tmp_path):
    folder = RunFolder(str(tmp_path / "o"))
    folder.check({}, overwrite=False, resuming=False)
    run_glue.main(command(place, tmp_path / "o", method="lora", max_steps=1))
    with pytest.raises(UsageError, match="holds a finished run"):
        folder.claim({}).__enter__()
    with RunFolder(str(tmp_path / "o")).claim({}):  # and the lock is free again
        pass


def test_a_setting_that_a_trainer_refuses_costs_no_finished_run(place, tmp_path, monkeypatch):
    run_glue.main(command(place, tmp_path / "o", method="lora", max_steps=1))
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}

    def refuses(self, *args, **kwargs):
        raise ValueError("not so")

    for method, trainer in (("lora", FinalTrainer), ("autolora", AutoLoraTrainer)):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="not so"):
            patch.setattr(trainer, "__init__", refuses)
            run_glue.main([*command(place, tmp_path / "o", method=method), "--overwrite"])
        assert before == {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}
