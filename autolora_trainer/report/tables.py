"""Scores, costs and comparisons as tables of values, plain and Markdown."""

from collections.abc import Mapping, Sequence

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


def score_table(metrics: Mapping) -> tuple[list[str], list[list[str]]]:
    """(heads, cells) of `scores_by_split`."""
    rows = [[metric, split, format_score(value)] for metric, split, value in scores_by_split(metrics)]
    return ["metric", "rows", "score"], rows


def score_line(evaluation: Mapping[str, float]) -> str:
    """The scores in a line, without those of single kinds of entities."""
    of_a_kind = ("precision_", "recall_", "f1_")
    shown = {k: v for k, v in evaluation.items() if is_score(k) and not any(part in k for part in of_a_kind)}
    return ", ".join(f"{key} = {value:.4f}" for key, value in shown.items())


def format_score(score: float | None) -> str:
    """Four decimals for rates and correlations, two for scores out of 100 (BLEU)."""
    if score is None:
        return "-"
    return f"{score:.2f}" if abs(score) > 1 else f"{score:.4f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False, left: int = 1) -> str:
    """An aligned table, plain or Markdown; the first `left` columns flush left, the others (numbers) flush right.

    Example:
        >>> print(format_table(["method", "score"], [["lora", "0.5"], ["autolora", "0.75"]]))
        method    score
        --------  -----
        lora        0.5
        autolora   0.75
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    if markdown:
        widths = [max(width, 4) for width in widths]

    def line(cells):
        aligned = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(aligned) + " |" if markdown else "  ".join(aligned).rstrip()

    rule = ["-" * (w - 1) + ":" if markdown and i >= left else "-" * w for i, w in enumerate(widths)]
    return "\n".join(map(line, [header, rule, *rows]))


def format_comparison(rows: Sequence[dict], markdown: bool = False) -> str:
    """Methods side by side.

    Args:
        rows: dicts with the keys `method`, `score`, `metric`, `adapter_params`, `wall_seconds`; what is missing or
            `None` is shown as "-".
        markdown: a Markdown table instead of a plain one. Cells are taken as they are; escape names of unknown origin.
    Example:
        >>> print(format_comparison([dict(method="lora", score=0.74, metric="accuracy", adapter_params=73728,
        ...                               wall_seconds=42)]))
        method  accuracy  adapter parameters  time
        ------  --------  ------------------  ----
        lora      0.7400              73,728  42 s
    """
    return format_table(*comparison_table(rows), markdown)


def comparison_table(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """(heads, cells) of `format_comparison`."""
    metrics = {row.get("metric") for row in rows} - {None}
    header = ["method", metrics.pop() if len(metrics) == 1 else "score", "adapter parameters", "time"]
    body = []
    for row in rows:
        score = format_score(row.get("score"))
        if header[1] == "score" and row.get("metric"):
            score = f"{score} {row['metric']}"
        size, time = _count(row.get("adapter_params")), _time(row.get("wall_seconds"))
        body.append([str(row.get("method", "-")), score, size, time])
    return header, body


def format_cost(cost: dict, markdown: bool = False) -> str:
    """What a run cost, a row a phase.

    Args:
        cost: as in cost.json, {"calibration" | "search" | "retrain" | "total": {"wall_seconds", "passes", "examples",
            "peak_memory_mb"}}. A missing phase (a method without a search) is left out, a missing number is "-".
        markdown: a Markdown table instead of a plain one.
    Example:
        >>> print(format_cost({"total": {"wall_seconds": 75, "passes": 120, "examples": 1920, "peak_memory_mb": 512}}))
        phase        time  passes  examples  peak memory
        -----  ----------  ------  --------  -----------
        total  1 min 15 s     120     1,920       512 MB
    """
    return format_table(*cost_table(cost), markdown)


def cost_table(cost: dict) -> tuple[list[str], list[list[str]]]:
    """(heads, cells) of `format_cost`."""
    body = []
    for phase in ("calibration", "search", "retrain", "total"):
        numbers = cost.get(phase)
        if isinstance(numbers, dict):
            passes, examples, memory = (_count(numbers.get(key)) for key in ("passes", "examples", "peak_memory_mb"))
            memory = memory if memory == "-" else f"{memory} MB"
            body.append([phase, _time(numbers.get("wall_seconds")), passes, examples, memory])
    return ["phase", "time", "passes", "examples", "peak memory"], body


def _is_figure(value) -> bool:
    """Whether this is a number that can be one of a run's; a file may say anything."""
    return isinstance(value, (int, float)) and abs(value) < 1e15


def _count(number: float | None) -> str:
    return f"{number:,.0f}" if _is_figure(number) else "-"


def _time(seconds: float | None) -> str:
    if not _is_figure(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
