"""What the rows of `compress.py` say. Losses are shares of what the given adapter takes off the test loss:
(loss without adapter less that of the cut) / (loss without adapter less that of the given one)."""

import statistics

from benchmarks.lib.significance import ENOUGH, interval, markdown

METHODS = {
    "contributions": "`compress`",
    "singular values": "singular values over all modules",
    "convert_to_lora": "PEFT's `convert_to_lora`, by energy",
    "uniform": "leading directions, the same rank everywhere",
}
SIZES = ("1/16", "1/8", "1/4", "1/2")


def kept(row: dict, loss: float) -> float:
    """The share of the given adapter's gain that is left."""
    return (row["without"] - loss) / (row["without"] - row["given"])


def kept_at(rows: list[dict], method: str, size: str) -> dict[int, float]:
    """{seed: the share that is left} of a method's cuts to a size."""
    return {
        row["seed"]: kept(row, cut["loss"])
        for row in rows for cut in row["cuts"]
        if (cut["method"], cut["size"]) == (method, size) and cut["loss"] is not None
    }  # fmt: skip


def cell(values: list[float]) -> str:
    """Mean, and Student's 95 % interval of three and more."""
    if not values:
        return "-"
    text = f"{100 * statistics.mean(values):.1f} %"
    if len(values) < ENOUGH:
        return text
    low, high = interval(values)
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def by_size(rows: list[dict], task: str) -> str:
    """The share kept, a line a method and a column a size; then how far `compress` is ahead of each, by seed."""
    own = [row for row in rows if (row["kind"], row["task"]) == ("cuts", task)]
    if not own:
        return ""
    found = {(method, size): kept_at(own, method, size) for method in METHODS for size in SIZES}
    body = [[name, *(cell(list(found[m, s].values())) for s in SIZES)] for m, name in METHODS.items()]
    ahead = []
    for method in list(METHODS)[1:]:
        cells = []
        for size in SIZES:
            ours, theirs = found["contributions", size], found[method, size]
            cells.append(cell([ours[seed] - theirs[seed] for seed in ours if seed in theirs]))
        ahead.append([f"`compress` less: {METHODS[method]}", *cells])
    return markdown([f"{task}, {len(own)} seeds: kept of the gain at", *SIZES], body + ahead)


def found(rows: list[dict]) -> str:
    """The size at which the held-out loss is within 1 %, what the test loss says, and what healing does."""
    body = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if (row["kind"], row["task"]) == ("cuts", task)]
        scratch = {(r["seed"], r["size"]): r["loss"] for r in rows if (r["kind"], r["task"]) == ("scratch", task)}
        for size in ("found", "1/8", "1/4") if own else ():
            cut = [_cut(row, size) for row in own]
            healed = [next((h for h in row["healed"] if h["size"] == size), None) for row in own]
            from_scratch = [kept(row, scratch[row["seed"], size]) for row in own if (row["seed"], size) in scratch]
            growth = [(c["loss"] - row["given"]) / row["given"] for row, c in zip(own, cut)]
            part = [c["parameters"] / row["parameters"] for row, c in zip(own, cut)]
            body.append([
                task, size, f"{100 * statistics.mean(part):.0f} % ({100 * min(part):.0f} to {100 * max(part):.0f})",
                f"{100 * statistics.mean(growth):+.1f} %", cell([kept(row, c["loss"]) for row, c in zip(own, cut)]),
                cell([kept(row, h["loss"]) for row, h in zip(own, healed) if h]), cell(from_scratch),
            ])  # fmt: skip
    heads = ["task", "size", "parameters", "test loss", "kept of the gain", "healed", "from scratch, uniform"]
    return markdown(heads, body) if body else ""


def _cut(row: dict, size: str) -> dict:
    if size == "found":
        return row["found"]
    return next(cut for cut in row["cuts"] if (cut["method"], cut["size"]) == ("contributions", size))


def report(rows: list[dict]) -> str:
    """All tables."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    return "\n\n".join(filter(None, [*(by_size(rows, task) for task in tasks), found(rows)])) + "\n"
