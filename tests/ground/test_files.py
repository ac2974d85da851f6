"""Files of ours hold numbers and UTF-8, and nothing is opened that has no end."""

import math
import os
import socket

import pytest

from autolora_trainer.errors import NonFiniteError
from autolora_trainer.files import check_regular, read_json, write_atomically, write_json


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_of_ours_holds_no_nan_and_says_where_it_would(tmp_path, number):
    write_json(tmp_path / "a.json", {"loss": 1.0, "none": None})
    with pytest.raises(NonFiniteError, match=r"^trials\.1\.loss is NaN or infinite, and a\.json was not written"):
        write_json(tmp_path / "a.json", {"trials": [{"loss": 1.0}, {"loss": number}]})
    assert read_json(tmp_path / "a.json") == {"loss": 1.0, "none": None} and len(os.listdir(tmp_path)) == 1
    circle = []
    circle.append(circle)
    with pytest.raises((ValueError, RecursionError)):
        write_json(tmp_path / "a.json", circle)


def test_names_that_came_in_undecoded_go_out_as_they_came(tmp_path):
    """Under LC_ALL=C, Python reads an umlaut of the command line as two bytes."""
    write_atomically(tmp_path / "a", os.fsdecode("öut".encode()).encode("ascii", "ignore").decode() + "\udcc3\udcb6")
    assert (tmp_path / "a").read_bytes().endswith("ö".encode())


def test_pipes_sockets_and_devices_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for path, what in (
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "socket", "a socket"),
            ("/dev/zero", "a device"),
            (tmp_path, "a "),  # in a folder
        ):
            with pytest.raises(OSError, match=what):
                check_regular(path)
            with pytest.raises(OSError, match=what):
                read_json(path)
    os.remove(tmp_path / "pipe")
    os.remove(tmp_path / "socket")
    os.symlink("nowhere", tmp_path / "broken")
    check_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "nothing")
