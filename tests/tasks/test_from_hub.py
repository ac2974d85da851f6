"""Do data sets of the Hub come under our names, and does a Hub that is silent cost one line?"""

import socket

import datasets
import pytest

from autolora_trainer.tasks import files
from autolora_trainer.tasks.glue import load_task
from tests.helpers.measures import data_error

UNREACHABLE = (
    "Could not reach the Hugging Face Hub for the data set nyu-mll/glue (mrpc). Give local files with --train_file "
    "and "
    "--validation_file, or connect to the network once so that the data is cached."
)


def test_hub_in_offline_mode_is_one_line(tmp_path):
    assert data_error(load_task, "mrpc", cache_dir=tmp_path) == UNREACHABLE
    assert list(tmp_path.iterdir()) == []


def test_hub_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("load_dataset went to the network"))
    assert data_error(load_task, "mrpc", cache_dir=tmp_path) == UNREACHABLE
    assert datasets.config.HF_HUB_OFFLINE is False


def test_hub_splits_get_our_names(monkeypatch):
    row = datasets.Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 0}])
    hub = {name: row for name in ("train", "validation_matched", "validation_mismatched", "test_matched")}
    monkeypatch.setattr(files, "load_dataset", lambda *args, **kwargs: hub)
    assert list(load_task("mnli")) == ["train", "validation", "validation_mm", "test"]
    hub["test_mismatched"] = row
    assert list(load_task("mnli")) == ["train", "validation", "validation_mm", "test", "test_mm"]


def test_other_hub_failures_keep_their_reason(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "load_dataset", full)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(files, "hub_answers", lambda: True)
    assert "from the hub: [Errno 28] No space left on device. Give local files" in data_error(load_task, "mrpc")
