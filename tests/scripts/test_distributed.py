"""The same search on one process and on two (gloo): the same global batch gives the same ranks."""

import json
import os
import re
import shutil
import subprocess

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file

import run_glue
import run_ner
import run_nlg
from autolora_trainer import AutoLoraTrainer, LearnedRanks
from autolora_trainer.errors import NonFiniteError
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import LAUNCHERS, ROOT, as_argv, launch_command
from tests.helpers.faults import hide_java
from tests.helpers.models import byte_gpt2, byte_tokenizer, tiny_checkpoint
from tests.helpers.processes import in_processes
from tests.helpers.rows import WORDS, restaurants, reviews, sentences, write_rows
from tests.training.test_finite_rows import BAD, evaluator, never


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_rows(folder / "train.jsonl", sentences(64))
    write_rows(folder / "validation.jsonl", sentences(10, seed=1))
    return folder


def search_argv(place, output, batch):
    return as_argv(
        {
            "task_name": "sst2",
            "model_name_or_path": place / "model",
            "train_file": place / "train.jsonl",
            "validation_file": place / "validation.jsonl",
            "output_dir": output,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 2,
            "val_fraction": 0.5,
            "initial_rank": 4,
            "hypergradient_interval": 1,
            "lora_dropout": 0,
            "search_epochs": 2,
            "max_steps": 2,
            "optim": "adamw_torch",
            "adam_epsilon": 1e-4,
        }
    )


def launch(launcher, script, argv):
    """Run a script in two processes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    command = [*launch_command(launcher, 2), str(script), *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def learned(output):
    return LearnedRanks.load(output / "ranks.json"), load_file(output / "adapter_model.safetensors")


def test_two_processes_learn_the_ranks_of_one(place):
    run_glue.main(search_argv(place, place / "one", 8))
    ranks, adapter = learned(place / "one")
    for launcher in LAUNCHERS:
        done = launch(launcher, os.path.join(ROOT, "run_glue.py"), search_argv(place, place / launcher, 4))
        same, same_adapter = learned(place / launcher)
        assert same.ranks == ranks.ranks
        for name, module in ranks.modules.items():
            assert module.selection == pytest.approx(same.modules[name].selection, abs=1e-5)
        for name, tensor in adapter.items():
            assert (tensor - same_adapter[name]).abs().max() < 5e-4
        assert (
            done.stdout.count("search: 32 rows in D_tr, 32 in D_val") == done.stdout.count("total rank") == 1
        )  # one process speaks


def spoilt(folder, argv):
    """The loss of one process is no number in the third step; afterwards one row of an evaluation gives none."""
    compute_loss = AutoLoraTrainer.compute_loss

    def at_times(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        bad = os.environ["RANK"] == "1" and self.state.global_step == 2
        return loss.detach() * float("nan") + 0 * loss if bad else loss

    AutoLoraTrainer.compute_loss = at_times
    run_glue.main(argv)
    with pytest.raises(NonFiniteError, match=f"row {BAD} gives NaN"):  # the first process's, and each hears of it
        evaluator(folder, never).evaluate()


def test_what_is_no_number_on_one_process_is_none_for_all(place, tmp_path):
    """The loss of one process is NaN, and its gradients are finite: all drop the step, or they would part for ever."""
    (_, said), _ = in_processes(tmp_path, spoilt, tmp_path, search_argv(place, tmp_path / "o", 4))
    assert "step 3: the loss is not finite; the step is skipped" in said
    tensors = load_file(tmp_path / "o" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def recorded_run(folder, argv):
    """With the rows of every epoch in a file."""
    seen = {}
    for trainer_class in (AutoLoraTrainer, FinalTrainer):

        def step(self, model, inputs, *args, original=trainer_class.training_step, **kwargs):
            rows = seen.setdefault(f"{type(self).__name__} {int(self.state.epoch)}", [])
            rows += [[token for token in row if token != 1] for row in inputs["input_ids"].tolist()]  # without padding
            return original(self, model, inputs, *args, **kwargs)

        trainer_class.training_step = step
    run_glue.main(argv)
    (folder / f"recorded.{os.environ['RANK']}").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def recorded(place, tmp_path_factory):
    """(folder, command) of a run in two processes with dropout, rows grouped by length and a checkpoint every step."""
    folder = tmp_path_factory.mktemp("recorded")
    texts = [" ".join([WORDS[i // 8], WORDS[i % 8], *WORDS[: i % 7]]) for i in range(64)]  # all different
    write_rows(folder / "train.jsonl", [{"sentence": text, "label": i % 2} for i, text in enumerate(texts)])
    argv = search_argv(place, folder / "o", 4)
    changes = {"train_file": folder / "train.jsonl", "train_sampling_strategy": "group_by_length", "save_steps": 1}
    changes |= {"lora_dropout": 0.5, "max_steps": -1, "num_train_epochs": 2}
    argv += as_argv(changes)
    in_processes(folder, recorded_run, folder, argv)
    return folder, argv


def test_every_epoch_is_shared_out_when_rows_are_grouped_by_length(recorded):
    """Dropout's numbers differ between processes, so on a CPU the generator that Trainer draws the order from does."""
    folder, _ = recorded
    one, two = (json.loads((folder / f"recorded.{rank}").read_text()) for rank in (0, 1))
    assert set(one) == set(two) == {f"{name} {i}" for name in ("AutoLoraTrainer", "FinalTrainer") for i in (0, 1)}
    for epoch, rows in one.items():
        assert len({tuple(row) for row in rows + two[epoch]}) == (64 if "Final" in epoch else 32)  # each row once
    assert one["FinalTrainer 0"] != one["FinalTrainer 1"]


