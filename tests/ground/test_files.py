"""Are files written through no link, whole, under new names, and read with bounds? Do they hold numbers?"""

import math
import os
import socket
import stat

import pytest

from autolora_trainer import files
from autolora_trainer.errors import NonFiniteError
from autolora_trainer.files import (
    check_regular,
    parse_json,
    read_json,
    refuse_links,
    replacing,
    write_atomically,
    write_json,
)
from autolora_trainer.runs.outputs import is_output


@pytest.fixture
def outside(tmp_path):
    """A file that nobody may write into."""
    path = tmp_path / "outside"
    path.write_text("mine")
    return path


def test_a_link_is_replaced_and_not_followed(tmp_path, outside):
    for name in ("x.json", "x.json.tmp", ".x.json.tmp"):
        (tmp_path / name).symlink_to(outside)
    write_atomically(tmp_path / "x.json", "new")
    assert outside.read_text() == "mine" and not (tmp_path / "x.json").is_symlink()
    assert (tmp_path / "x.json").read_text() == "new" and sorted(p.name for p in tmp_path.iterdir()) == [
        ".x.json.tmp", "outside", "x.json", "x.json.tmp"
    ]  # fmt: skip


def test_a_name_that_somebody_has_guessed_is_not_written_to(tmp_path, outside, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 16)
    (tmp_path / ".x.0000000000000000.tmp").symlink_to(outside)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "x", "new")
    assert outside.read_text() == "mine" and not (tmp_path / "x").exists()


def test_modes_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    write_atomically(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x") as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        1 / 0
    assert (tmp_path / "x").read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_what_a_kill_leaves_is_cleared_by_the_next_run(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "ranks.json") as temporary:
        name = os.path.basename(temporary)
        raise KeyboardInterrupt
    assert is_output(name) and not is_output(name.replace("ranks.json", "mine.txt"))


@pytest.mark.parametrize("place", ["search", "search/a", "checkpoint-1/b/c"])
def test_links_where_libraries_write_are_refused(tmp_path, outside, place):
    (tmp_path / "search").mkdir()
    (tmp_path / "checkpoint-1" / "b").mkdir(parents=True)
    (tmp_path / "mine").symlink_to(outside)  # under no name of a run's
    names = ["search", "checkpoint-1", "nothing"]
    refuse_links(tmp_path, names)
    if (tmp_path / place).is_dir():
        (tmp_path / place).rmdir()
    for make, what in ((lambda path: path.symlink_to(outside), "a link"), (os.mkfifo, "no file")):
        make(tmp_path / place)
        with pytest.raises(ValueError, match=f"{place} is {what}, and what is written there would go elsewhere"):
            refuse_links(tmp_path, names)
        (tmp_path / place).unlink()


@pytest.mark.parametrize(
    "make, sentence",
    [
        (os.mkfifo, r"is damaged: it is a pipe \(FIFO\), not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is damaged: it is a device, not a file"),
        (lambda path: path.touch() or os.truncate(path, 10**11), "has 100,000,000,000 bytes, and at most"),
        (lambda path: path.write_text("[" * 10**5), "is damaged: maximum recursion depth exceeded"),
        (lambda path: path.write_text("[" + "[]," * 600_000 + "1]"), "it holds more than 500,000 lists and objects"),
        (lambda path: path.write_bytes(b"\xff"), "is damaged: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_file_of_ours_is_one_line_at_once(tmp_path, make, sentence):
    make(tmp_path / "x.json")
    with pytest.raises(ValueError, match=sentence) as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
    assert parse_json('{"a": [1]}') == {"a": [1]}


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
    os.remove(tmp_path / "pipe")
    os.remove(tmp_path / "socket")
    os.symlink("nowhere", tmp_path / "broken")
    check_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "nothing")
