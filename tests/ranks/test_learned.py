"""Do ranks come back from their file as they went, and is a malformed one refused in one line?"""

import json
import re
import typing

import pytest

from autolora_trainer.ranks.learned import LearnedRanks
from tests.helpers.ranks import learned


def test_readers_say_what_they_give():
    for read in (LearnedRanks.load, LearnedRanks.from_pretrained):
        assert typing.get_type_hints(read)["return"] is LearnedRanks


def test_json_round_trip_is_exact(tmp_path):
    ranks = learned({"a.0.query": 3, "a.0.value": 0})
    ranks.save(tmp_path / "ranks.json")
    document = json.loads((tmp_path / "ranks.json").read_text())
    assert LearnedRanks.load(tmp_path / "ranks.json") == ranks
    assert document["format_version"] == 1 and document["total_rank"] == 3
    assert document["modules"]["a.0.query"] == {"rank": 3, "selection": [0.5, 0.5]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not a ranks.json"),
        ("[]", "format_version must be 1, got 'list'"),
        ('{"format_version": 2}', "format_version must be 1, got 2"),
        ('{"format_version": 1, "modules": {}}', "at least one module name"),
        ('{"format_version": 1, "modules": {"../x": {"rank": 1}}}', "'../x' is not a module name"),
        ('{"format_version": 1, "modules": {"(a+)+": {"rank": 1}}}', "is not a module name"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1.5}}}', "must be an integer from 0 to 4096, got 1.5"),
        ('{"format_version": 1, "modules": {"q": {"rank": true}}}', "must be an integer"),
        ('{"format_version": 1, "modules": {"q": {"rank": 99999999}}}', "must be an integer from 0 to 4096"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1, "selection": [NaN]}}}', "NaN, which is no number"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1, "selection": [1e999]}}}', "must hold finite numbers"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1}}, "initial_rank": 0}', "initial_rank must be an integer"),
        ("[" * 100_000, "is not a ranks.json"),
    ],
)
def test_malformed_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "ranks.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        LearnedRanks.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