def test_two_processes_go_on_to_the_same_bits(recorded, tmp_path):
    """From the middle of the search's second epoch: every process has its own dropout and its share of the order."""
    folder, argv = recorded
    part = tmp_path / "o"
    for step in (1, 2, 3):  # of 4: as a kill leaves it
        shutil.copytree(folder / "o" / "search" / f"checkpoint-{step}", part / "search" / f"checkpoint-{step}")
    shutil.copy(folder / "o" / "run.json", part)
    more = ["--output_dir", str(part), "--resume_from_checkpoint"]
    in_processes(tmp_path, run_glue.main, [*argv, *more])
    assert json.loads((part / "all_results.json").read_text())["resumed_from"] == {"phase": "search", "step": 3}
    for name in ("ranks.json", "adapter_model.safetensors"):
        assert (part / name).read_bytes() == (folder / "o" / name).read_bytes()


def without_java(commands):
    hide_java(pytest.MonkeyPatch())
    for main, argv in commands:
        main(argv)


PREDICTED = {"ner": ["predict_results_ner.txt"], "nlg": ["predict_results_e2e.txt", "predictions_validation.jsonl"]}


def test_two_processes_score_and_predict_entities_and_texts_as_one_does(place, tmp_path, monkeypatch):
    """Seven rows in batches of two: some are padded and sent around twice, and each counts once, in its place."""
    byte_gpt2(initializer_range=0.1).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    hide_java(monkeypatch)
    commands = []
    for script, main, model, rows in (
        ("ner", run_ner.main, place / "model", reviews(7)),
        ("nlg", run_nlg.main, tmp_path / "gpt2", restaurants(7)),
    ):
        files = {f"{name}_file": write_rows(tmp_path / f"{script}.jsonl", rows) for name in ("train", "validation")}
        files |= {"test_file": tmp_path / f"{script}.jsonl", "model_name_or_path": model, "method": "lora"}
        short = {"max_steps": 60, "learning_rate": 3e-2, "per_device_eval_batch_size": 2, "save_strategy": "no"}
        more = {"task_name": "e2e", "max_new_tokens": 6, "num_beams": 1} if script == "nlg" else {"task_name": "ner"}
        argv = as_argv({**files, **short, **more, "output_dir": tmp_path / script})
        main([*argv, "--do_train"])
        commands.append((main, [*argv, "--do_eval", "--do_predict"]))
        main(commands[-1][1])
        shutil.copytree(tmp_path / script, tmp_path / f"{script}-one")
    in_processes(tmp_path, without_java, commands)
    for script, names in PREDICTED.items():
        one, two = (
            json.loads((tmp_path / name / "all_results.json").read_text()) for name in (f"{script}-one", script)
        )
        # Trainer's loss is a mean of batches, of other batches there
        scores = [name for name in one if re.match("(eval|predict)_(?!loss|.*per_second|.*time)", name)]
        assert len(scores) >= 4 and (script == "nlg" or one["eval_f1"] > 0)
        assert {name: two[name] for name in scores} == pytest.approx({name: one[name] for name in scores})
        for name in names:
            assert (tmp_path / script / name).read_bytes() == (tmp_path / f"{script}-one" / name).read_bytes()


def test_the_papers_algorithm_runs_in_two_processes_on_every_kind_of_task(place, tmp_path):
    """Finite differences at every step, the count of α >= 1/k, a second Trainer, and an adapter that loads plainly."""
    byte_gpt2(initializer_range=0.1).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    mains = {"glue": run_glue.main, "ner": run_ner.main, "nlg": run_nlg.main}
    rows = {"glue": ("sst2", place / "model", sentences(16)), "ner": ("ner", place / "model", reviews(16))}
    rows["nlg"] = ("e2e", tmp_path / "gpt2", restaurants(16))
    commands = []
    for script, (task, model, own) in rows.items():
        files = {f"{name}_file": write_rows(tmp_path / f"{script}.jsonl", own) for name in ("train", "validation")}
        short = {"preset": "paper", "per_device_train_batch_size": 2, "search_max_steps": 2, "max_steps": 2}
        short |= {"task_name": task, "model_name_or_path": model, "output_dir": tmp_path / script}
        short |= {"decode": "false"} if script == "nlg" else {}
        commands.append((mains[script], as_argv({**files, **short})))
    in_processes(tmp_path, without_java, commands)
    for script, (_, path, _) in rows.items():
        ranks, adapter = learned(tmp_path / script)
        assert (ranks.rank_rule, ranks.initial_rank) == ("threshold", 8)
        counts = {name: sum(alpha >= 1 / 8 for alpha in module.selection) for name, module in ranks.modules.items()}
        assert ranks.ranks == counts and len({len(set(m.selection)) for m in ranks.modules.values()} - {1})
        settings = json.loads((tmp_path / script / "run.json").read_text())["settings"]
        assert (settings["hypergradient"], settings["hypergradient_interval"]) == ("finite_difference", 1)
        kind = {"ner": AutoPeftModelForTokenClassification, "nlg": AutoPeftModelForCausalLM}
        labels = {} if script == "nlg" else {"num_labels": adapter_labels(adapter)}
        model = kind.get(script, AutoPeftModelForSequenceClassification).from_pretrained(tmp_path / script, **labels)
        loaded = get_peft_model_state_dict(model)
        assert loaded.keys() == adapter.keys() and all(torch.equal(loaded[name], adapter[name]) for name in adapter)


def adapter_labels(adapter):
    """Classes of the head that an adapter brings."""
    return next(len(tensor) for name, tensor in adapter.items() if name.endswith(("out_proj.bias", "classifier.bias")))
