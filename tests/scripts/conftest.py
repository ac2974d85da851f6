"""What whole runs of the scripts share."""

import pytest

import run_glue
from tests.helpers.commands import command


@pytest.fixture(scope="module")
def finished(place):
    """One whole run of `--method autolora`: (output_dir, results)."""
    output = place / "autolora"
    return output, run_glue.main(command(place, output, test_file=place / "test.jsonl"))
