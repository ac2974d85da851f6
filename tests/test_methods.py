"""For test_paper_plans.py: it is in `tests.helpers`."""

from tests.helpers.methods import Trials  # noqa: F401
