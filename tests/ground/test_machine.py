"""What the machine around a process lacks costs one line at most: a reader, an encoding, room, files, a folder."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from autolora_trainer import machine
from autolora_trainer.errors import UsageError, usage_errors

GUARDED = """
import argparse, sys, threading
from autolora_trainer.errors import guard_imports, run_guarded
def main():
    {main}
sys.exit(run_guarded(main, "prog"))
"""


def run(code, **more):
    """(status, standard output, standard error) of a process."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, **more}
    done = subprocess.run([sys.executable, "-c", code], **settings)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    "main, status",
    [
        ("print('a table')", 141),  # what is written at the end
        ("print('a table', flush=True); print('more', flush=True)", 141),
        (
            "from autolora_trainer.errors import usage_errors\n    with usage_errors(): print('a table', flush=True)",
            141,
        ),
        ("argparse.ArgumentParser().parse_args(['--help'])", 0),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_it_without_a_word(main, status, unbuffered):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    found = run(GUARDED.format(main=main), stdout=write, env=environment)
    os.close(write)
    assert found == (status, None, "")


def test_output_without_room_is_one_line():
    with open("/dev/full", "w") as full:
        status, _, said = run(GUARDED.format(main="print('a table')"), stdout=full)
    assert status == 1 and said.count("\n") == 1 and "No space left on device" in said


def test_what_an_encoding_has_not_got_is_shown_as_a_question_mark():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    status, said, _ = run(GUARDED.format(main="print('Stra\\u00dfe \\u2500 \\udcc3')"), env=environment)
    assert (status, said) == (0, b"Stra?e ? ?\n")


def test_letters_that_a_locale_does_not_keep_are_refused(monkeypatch):
    """Rust takes every name for UTF-8: `ö` in latin-1 would be another file."""
    machine.check_letters(["--output_dir", "öut"])
    for form in ("iso8859-1", "ascii"):
        monkeypatch.setattr(sys, "getfilesystemencoding", lambda form=form: form)
        machine.check_letters(["--output_dir", "out"])
        with pytest.raises(ValueError, match=rf"^'\\xf6ut' has letters that {form}, .* Type PYTHONUTF8=1 before"):
            machine.check_letters(["--output_dir", "öut"])


def test_imports_and_threads_fail_in_one_line_too():
    code = "from autolora_trainer.errors import guard_imports; guard_imports('prog'); raise OSError('no\\nsuch thing')"
    assert run(code) == (1, b"", "prog: error: OSError: no such thing\n")
    thread = "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    assert run(GUARDED.format(main=thread)) == (0, b"", "prog: warning: division by zero (in the background)\n")


TORCH = RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 128 vs 22")


def test_a_write_that_fails_for_want_of_room_says_so(tmp_path, monkeypatch):
    assert machine.has_room(tmp_path) and machine.has_room(tmp_path / "nowhere")
    for room, kind, says in ((True, RuntimeError, "enforce fail"), (False, OSError, os.strerror(errno.ENOSPC))):
        monkeypatch.setattr(machine, "has_room", lambda place: room)
        with pytest.raises(kind, match=says), machine.naming_a_full_disk(tmp_path):
            raise TORCH
    with pytest.raises(ValueError, match="^other"), machine.naming_a_full_disk(tmp_path):
        raise ValueError("other")


def test_a_full_disk_is_known_in_whatever_a_library_makes_of_it():
    full = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    try:
        try:
            raise full
        except OSError:
            raise RuntimeError("could not save")
    except RuntimeError as error:
        wrapped = error
    assert machine.is_full_disk(full) and machine.is_full_disk(wrapped) and not machine.is_full_disk(TORCH)
    assert machine.advice(wrapped, "type it again") == (
        "No space left on device. Free some space, then type it again."
    )
    with pytest.raises(OSError), usage_errors():
        raise full  # no mistake of the user's
    with pytest.raises(UsageError), usage_errors():
        raise OSError("other")


def test_causes_around_a_process_are_named(monkeypatch):
    many = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert "ulimit -n 1024" in machine.advice(many, "") and machine.advice(TORCH, "") is None
    with monkeypatch.context() as patch:
        patch.setattr(machine.sys, "flags", SimpleNamespace(optimize=2))
        assert "without -OO" in machine.advice(ValueError("No `Args` in the docstring"), "")
    monkeypatch.setattr(os, "getcwd", lambda: os.stat("/nowhere/at/all"))
    assert "The working folder is gone." in machine.advice(FileNotFoundError(2, "No such file"), "")
