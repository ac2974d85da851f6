"""Are adapters of strangers looked at, and loaded, within bounds of time and memory?"""

import json
import os
import re
import struct
import time

import numpy
import pytest
import torch
from safetensors.numpy import save_file

from autolora_trainer.commands import cli
from autolora_trainer.errors import run_guarded
from autolora_trainer.methods.base import PEFT_ADAPTER, load_saved
from autolora_trainer.ranks import matching
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.matching import KEY, check_patterns, first_matches
from tests.helpers.models import lora, tiny_roberta

ENDLESS = "(([a-z0-9.]+)+)+!"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter(folder, tensors=None, **changes):
    """An adapter of four modules, of rank 2."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q", "v"], **changes}
    (folder / CONFIG).write_text(json.dumps(config))
    names = [f"base_model.model.model.layers.{i}.self_attn.{p}.lora_" for i in range(2) for p in "qv"]
    shapes = {"A": (2, 4), "B": (4, 2)}
    made = {f"{name}{kind}.weight": numpy.zeros(shapes[kind], numpy.float32) for name in names for kind in shapes}
    save_file(made if tensors is None else tensors, folder / WEIGHTS)
    return folder


def told(capsys, *argv):
    """(status, standard output, the only line of standard error) of the command, which takes no time."""
    started = time.process_time()
    status = run_guarded(lambda: cli.main([str(word) for word in argv]), "autolora")
    out, err = capsys.readouterr()
    assert time.process_time() - started < 2 and len(err.splitlines()) == (status != 0)
    assert all(line.isprintable() and len(line) < 500 for line in err.splitlines())
    return status, out, err


HOSTILE = {
    "rank": ({"r": 10**9}, "r has a number beyond 65,536"),
    "rank a little too large": ({"r": 5000}, "r must be from 0 to 4096"),
    "rank of a module": ({"rank_pattern": {"q": 10**9}}, "rank_pattern has a number beyond 65,536"),
    "ranks in a list": ({"rank_pattern": [1]}, "rank_pattern must be an object"),
    "rank in words": ({"rank_pattern": {"q": "2"}}, "rank_pattern must hold numbers"),
    "endless scale": ({"alpha_pattern": {ENDLESS: 1}}, "a pattern of modules takes more than 5 seconds to match"),
    "no expression": ({"alpha_pattern": {"(": 1}}, "a pattern of modules is no regular expression"),
    "scales": ({"alpha_pattern": {f"x{i}": 1 for i in range(50_001)}}, "alpha_pattern has 50,001 entries; at most"),
    "long pattern": ({"alpha_pattern": {"(a|b)" * 5000: 1}}, "has 25,000 characters; at most 20,000|text of 25,000"),
    "no number": ({"lora_alpha": float("nan")}, "lora_alpha has a number beyond"),
    "infinite": ({"lora_alpha": float("inf")}, "lora_alpha has a number beyond"),
    "scale in words": ({"lora_alpha": "16"}, "lora_alpha must hold numbers"),
    "copies": ({"layer_replication": [[0, 900], [0, 900]]}, "layer_replication makes more than 1,000 layers"),
    "rounds": ({"init_lora_weights": "pissa_niter_60000"}, "an initialization of more than 100 rounds"),
    "code": ({"megatron_config": {"x": 1}, "megatron_core": "evil"}, "megatron_config has modules of Python imported"),
    "type": ({"peft_type": {"LORA": 1}}, "peft_type is missing"),
    "escape": ({"peft_type": "\x1b[31mX"}, r"is an adapter of type '\\x1b\[31mX'"),
    "base": ({"base_model_name_or_path": "\x1b]0;x\x07"}, "base_model_name_or_path must be a short text on one line"),
    "targets": ({"target_parameters": [1]}, "target_parameters must be a name or a list of names"),
    "deep": ({"eva_config": {"a": [{"b": 10**9}]}}, "eva_config has a number beyond"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_config_of_a_stranger_is_one_line_at_once(tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(matching, "DEADLINE", 0.2)
    changes, sentence = HOSTILE[case]
    status, out, err = told(capsys, "show", adapter(tmp_path, **changes))
    assert status == 2 and out == "" and re.search(sentence, err), err


def tensor(path, module, shape):
    save_file({f"base_model.model.{module}.lora_A.weight": numpy.zeros(shape, numpy.float32)}, path)


FILES = {
    "a pipe for weights": (WEIGHTS, os.mkfifo, "not a file"),
    "a pipe for a config": (CONFIG, os.mkfifo, "not a file"),
    "a device": (WEIGHTS, lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "a header without end": (WEIGHTS, lambda path: path.write_bytes(struct.pack("<Q", 2**50)), "header has 1,125,89"),
    "a huge config": (CONFIG, lambda path: path.touch() or os.truncate(path, 10**10), "it has 10,000,000,000 bytes"),
    "brackets": (CONFIG, lambda path: path.write_text("[" * 10**5), "maximum recursion depth"),
    "lists": (CONFIG, lambda path: path.write_text("[" + "[]," * 600_000 + "1]"), "more than 500,000 lists"),
    "results": ("all_results.json", os.mkfifo, None),
    "ranks": ("ranks.json", os.mkfifo, "is not a ranks.json: it is a pipe"),
    "a rank of nothing": (WEIGHTS, lambda path: tensor(path, "q", (10**9, 0)), "has rank 1,000,000,000 at 'q'"),
    "a name that is none": (WEIGHTS, lambda path: tensor(path, "\x1b[2Jq", (1, 1)), "which is no name of a module"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_a_stranger_is_one_line_at_once(tmp_path, capsys, case):
    name, make, sentence = FILES[case]
    adapter(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    status, out, err = told(capsys, "show", tmp_path)
    assert (status, out == "") == ((2, True) if sentence else (0, False)) and (sentence or "") in err, err


def test_results_of_a_stranger_are_shown_as_far_as_they_are_any(tmp_path, capsys):
    results = {"adapter_params": "many", "head_params": 10**20, "eval_\x1b[31mf1": 0.5, "eval_x": 1e300}
    results |= {f"eval_f1_{i}": 0.1 for i in range(500)}
    phase = {"wall_seconds": "x", "passes": [], "examples": float("inf"), "peak_memory_mb": 1}
    adapter(tmp_path)
    for name, content in (("all_results.json", results), ("cost.json", {"total": phase, "search": 1})):
        (tmp_path / name).write_text(json.dumps(content))
    status, out, _ = told(capsys, "show", tmp_path)
    assert status == 0 and "eval_?[31mf1 = 0.5000, eval_x = 1e+300, eval_f1_0" in out and "and 402 more" in out
    assert "total     -       -         -         1 MB" in out and "parameters in the head" not in out
    (tmp_path / "run.json").write_text('{"settings": {"lora_alpha": ' + "9" * 4000 + "}}")
    status, _, err = told(capsys, "export", tmp_path)
    assert status == 2 and "has a lora_alpha that is none" in err


def test_many_modules_take_no_time(tmp_path, capsys):
    modules = ",".join(f'"m{i}": {{"rank": {i % 7}}}' for i in range(8_000))
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(f'{{"format_version": 1, "modules": {{{modules}}}}}')
    assert told(capsys, "diff", tmp_path / "a.json", tmp_path / "b.json")[0] == 0
    wide = ",".join(f'"l.{i}.q": {{"rank": 1}}, "x{i}": {{"rank": 1}}' for i in range(2_000))
    (tmp_path / "a.json").write_text(f'{{"format_version": 1, "modules": {{{wide}}}}}')
    status, _, err = told(capsys, "show", tmp_path / "a.json")
    assert status == 2 and "2,001 projections in 2,001 blocks is too large to be shown" in err


def test_a_key_is_the_first_that_fits_as_peft_takes_it():
    names = ["model.layers.0.q_proj", "model.layers.11.q_proj", "q_proj"]
    for keys in (["q_proj"], [r"^model\.layers\.0\.q_proj", "q_proj"], [r"layers\.1\d\.q_proj", "q_proj"],
                 ["q_proj", "^q_proj"], ["proj"], [r"(.*\.)?1?1\.q_proj", "0.q_proj"], ["^q_proj"]):  # fmt: skip
        expected = {}
        for name in names:
            fitting = [key for key in keys if re.match(KEY.format(key), name)]
            expected |= {name: fitting[0]} if fitting else {}
        assert first_matches(keys, names) == expected


def test_patterns_of_people_are_matched(monkeypatch):
    """That of a library whose adapters are everywhere; flags at its beginning are PEFT's to take."""
    blocks = "(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    pattern = f"(?:.*?(?:language|text).*?{blocks}.*?(?:k_proj|v_proj|q_proj|fc1).*?)|(?:\\bmodel\\.[\\d]{{1,}}\\.x)"
    names = [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(100)]
    check_patterns([(matching.WHOLE, pattern), (matching.WHOLE, "(?i).*Q_PROJ")], names)
    with pytest.raises(ValueError, match="513 patterns of modules for a model of 1"):
        check_patterns([(KEY, f"x{i}") for i in range(513)], ["x"])


