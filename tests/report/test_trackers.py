"""What reaches TensorBoard (the real one), Weights & Biases and Trackio (stand-ins), and what must not."""

import glob
import logging
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

import run_glue
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments
from autolora_trainer.report.heatmap import rank_heatmap_pixels
from autolora_trainer.report.trackers import EVENTS, RankTracking, spare_the_run
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.search.callback import HISTOGRAMS
from tests.helpers.commands import as_argv, write_sst2
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import short_training

SECRET = "hf_notToBeSeenAnywhere"


# ---- TensorBoard, through a script


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One whole run with `--report_to tensorboard`: 50 steps of search, 4 of retrain."""
    pytest.importorskip("tensorboard")
    place = write_sst2(tmp_path_factory.mktemp("place"))
    settings = {
        "task_name": "sst2",
        "model_name_or_path": place / "tiny-roberta",
        "train_file": place / "train.jsonl",
        "validation_file": place / "validation.jsonl",
        "output_dir": place / "out",
        "report_to": "tensorboard",
        "logging_steps": 2,
        "search_max_steps": 50,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "initial_rank": 4,
        "lora_target_modules": "query-value",
        "use_cpu": True,
        "hub_token": SECRET,
        "token": SECRET,
    }
    run_glue.main(as_argv(settings))
    return place / "out"


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = glob.glob(os.path.join(folder, "runs", "*"))
    return EventAccumulator(run, size_guidance={"histograms": 0, "images": 0, "scalars": 0}).Reload()


def test_scalars_of_both_phases_are_there(output):
    search, retrain = events(output / "search"), events(output)
    assert [event.step for event in search.Scalars("train/search_train_loss")][:25] == list(range(2, 51, 2))
    needed = {f"train/search_{name}" for name in ("train_loss", "val_loss", "selection_entropy", "hypergradient_norm")}
    assert needed <= set(search.Tags()["scalars"])
    assert [event.step for event in retrain.Scalars("train/loss")] == [2, 4]
    assert "eval/accuracy" in retrain.Tags()["scalars"]


def test_a_search_sends_few_histograms_and_its_pictures(output):
    search = events(output / "search")
    steps = [event.step for event in search.Histograms("train/search_selection")]
    assert steps == list(range(3, 51, 3)) and len(steps) <= HISTOGRAMS
    histogram = search.Histograms("train/search_selection")[-1].histogram_value
    assert histogram.num == 4 * 4 and histogram.sum == pytest.approx(4)  # 4 modules, each of whose α sum to one
    for tag in ("train/search_ranks", "train/search_selection_history"):
        (image,) = search.Images(tag)
        assert image.step == 50 and image.encoded_image_string.startswith(b"\x89PNG")
        assert min(image.width, image.height) > 100


def test_a_retrain_sends_the_picture_of_its_ranks(output):
    (image,) = events(output).Images("train/ranks")
    assert image.encoded_image_string == events(output / "search").Images("train/search_ranks")[0].encoded_image_string


def test_no_file_of_a_run_holds_a_token(output):
    paths = [path for path in glob.glob(str(output / "**"), recursive=True) if os.path.isfile(path)]
    assert any("tfevents" in path for path in paths)
    for path in paths:
        with open(path, "rb") as file:
            assert SECRET.encode() not in file.read(), path


def test_trackers_that_read_the_command_line_see_no_token(monkeypatch):
    typed = ["run_glue.py", "--task_name", "sst2", "--hub_token", SECRET, f"--token={SECRET}", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", list(typed))
    model, _, _, training = parse_arguments()
    assert (model.token, training.hub_token, training.seed) == (SECRET, SECRET, 1)
    assert sys.argv == ["run_glue.py", "--task_name", "sst2", "--hub_token", "***", "--token=***", "--seed", "1"]


# ---- the others, through the library


class Records(list):
    """Stands for `wandb` and `trackio`: keeps what is logged."""

    Histogram = staticmethod(lambda value: ("histogram", value))
    Image = staticmethod(lambda value: ("image", value))

    def log(self, values):
        self.append(values)


class Quiet:
    """An integration whose own part is left out."""

    def __init__(self):
        pass

    def on_train_begin(self, args, state, control, **kwargs):
        pass

    on_train_end = on_log = on_save = on_train_begin


QuietWandb, QuietTrackio = type("QuietWandb", (Quiet, WandbCallback), {}), type(
    "QuietTrackio", (Quiet, TrackioCallback), {}
)


def search(folder, *callbacks, steps=30):
    arguments = short_training(
        folder, AutoLoraTrainingArguments, max_steps=steps, initial_rank=4, hypergradient_interval=1
    )
    model = lora(tiny_roberta())
    trainer = AutoLoraTrainer(model, arguments, train_dataset=rows(), callbacks=list(callbacks))
    trainer.train()
    return trainer


@pytest.mark.parametrize("name, callback", [("wandb", QuietWandb), ("trackio", QuietTrackio)])
def test_others_get_the_same(tmp_path, monkeypatch, name, callback):
    records = Records()
    monkeypatch.setitem(sys.modules, name, records)
    trainer = search(tmp_path, callback())
    histograms = [entry for entry in records if "train/search_selection" in entry]
    assert [entry["train/global_step"] for entry in histograms] == list(range(2, 31, 2))
    kind, values = histograms[-1]["train/search_selection"]
    assert kind == "histogram" and np.array_equal(values, trainer.gates.selection.numpy())
    pictures = {tag: value for entry in records[-2:] for tag, value in entry.items() if tag != "train/global_step"}
    assert list(pictures) == ["train/search_ranks", "train/search_selection_history"]
    for kind, pixels in pictures.values():
        assert kind == "image" and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert np.array_equal(pictures["train/search_ranks"][1], rank_heatmap_pixels(trainer.learned_ranks))


def test_a_tracker_that_fails_costs_one_line_and_no_run(tmp_path, monkeypatch, caplog):
    def fail(values):
        raise ConnectionError("no\nway out")

    records = Records()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Histogram=list, Image=list, log=fail))
    monkeypatch.setitem(sys.modules, "trackio", records)
    with caplog.at_level(logging.WARNING, "autolora_trainer"):
        trainer = search(tmp_path, QuietWandb(), QuietTrackio())
    assert trainer.learned_ranks is not None and len(records) == 15 + 2
    lines = [record.getMessage() for record in caplog.records if "does not take" in record.getMessage()]
    assert lines == ["Wandb does not take the histogram train/search_selection: no way out"]


class Broken(TensorBoardCallback):
    """TensorBoard's own, whose folder is a file, gone or full."""

    def __init__(self, event):
        self.tb_writer, self.calls = None, 0
        setattr(self, event, self.fail)

    def fail(self, *args, **kwargs):
        self.calls += 1
        raise OSError("No space\nleft on device")


