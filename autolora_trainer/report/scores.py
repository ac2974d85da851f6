"""Which of a run's figures are scores, whose they are, and how they are written."""

from collections.abc import Mapping

# what Trainer's metrics say besides scores
TRAINERS_OWN = """
    loss runtime samples epoch samples_per_second steps_per_second model_preparation_time total_flos
""".split()
PREFIXES = {"eval_": "validation", "predict_": "test", "test_": "test"}


def bare_name(key: str) -> str:
    """A metric's name without the split's before it, and without the `_mm` of MNLI's mismatched rows behind it.

    Example:
        >>> bare_name("eval_accuracy_mm")
        'accuracy'
    """
    prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
    return key.removeprefix(prefix).removesuffix("_mm")


def is_score(key: str) -> bool:
    """Whether a figure says how good a model is.

    Example:
        >>> is_score("eval_f1"), is_score("eval_runtime"), is_score("train_loss")
        (True, False, False)
    """
    return bare_name(key) not in TRAINERS_OWN and not key.startswith("train_")


def scores_by_split(metrics: Mapping) -> list[tuple[str, str, float]]:
    """(metric, split, value) of every figure that says how good the model is."""
    scores = []
    matched = "_matched" if any(key.endswith("_mm") for key in metrics) else ""  # MNLI's two validation sets
    for key, value in metrics.items():
        split = next((split for prefix, split in PREFIXES.items() if key.startswith(prefix)), "validation")
        if split == "validation":
            split += "_mismatched" if key.endswith("_mm") else matched  # as transformers' run_glue names them
        elif key.endswith("_mm"):
            split += "_mismatched"
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and is_score(key):
            scores.append((bare_name(key), split, float(value)))
    return scores


def score_line(evaluation: Mapping[str, float]) -> str:
    """The scores in a line, without those of single kinds of entities."""
    of_a_kind = ("precision_", "recall_", "f1_")
    shown = {k: v for k, v in evaluation.items() if is_score(k) and not any(part in k for part in of_a_kind)}
    return ", ".join(f"{key} = {value:.4f}" for key, value in shown.items())


def format_score(score: float | None) -> str:
    """Four decimals for rates and correlations, two for scores out of 100 (BLEU)."""
    if score is None:
        return "-"
    return f"{score:.4f}" if not abs(score) > 1 else f"{score:.2f}"
