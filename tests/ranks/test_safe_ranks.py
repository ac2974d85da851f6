"""Are ranks of strangers read with bounds?"""

import re
import time

import pytest

from autolora_trainer import LearnedRanks
from autolora_trainer.ranks.learned import ModuleRank


def ranks_file(modules='{"q": {"rank": 1}}', more=""):
    return f'{{"format_version": 1, "modules": {modules}{more}}}'


def many(count):
    return "{" + ",".join(f'"m{i}":{{"rank":1}}' for i in range(count)) + "}"


HOSTILE_RANKS = {
    "parent": (lambda: ranks_file('{"../../etc/passwd": {"rank": 1}}'), "is not a module name"),
    "absolute": (lambda: ranks_file('{"/etc/passwd": {"rank": 1}}'), "is not a module name"),
    "drive": (lambda: ranks_file('{"C:\\\\\\\\x": {"rank": 1}}'), "is not a module name"),
    "regex": (lambda: ranks_file('{"(a+)+$": {"rank": 1}}'), "is not a module name"),
    "long regex": (lambda: ranks_file('{"' + "(a|a?)+" * 100_000 + '": {"rank": 1}}'), "is not a module name"),
    "long name": (lambda: ranks_file('{"' + "a" * 1_000_000 + '!": {"rank": 1}}'), "is not a module name"),
    "terminal": (lambda: ranks_file(more=', "base_model": "\\u001b]0;x\\u0007"'), "must be a short text on one line"),
    "lines": (lambda: ranks_file(more=', "rank_rule": "a\\nb"'), "must be a short text on one line"),
    "surrogate": (lambda: ranks_file(more=', "base_model": "\\ud800"'), "must be a short text on one line"),
    "100 MB": (lambda: " " * 100_000_000, "has 100,000,000 bytes; a ranks.json has at most 20,000,000"),
    "brackets": (lambda: "[" * 100_000, "is not a ranks.json"),
    "braces": (lambda: '{"a":' * 100_000, "is not a ranks.json"),
    "nested modules": (lambda: ranks_file('{"q": ' + '{"rank":' * 100_000 + "}" * 100_000 + "}"), "is not a ranks"),
    "nested selection": (
        lambda: ranks_file('{"q": {"rank": 1, "selection": ' + "[" * 50_000 + "]" * 50_000 + "}}"),
        "is not a ranks.json",
    ),
    "NaN": (lambda: ranks_file('{"q": {"rank": NaN}}'), "NaN, which is no number"),
    "Infinity": (lambda: ranks_file(more=', "threshold": -Infinity'), "-Infinity, which is no number"),
    "overflow": (lambda: ranks_file(more=', "threshold": 1e999'), "threshold must be a number"),
    "huge rank": (lambda: ranks_file('{"q": {"rank": 1000000000}}'), "must be an integer from 0 to 4096"),
    "negative rank": (lambda: ranks_file('{"q": {"rank": -1}}'), "must be an integer from 0 to 4096"),
    "4000 digits": (lambda: ranks_file('{"q": {"rank": ' + "9" * 4000 + "}}"), "must be an integer from 0 to 4096"),
    "a million digits": (lambda: ranks_file('{"q": {"rank": ' + "9" * 1_000_000 + "}}"), "is not a ranks.json"),
    "huge alpha": (
        lambda: ranks_file('{"q": {"rank": 1, "selection": [' + "9" * 4000 + "]}}"),
        "must hold finite numbers",
    ),
    "long selection": (
        lambda: ranks_file('{"q": {"rank": 1, "selection": [' + "0," * 1_000_000 + "0]}}"),
        "must be a list of numbers",
    ),
    "200,000 modules": (lambda: ranks_file(many(200_000)), "modules must be an object with"),
    "a million modules": (lambda: ranks_file(many(1_000_000)), "a ranks.json has at most"),
    "duplicate module": (lambda: ranks_file('{"q": {"rank": 1}, "q": {"rank": 8}}'), "names something twice"),
    "duplicate rank": (lambda: ranks_file('{"q": {"rank": 1, "rank": 8}}'), "names something twice"),
    "no utf-8": (lambda: b"\xff\xfe\x00{", "is not a ranks.json"),
    "code": (lambda: ranks_file('{"__import__": {"rank": "1"}}'), "must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_RANKS)
def test_ranks_of_a_stranger_are_refused_within_a_second(tmp_path, case):
    content, sentence = HOSTILE_RANKS[case]
    content, path = content(), tmp_path / "ranks.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        LearnedRanks.load(path)
    assert time.process_time() - started < 1
    line = str(caught.value)
    assert line.startswith(str(path)) and len(line) < 700 and line.isprintable()


def test_a_name_is_a_name_in_the_pattern_too():
    """PEFT takes the keys of a pattern for regular expressions."""
    (key,) = LearnedRanks({"a.b-c_d.0": ModuleRank(1)}).to_lora_config().rank_pattern
    assert re.match(key, "a.b-c_d.0") and not re.match(key, "axb-c_d.0")