def test_an_integration_that_fails_is_left_alone_and_the_training_goes_on(tmp_path, caplog):
    """Whatever it fails at; in a search, whose pictures it is not asked for any more."""
    for event in EVENTS:
        callback = Broken(event)
        spare_the_run(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[callback])))
        assert [getattr(callback, event)(None, None, None) for _ in range(2)] == [None, None] and callback.calls == 1
    caplog.clear()
    trainer = search(tmp_path, callback := Broken("on_train_begin"), steps=4)
    assert trainer.learned_ranks is not None and callback.calls == 1
    lines = [record.getMessage() for record in caplog.records if "TensorBoard" in record.getMessage()]
    assert lines == ["TensorBoard failed, and the training goes on without it: No space left on device"]


def test_a_picture_that_cannot_be_drawn_is_no_failure_of_the_tracker(tmp_path, monkeypatch, caplog):
    def fail(ranks):
        raise RuntimeError("no font")

    monkeypatch.setattr("autolora_trainer.search.callback.rank_heatmap_pixels", fail)
    monkeypatch.setitem(sys.modules, "wandb", records := Records())
    search(tmp_path, QuietWandb(), steps=4)
    assert "train/search_ranks was not drawn: no font" in caplog.text
    assert "train/search_selection_history" in records[-1]


def test_only_the_main_process_sends(monkeypatch):
    records = Records()
    monkeypatch.setitem(sys.modules, "wandb", records)
    for main in (False, True):
        trainer = SimpleNamespace(
            is_world_process_zero=lambda main=main: main,
            callback_handler=SimpleNamespace(callbacks=[QuietWandb()]),
        )
        RankTracking(trainer, None).send("histogram", "tag", lambda: np.zeros(3), 1)
        assert len(records) == int(main)


def test_nothing_is_drawn_where_nobody_looks(tmp_path, monkeypatch):
    monkeypatch.setattr("autolora_trainer.report.trackers.rank_heatmap_pixels", lambda ranks: pytest.fail("drawn"))
    search(tmp_path, steps=4)
