"""For benchmarks/reliability.py: it is in `tests.helpers`."""

from tests.helpers.commands import launch_command  # noqa: F401
