"""Tables of values, plain and Markdown."""

from collections.abc import Sequence

from autolora_trainer.report.scores import format_score


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

    if markdown:
        rule = (
            "|" + "|".join(f" {'-' * w} " if i < left else f" {'-' * (w - 1)}: " for i, w in enumerate(widths)) + "|"
        )
    else:
        rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


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
    metrics = {row.get("metric") for row in rows} - {None}
    header = ["method", metrics.pop() if len(metrics) == 1 else "score", "adapter parameters", "time"]
    body = []
    for row in rows:
        score = format_score(row.get("score"))
        if header[1] == "score" and row.get("metric"):
            score = f"{score} {row['metric']}"
        body.append(
            [str(row.get("method", "-")), score, _count(row.get("adapter_params")), _time(row.get("wall_seconds"))]
        )
    return format_table(header, body, markdown)


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
    phases = [phase for phase in ("calibration", "search", "retrain", "total") if isinstance(cost.get(phase), dict)]
    body = []
    for phase in phases:
        numbers = cost[phase]
        memory = _count(numbers.get("peak_memory_mb"))
        body.append([
            phase, _time(numbers.get("wall_seconds")), _count(numbers.get("passes")), _count(numbers.get("examples")),
            memory if memory == "-" else f"{memory} MB",
        ])  # fmt: skip
    return format_table(["phase", "time", "passes", "examples", "peak memory"], body, markdown)


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
