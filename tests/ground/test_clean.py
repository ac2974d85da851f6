"""Does no secret and no control character leave, whichever way text takes?"""

import io
import logging
import sys
import warnings

import pytest

from autolora_trainer import clean
from autolora_trainer.clean import hide_secrets, keep_secret, printable, usable_token, without_secrets
from autolora_trainer.errors import LONGEST, UsageError, run_guarded, usage_errors

HUB = "hf_" + "aB3dE6" * 6
SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(clean, "_kept", set())
    monkeypatch.setenv("MY_DATABASE_PASSWORD", SECRET)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-word@proxy:3128")


@pytest.mark.parametrize(
    "text, left",
    [
        (f"--tokenx{HUB} x", "--tokenx*** x"),
        ("hf_oauth_eyJhbGciOiJ.abc-def", "***"),
        (f"at {SECRET}.", "at ***."),
        ("Proxy proxy-word refused", "Proxy *** refused"),
        ("https://me:pass/word@host/x, https://me:p@ss@host", "https://***@host/x, https://***@host"),
        ("me:hunter2@host.com/x", "***@host.com/x"),
        ("x.json?a=1&api_key=abc&b=2", "x.json?a=1&api_key=***&b=2"),
        ("{'Authorization': 'Bearer abc123def456'}", "{'Authorization': 'Bearer ***'}"),
    ],
)
def test_secrets_are_left_out(text, left):
    assert without_secrets(text) == left and without_secrets(left) == left


@pytest.mark.parametrize(
    "text",
    ["https://huggingface.co/a/b@main", "git@github.com:owner/repo", "rlhf_experiments hf_checkpoints",
     "Basic usage: a@b.c, 12:30",
     "pad_token='[PAD]' max_tokens=5"],
)  # fmt: skip
def test_what_is_none_stays(text):
    assert without_secrets(text) == text


def test_secrets_that_were_typed_or_spelt_otherwise_are_left_out_too(monkeypatch):
    keep_secret("s3cr3t/+word\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'aws"quoted"key')
    assert without_secrets("a s3cr3t%2F%2Bword and s3cr3t/+word") == "a *** and ***"
    assert without_secrets('{"x": "aws\\"quoted\\"key"}') == '{"x": "***"}'


def test_text_is_looked_through_in_time():
    hostile = "//:x" * 3_000 + "?key" * 3_000 + "a:b" * 3_000 + "@"
    assert without_secrets(hostile)  # minutes, if a pattern went over it again and again


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[31mred\x07\r", "?[31mred??"),
        ("a\u202eb\u2066c\u2028d\x9bm", "a?b?c?d?m"),
        ("half \ud800, tag \U000e0041", "half ?, tag ?"),
        ("Größe\t漢字 👩‍👩‍👧\r\nשלום", "Größe\t漢字 👩‍👩‍👧\nשלום"),
    ],
)
def test_terminals_are_not_told_what_to_do(text, shown):
    assert printable(text) == shown


def test_every_way_out_is_clean():
    """Printed, logged with a traceback, warned of, and an error, by whatever library."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)  # of a library: bound to its stream long before
    logger = logging.getLogger("some.library")
    logger.addHandler(handler)

    def main():
        print("printed", SECRET, file=sys.stderr)
        sys.stderr.write(f"\rbar {HUB}\x1b[A")
        sys.stderr.write(warnings.formatwarning(f"warned {SECRET} \x1b]0;x\x07", UserWarning, "x.py", 1))
        try:
            raise ValueError(f"raised {SECRET}")
        except ValueError:
            logger.exception("logged %s \x1b[2J", HUB)
        raise RuntimeError(f"failed {SECRET} \x1b[2J")

    before, factory = sys.stderr, logging.getLogRecordFactory()
    sys.stderr = out
    try:
        assert run_guarded(main, "program") == 1
    finally:
        sys.stderr = before
        logger.removeHandler(handler)
    said = out.getvalue()
    assert SECRET not in said and HUB not in said and said.count("***") >= 6
    assert "bar ***\x1b[A" in said and "\x1b[2J" not in said and "\x07" not in said  # a bar moves its own line
    assert all(word in said for word in ("printed", "warned", "raised", "logged", "program: error: RuntimeError: "))
    assert logging.getLogRecordFactory() is factory


def test_a_traceback_for_debugging_is_clean(monkeypatch, capsys):
    monkeypatch.setenv("AUTOLORA_DEBUG", "1")

    def fails():
        raise ValueError(f"{SECRET}\n\x1b[2J")

    assert run_guarded(fails, "program") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and SECRET not in said and "\x1b" not in said


def test_a_message_is_cut_after_it_was_cleaned():
    with pytest.raises(UsageError) as caught, usage_errors():
        raise ValueError("x" * (LONGEST - 10) + SECRET + "y" * 10**6)
    assert len(str(caught.value)) < LONGEST + 10 and SECRET[:5] not in str(caught.value)


def test_a_command_line_is_hidden_where_it_is_kept():
    typed = ["--hub-token", "a", "b", "--token=c", "--run_name", f"x-{HUB}", "--max_new_tokens", "5", "--seed=1"]
    hidden = ["--hub-token", "***", "***", "--token=***", "--run_name", "x-***", "--max_new_tokens", "5", "--seed=1"]
    assert hide_secrets(typed) == hidden


def test_a_token_is_trimmed_or_refused():
    assert [usable_token(given) for given in (f" {HUB}\r\n", "", " ", None, True)] == [HUB, None, None, None, True]
    for given in ("two words", "se\ncret", "sécret-word", "zero\u200bwidth"):
        with pytest.raises(ValueError, match="hub_token holds blanks or characters that no token has") as caught:
            usable_token(given, "hub_token")
        assert given not in str(caught.value)
