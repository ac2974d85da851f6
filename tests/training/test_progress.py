"""Bars on a terminal, none elsewhere."""

import io
import re
import sys

from transformers import ProgressCallback, Trainer

import run_glue
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments
from autolora_trainer.training.progress import PhaseProgress, show_phase
from tests.helpers.commands import as_argv
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import short_training


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(place, output, monkeypatch, stderr, **changes):
    settings = {
        "task_name": "sst2",
        "model_name_or_path": place / "tiny-roberta",
        "train_file": place / "train.jsonl",
        "validation_file": place / "validation.jsonl",
        "output_dir": place / output,
        "logging_steps": 2,
        "search_max_steps": 8,
        "hypergradient_interval": 2,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "initial_rank": 4,
        "use_cpu": True,
        "save_strategy": "no",
    }
    monkeypatch.setattr(sys, "stderr", stderr)
    run_glue.main(as_argv({**settings, **changes}))
    return stderr.getvalue()


def last_bar(text, phase):
    return re.findall(rf"{phase}: +(\d+)%.*?(\d+)/(\d+) \[(.*?)\]", text)[-1]


def test_a_terminal_shows_phase_loss_and_total_rank(place, monkeypatch, capsys):
    shown = run(place, "terminal", monkeypatch, Terminal())
    (total,) = re.findall(r"total rank (\d+) in \d+ modules", capsys.readouterr().out)
    for phase, steps, known in (("search", "8", ""), ("retrain", "4", f", total rank={total}")):
        percent, done, whole, figures = last_bar(shown, phase)
        assert (percent, done, whole) == ("100", steps, steps)
        assert re.search(rf"loss=\d+\.\d+{known}$", figures)
    assert "evaluation: 100%" in shown
    assert not re.search(r"(search|curve|retrain|evaluation): [^\r]*\n", shown)  # none stays when the next begins


def test_other_methods_train_without_ranks(place, monkeypatch):
    shown = run(place, "full", monkeypatch, Terminal(), method="full")
    assert re.search(r"loss=\d+\.\d+$", last_bar(shown, "training")[3])
    assert "total rank" not in shown and "search" not in shown


def test_a_log_file_gets_no_bar(place, monkeypatch):
    shown = run(place, "quiet", monkeypatch, io.StringIO())
    assert "\r" not in shown and "it/s" not in shown


def bars(trainer):
    return [type(cb) for cb in trainer.callback_handler.callbacks if isinstance(cb, ProgressCallback)]


def test_the_library_has_the_bar_of_the_search_too(tmp_path):
    arguments = short_training(tmp_path, AutoLoraTrainingArguments, initial_rank=4, disable_tqdm=False)
    trainer = AutoLoraTrainer(lora(tiny_roberta()), arguments, train_dataset=rows())
    assert bars(trainer) == [PhaseProgress]


def test_a_bar_of_another_kind_stays(tmp_path):
    class Own(ProgressCallback):
        pass

    for tqdm_off, expected in ((False, [Own, PhaseProgress]), (True, [Own])):
        arguments = short_training(tmp_path, disable_tqdm=tqdm_off)
        trainer = Trainer(tiny_roberta(), arguments, train_dataset=rows(), callbacks=[Own()])
        show_phase(trainer, "training")
        assert bars(trainer) == expected