# ---- loaded on a model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    lora(tiny_roberta(), 2).save_pretrained(folder)
    return folder


def load(saved, folder, **changes):
    config = json.loads((saved / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    (folder / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes())

    class Source:
        base_model = staticmethod(tiny_roberta)

    return load_saved([PEFT_ADAPTER], Source, str(folder))[0]


def test_what_is_well_meant_loads(saved, tmp_path):
    model = load(saved, tmp_path, target_modules=r".*\.self\.(query|value)", init_lora_weights="gaussian")
    assert AdapterFile.from_pretrained(tmp_path).ranks and next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"target_modules": ENDLESS}, "a pattern of modules takes more than 5 seconds to match"),
        ({"exclude_modules": ENDLESS}, "a pattern of modules takes more than 5 seconds to match"),
        ({"modules_to_save": ["classifier", ENDLESS]}, "a pattern of modules takes more than 5 seconds to match"),
        ({"layers_to_transform": [0], "layers_pattern": [ENDLESS]}, "a pattern of modules takes more than 5 seconds"),
        ({"rank_pattern": {f"{i}.x": 1 for i in range(600)}}, "602 patterns of modules for a model of"),
        ({"r": 4096}, "it asks for rank 4,096, and the largest in adapter_model.safetensors is 2"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 60_000}, "num_virtual_tokens 60,000 is more than any"),
    ],
)  # fmt: skip
def test_what_would_never_end_is_not_loaded(saved, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.setattr(matching, "DEADLINE", 0.2)
    with pytest.raises(ValueError, match=f"does not load on Roberta.*{sentence}"):
        load(saved, tmp_path, **changes)
