"""For test_paper_plans.py: they are in `tests.helpers`."""

from tests.helpers.rows import reviews  # noqa: F401
