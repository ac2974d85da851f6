"""The demo, cut short: six lines and nothing else on the screen, adapters that load, the page."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from autolora_trainer.commands import cli
from autolora_trainer.commands.demo import _curve
from autolora_trainer.commands.surroundings import one_bar
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.ranks.curve import Curve, CurvePoint
from autolora_trainer.ranks.learned import LearnedRanks


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(its folder, what was printed, what a terminal was shown beside it), where `find` ran before."""
    folder, said, other = tmp_path_factory.mktemp("demo"), io.StringIO(), Terminal()
    one_bar()
    with redirect_stdout(said), redirect_stderr(other):
        cli.main(f"demo --lines 64 --steps 2 --search_steps 5 --output_dir {folder}".split())
    return folder, said.getvalue().splitlines(), other.getvalue()


def test_six_lines_and_the_rest_in_a_log(demo):
    folder, said, other = demo
    wanted = (
        r"held-out loss: 7\.\d\d without adapter, .* at [\d,]+.* parameters",
        r"found [\d,]+ parameters, \d+% of rank 8's: total rank \d+ in 36 modules, .*"
        r"|undecided: the search has learned nothing that held-out rows see, so ranks are uniform",
        r"learned ranks: ([\d,]+) parameters, test loss \d\.\d{3}",
        r"uniform, same size: ([\d,]+) parameters, test loss .*; uniform, rank 8: 138,240 parameters, test loss .*",
        r"rank 8, compressed: [\d,]+ parameters, test loss .*: \d+% of it, within 5% of its held-out loss",
        r".*report\.html shows it all; adapters and log beside it; \d+ s",
    )
    found = [re.fullmatch(pattern, line) for pattern, line in zip(wanted, said, strict=True)]
    assert all(found), said
    sizes = [int(match[1].replace(",", "")) for match in found[2:4]]
    assert 0 <= sizes[0] - sizes[1] < 320
    bars = list(dict.fromkeys(re.findall(r"([a-z, 8]+): +\d+%\|", other)))
    assert bars[:4] == ["search", "contributions", "curve", "learned ranks"] and "uniform, rank 8" in bars
    assert "\n" not in other  # one line, which is empty in the end
    log = (folder / "demo.log").read_text()
    assert "find: about" in log and "compress: about" in log and "'train_loss'" in log


def test_its_adapters_load_and_the_page_shows_them(demo):
    folder, said, _ = demo
    ranks = LearnedRanks.load(folder / "ranks.json")
    page = (folder / "report.html").read_text()
    for name in ("", "uniform-same-size", "uniform-rank-8", "compressed"):
        base = AutoModelForCausalLM.from_pretrained(folder / "decoder")
        adapted = PeftModel.from_pretrained(base, folder / name)
        size = sum(weight.numel() for key, weight in adapted.named_parameters() if "lora_" in key)
        assert f"{size:,}" in page and f"{size:,} parameters" in "\n".join(said)
        if not name:
            real = {module: layer.r["default"] for module, layer in lora_layers(adapted).items()}
            assert real == {module: rank for module, rank in ranks.ranks.items() if rank}
    assert "Trained alike" in page and "autolora compress ." in page


def test_the_curve_in_a_line_has_the_size_that_was_found():
    points = [CurvePoint(i, 100 * i, 1 / i) for i in range(1, 12)]
    line = _curve(Curve((CurvePoint(0, 0, 2.0), *points), 7, True, 0.05), 700)
    assert line.startswith("held-out loss: 2.00 without adapter, 1.00 at 100,") and "0.14 at 700 <," in line
    assert line.endswith("0.09 at 1,100 parameters") and len(line) < 120


@pytest.mark.parametrize(
    "typed, sentence",
    [
        ("--output_dir {demo}", "holds a demo. Add --overwrite to replace it, or give another --output_dir."),
        ("--output_dir {demo}/decoder --overwrite", "is not empty. Give a new folder."),
        ("--overwrite --output_dir {demo} --steps 0", "--steps must be at least 1, got 0. Raise it, or leave it out."),
        ("--overwrite --output_dir {demo} --search_steps 4", "--search_steps must be at least 5, got 4."),
    ],
)
def test_what_is_refused_before_anything_is_written(demo, typed, sentence):
    folder = demo[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UsageError, match=re.escape(sentence)):
        cli.main(["demo", *typed.format(demo=folder).split()])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
