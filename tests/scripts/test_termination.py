"""SIGTERM or Ctrl-C in the middle of a run leaves a checkpoint and one line; resumed, it ends in the same bits."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

import run_glue
from autolora_trainer.errors import run_guarded
from autolora_trainer.training.callbacks import TerminationCallback
from tests.helpers.commands import ROOT, command

TWO_PHASES = {"search_epochs": 2, "num_train_epochs": 4}


@pytest.fixture(scope="module", autouse=True)
def listens():
    """Also where the tests run in the background, where a shell lets Ctrl-C be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The files of runs that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    run_glue.main(command(place, folder / "autolora", **TWO_PHASES))
    run_glue.main(command(place, folder / "adalora", method="adalora"))
    return folder


def stopped(monkeypatch, argv, phase, step, number=signal.SIGTERM):
    """Run until the run sends itself a signal at the end of a step, so that it comes at a known one."""
    original = TerminationCallback.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step and args.output_dir.endswith("search") == (phase == "search"):
            os.kill(os.getpid(), number)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TerminationCallback, "on_step_end", on_step_end)
        return run_guarded(lambda: run_glue.main(argv), "run_glue.py")


@pytest.mark.parametrize(  # or the last step
    "phase, step, number, status, what",
    [
        ("search", 3, signal.SIGTERM, 143, "stopped by SIGTERM"),
        ("search", 10, signal.SIGINT, 130, "interrupted"),
        ("retrain", 3, signal.SIGINT, 130, "interrupted"),
        ("retrain", 40, signal.SIGTERM, 143, "stopped by SIGTERM"),
    ],
)
def test_a_terminated_run_goes_on_to_the_same_bits(
    place, tmp_path, whole, monkeypatch, capsys, phase, step, number, status, what
):
    part = tmp_path / "part"
    argv = command(place, part, **TWO_PHASES)
    assert stopped(monkeypatch, argv, phase, step, number) == status
    said = capsys.readouterr().err
    assert said.strip().splitlines()[-1].startswith(f"run_glue.py: {what} after step {step} of ")
    assert "Traceback" not in said
    assert not (part / "all_results.json").exists()
    resumed = run_glue.main([*argv, "--resume_from_checkpoint"])
    done = (phase, step) == ("search", 10)  # all of it: what goes on is the retrain, from its beginning
    assert resumed["resumed_from"] == ({"phase": "retrain", "step": 0} if done else {"phase": phase, "step": step})
    for name in ("ranks.json", "adapter_model.safetensors"):
        assert (part / name).read_bytes() == (whole / "autolora" / name).read_bytes()


@pytest.mark.parametrize("step", [1, 6, 20])  # in AdaLoRA's free phase, while its budget falls, and the last
def test_adalora_is_stopped_in_every_phase(place, tmp_path, whole, monkeypatch, capsys, step):
    """On the way to its budget it has no adapter to give, and that is no failure."""
    argv = command(place, tmp_path / "part", method="adalora")
    assert stopped(monkeypatch, argv, "retrain", step) == 143
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"run_glue.py: stopped by SIGTERM after step {step} of 20, and saved it")
    resumed = run_glue.main([*argv, "--resume_from_checkpoint"])
    assert resumed["resumed_from"] == {"phase": "retrain", "step": step}
    paths = [folder / "adapter_model.safetensors" for folder in (whole / "adalora", tmp_path / "part")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_signal_from_outside_is_obeyed_within_a_step(place, tmp_path):
    typed = command(place, tmp_path / "o", num_train_epochs=2000, ranks=None, search_max_steps=2, logging_steps=1)
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "run_glue.py"), *typed], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    for line in process.stdout:
        if line.startswith(b"{'loss'"):  # the search logs search_train_loss: this is the retrain
            break
    deadline.cancel()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and b"--resume_from_checkpoint to go on" in error
    assert any(name.startswith("checkpoint-") for name in os.listdir(tmp_path / "o"))


def test_a_signal_while_processes_agree_is_not_lost(monkeypatch):
    callback = TerminationCallback()
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag, op: callback._ask(signal.SIGTERM, None))
    arguments = SimpleNamespace(world_size=2, device="cpu")
    control = callback.on_step_end(arguments, None, TrainerControl())
    assert callback.asked and not control.should_training_stop  # the others have not heard of it
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag, op: None)
    control = callback.on_step_end(arguments, None, control)
    assert control.should_training_stop and control.should_save and callback.cut_short


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_begins_again_gives_signals_back(monkeypatch, number):
    """With auto_find_batch_size `on_train_begin` comes once for every size."""
    before = signal.getsignal(number)
    callback = TerminationCallback()
    for _ in range(2):
        callback.on_train_begin(None, None, None)
    assert signal.getsignal(number) == callback._ask
    callback.on_train_end(None, None, None)
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once_and_one_that_is_ignored_stays_so():
    callback = TerminationCallback()
    callback.on_train_begin(None, None, None)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    callback.stopped = True  # or it would be sent again
    callback.restore()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what runs in the background
    callback.on_train_begin(None, None, None)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    callback.restore()
    signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_last_step_is_sent_again(monkeypatch):
    """It means what it meant before the training."""
    heard = []
    monkeypatch.setattr("os.kill", lambda process, number: heard.append((process, number)))
    callback = TerminationCallback()
    callback.on_train_begin(None, None, None)
    callback._ask(signal.SIGTERM, None)
    assert heard == []
    callback.on_train_end(None, None, None)
    assert heard == [(os.getpid(), signal.SIGTERM)]
    callback.restore()
    assert len(heard) == 1
