"""For test_paper_plans.py: they are in `tests.helpers`."""

from tests.helpers.models import byte_gpt2 as gpt2  # noqa: F401
from tests.helpers.models import byte_tokenizer  # noqa: F401
from tests.helpers.rows import restaurants  # noqa: F401
