"""Does the environment speak of a launcher that there was?"""

import pytest

from autolora_trainer.errors import is_first_process
from autolora_trainer.training import processes

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def set_to(variables):
        for name in (*WHOLE, *processes.MPI):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    "given, says",
    [
        ({"WORLD_SIZE": "2"}, "holds WORLD_SIZE=2 and no RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT, so no"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "unset WORLD_SIZE RANK, or start it with accelerate launch or torchrun"),
        ({**WHOLE, "MASTER_PORT": ""}, "and no MASTER_PORT, so no launcher"),
        ({"LOCAL_RANK": "0"}, "holds LOCAL_RANK=0 and no WORLD_SIZE"),
        ({**WHOLE, "WORLD_SIZE": "two"}, "holds WORLD_SIZE=two .* and no number"),
    ],
)
def test_a_variable_that_is_left_over_is_refused(environment, given, says):
    environment(given)
    with pytest.raises(ValueError, match=says):
        processes.launched()


@pytest.mark.parametrize(
    "given, count, first",
    [
        ({}, 1, True),
        ({"RANK": "1"}, 1, True),  # left over, and nobody waits for it
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "-1"}, 1, True),
        (WHOLE, 2, False),
        ({"WORLD_SIZE": "2", "PMI_RANK": "0"}, 2, True),
    ],
)
def test_a_launcher_is_known(environment, given, count, first):
    environment(given)
    assert processes.launched() == count and is_first_process() == first


def test_a_long_wait_for_other_processes_is_said(environment, monkeypatch, capsys):
    environment(WHOLE)
    monkeypatch.setattr(processes, "LONG_WAIT", 0.01)
    with processes.waiting_is_said():
        processes.threading.Event().wait(0.1)
    assert "waiting for 2 processes at 127.0.0.1:29500; without a launcher, type unset" in capsys.readouterr().err
