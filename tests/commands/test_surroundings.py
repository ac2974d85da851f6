"""What is seen and sent beside the result: the lines before, one bar, the card, the upload."""

import io
import logging
import re
import sys

import pytest
from peft import PeftModel

from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError, run_guarded
from tests.commands.test_compress import KINDS, place  # noqa: F401
from tests.helpers.hub_server import HubServer, use
from tests.helpers.rows import write_rows


class Terminal(io.StringIO):
    def isatty(self):
        return True


def typed(place, tmp_path, verb, *more):  # noqa: F811
    path = write_rows(tmp_path / "rows.jsonl", KINDS["text"] * 3)
    if verb == "find":
        more = ("--search_steps", "8", "--learning_rate", "1e-2", *more)
        return ["find", str(place / "base"), path, "--batch_size", "2", "--output_dir", str(tmp_path / "out"), *more]
    more = ("--eval_file", path, "--batch_size", "2", "--tolerance", "0.5", *more)
    return ["compress", str(place / "adapter"), "--output_dir", str(tmp_path / "out"), *more]


def clean_log(monkeypatch):
    logger = logging.getLogger("autolora_trainer")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)


@pytest.mark.parametrize("verb, phases", [("find", ["search", "contributions", "curve"]),
                                          ("compress", ["contributions", "curve"])])  # fmt: skip
def test_a_terminal_sees_what_it_takes_and_one_bar(place, tmp_path, monkeypatch, capsys, verb, phases):  # noqa: F811
    clean_log(monkeypatch)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    cli.main(typed(place, tmp_path, verb))
    shown = terminal.getvalue()
    said = [line for line in re.split(r"[\r\n]+", shown) if line.startswith(f"{verb}: ")]
    trained = "; [\\d,]+ parameters are trained, .* MB with Adam's moments" if verb == "find" else ""
    assert re.fullmatch(rf"{verb}: about \d+ passes of 2 rows; the model takes \d+ MB{trained}", said[0])
    assert re.fullmatch(rf"{verb}: about [\d.]+ \w+; peak memory so far [\d,]+ MB", said[1]) and len(said) == 2
    bars = re.findall(r"(\w+): +\d+%\|", shown)
    assert list(dict.fromkeys(bars)) == phases
    if verb == "find":
        assert "held-out loss=" in shown and re.search(r"8/8 .*held-out loss=\d", shown)
    assert "{'" not in shown and "Map" not in shown and "Loading" not in shown  # neither logs nor others' bars


@pytest.mark.parametrize("verb", ["find", "compress"])
def test_the_result_is_pushed_with_its_card(place, tmp_path, monkeypatch, capsys, verb):  # noqa: F811
    """The model loaded with a device map."""
    more = [
        "--device_map",
        "cpu",
        "--push_to_hub",
        "--hub_model_id",
        "me/small",
        "--hub_token",
        "hf_tokenofthetests123456",
    ]
    more += ["--format", "adapter"] if verb == "find" else []
    with HubServer() as server:
        use(server, monkeypatch, tmp_path / "cache")
        cli.main(typed(place, tmp_path, verb, *more))
    files = server.repositories["me/small"]
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "ranks.json", "curve.json",
             "rank_curve.png", "rank_curve.svg", "rank_heatmap.png", "rank_heatmap.svg"}  # fmt: skip
    assert set(files) >= names and "checkpoint" not in " ".join(files)
    assert f"pushed to {server.endpoint}/me/small" in capsys.readouterr().out
    card = files["README.md"].decode()
    kind = r"compressed from one of [\d,]+ parameters" if verb == "compress" else "ready to be trained"
    assert re.search(kind, card) and "rank_curve.png" in card and "AutoModelForCausalLM" in card
    assert f"autolora {verb}" in card and 'adapter = "me/small"' in card and "hf_token" not in card
    assert str(tmp_path) not in card
    folder = tmp_path / "out" / ("adapter" if verb == "find" else "")
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    snippet = re.sub(r"^base = .*$", f'base = "{place}/base"', snippet, flags=re.MULTILINE)
    names = {}
    exec(snippet.replace('"me/small"', f'"{folder}"'), names)
    assert isinstance(names["model"], PeftModel)


def test_what_cannot_be_pushed_is_said_before_the_search(place, tmp_path):  # noqa: F811
    for more, says in (
        (["--push_to_hub"], "--push_to_hub uploads an adapter, got --format trl. Add --format adapter."),
        (["--hub_model_id", "me/x"], "--hub_model_id me/x belongs to --push_to_hub. Add it, or drop both."),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], "hub_model_id must be a repository's name"),
    ):
        with pytest.raises(UsageError, match=re.escape(says)):
            cli.main(typed(place, tmp_path, "find", *more))
    assert not (tmp_path / "out").exists()


def test_a_search_of_the_shell_goes_on(place, tmp_path, monkeypatch, capsys):  # noqa: F811
    """And a log file gets lines, no bar."""
    clean_log(monkeypatch)
    from autolora_trainer.search.trainer import AutoLoraMixin

    plain = AutoLoraMixin.training_step

    def training_step(self, *given, **more):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return plain(self, *given, **more)

    argv = typed(place, tmp_path, "find")
    with monkeypatch.context() as patch:
        patch.setattr(AutoLoraMixin, "training_step", training_step)
        assert run_guarded(lambda: cli.main(argv), "autolora") == 130
    assert "type the same command with --resume_from_checkpoint" in capsys.readouterr().err
    cli.main([*argv, "--resume_from_checkpoint"])
    said = capsys.readouterr()
    assert "a server needs" in said.out
    shared, *phases = said.err.splitlines()
    assert shared.startswith("24 of 24 rows share an input with others") and len(phases) == 2
    assert all(line.startswith("find:") for line in phases)
    cli.main([*argv, "--resume_from_checkpoint"])
    assert capsys.readouterr().out == f"already finished: autolora show {tmp_path}/out\n"
