"""Libraries that are too old are named in one line when the package is imported."""

from importlib import metadata

import pytest

from autolora_trainer.floors import check_floors


def old(monkeypatch, **versions):
    found = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or found(name))


def test_what_is_installed_is_new_enough():
    check_floors()


def test_older_libraries_are_named_with_what_to_type(monkeypatch):
    old(monkeypatch, transformers="5.17.1", peft="0.20.0")
    with pytest.raises(ImportError) as caught:
        check_floors()
    assert str(caught.value) == (
        "autolora_trainer has not been run with transformers 5.17.1, peft 0.20.0. Type: "
        'pip install --upgrade "transformers>=5.18" "peft>=0.21.2"'
    )


def test_a_newer_one_a_release_candidate_and_a_missing_list_pass(monkeypatch):
    old(monkeypatch, transformers="99.0.0rc1", torch="99.1.0.dev0+cu130")
    check_floors()
    check_floors("no_such_distribution")
