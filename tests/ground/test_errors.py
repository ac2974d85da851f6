"""Does a failure end in one line and its status?"""

from autolora_trainer.errors import run_guarded


def test_debugging_shows_where_it_failed(monkeypatch, capsys):
    monkeypatch.setenv("AUTOLORA_DEBUG", "1")
    assert run_guarded(lambda: 1 / 0, "run_glue.py") == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[0].startswith("Traceback") and said[-1] == "run_glue.py: error: ZeroDivisionError: division by zero"


def test_failure_while_running_has_status_1(capsys):
    def fails():
        raise RuntimeError("first line\nsecond line")

    assert run_guarded(fails, "run_glue.py") == 1
    assert capsys.readouterr().err == "run_glue.py: error: RuntimeError: first line second line\n"
