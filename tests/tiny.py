"""The tiny models and rows, for the tests of benchmarks and benchmarks/reliability.py: they are in `tests.helpers`."""

from tests.helpers.commands import as_argv  # noqa: F401
from tests.helpers.models import tiny_checkpoint  # noqa: F401
from tests.helpers.rows import sentences, write_rows  # noqa: F401
