"""A `compute_loss` of the user's own: whether what it gives is a mean over its micro-batch, or divided by the count of
the whole step, as transformers' documentation asks."""

import ast
import enum
import functools
import inspect
import textwrap
from collections.abc import Callable

from transformers import Trainer

COUNT = "num_items_in_batch"
LIBRARIES = ("transformers", "trl")  # whose losses are scaled as they say themselves


class Scale(enum.Enum):
    """How a `compute_loss` scales what it returns."""

    MODEL = "as the model's own loss"  # it is that of the class above, with its count
    COUNT = "divided by the count of the step"
    MEAN = "a mean over the micro-batch"


def scale_of(trainer: Trainer) -> Scale:
    """Of the `compute_loss` that a Trainer has, of its own class, of its mixins or given to it."""
    own = [vars(trainer).get("compute_loss"), *(vars(kind).get("compute_loss") for kind in type(trainer).__mro__)]
    for function in (inspect.unwrap(getattr(each, "__func__", each)) for each in own if each is not None):
        if (getattr(function, "__module__", None) or "").partition(".")[0] in LIBRARIES:
            continue
        if (scale := _written(function)) is not Scale.MODEL:
            return scale
    return Scale.MODEL


def wants_count(trainer: Trainer) -> bool:
    """Whether the loss cannot be computed without a count of items."""
    return trainer.compute_loss_func is not None or scale_of(trainer) is Scale.COUNT


def takes(function: Callable, name: str) -> bool:
    """Whether a function can be called with an argument of this name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@functools.cache
def _written(function: Callable) -> Scale:
    """What the source of a `compute_loss` says; without a source it is taken as plain Trainer takes it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return Scale.COUNT
    body = [node for part in tree.body[0].body for node in ast.walk(part)]
    called = [n for n in body if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "compute_loss"]
    passed = {id(inner) for call in called for inner in ast.walk(call)}
    named = [
        node for node in body
        if isinstance(node, ast.Name) and node.id == COUNT or isinstance(node, ast.Constant) and node.value == COUNT
    ]  # fmt: skip
    if any(id(node) not in passed for node in named):
        return Scale.COUNT
    hands_on = named or any(keyword.arg is None for call in called for keyword in call.keywords)
    return Scale.MODEL if called and hands_on else Scale.MEAN
