"""The table of a comparison: means with intervals, paired differences to the reference, sizes and costs."""

import statistics

from benchmarks.lib import trials
from benchmarks.lib.significance import difference_cells, markdown, mean_cell


def report(rows: list[dict], plan: dict) -> str:
    """The table with what its columns mean."""
    text = (
        "Score on the dev split in points: mean (95 % interval over seeds, number of seeds). Differences are paired "
        "by task and seed and pooled; `detectable` is the true difference that a test of so many pairs would find "
        f"four times in five. Passes: median ratio over the pairs. {timed_on(trials.reported(rows))}\n\n"
    )
    return text + markdown(*table(rows, plan)) + "\n"


def timed_together(rows: list[dict]) -> set[tuple]:
    """The (task, seed) at which every method has seconds of one machine; methods without any are left aside. Seconds
    of differently busy machines do not compare, nor do medians over different tasks."""
    places: dict[str, set] = {}
    for row in rows:
        if row["wall_seconds"]:  # those that were measured wrongly are null
            places.setdefault(row["method"], set()).add((row["task"], row["seed"], row.get("machine")))
    return {(task, seed) for task, seed, _ in set.intersection(*places.values())} if places else set()


def timed_on(rows: list[dict]) -> str:
    """What the columns of time stand on."""
    if not (places := timed_together(rows)):
        return "No run has seconds of every method on one machine."
    tasks = ", ".join(sorted({task for task, _ in places}))
    return f"Time: median ratio over the {len(places)} runs of {tasks} of which every method has seconds."


def table(rows: list[dict], plan: dict) -> tuple[list[str], list[list[str]]]:
    """Header, and a line per method of the plan and of the rows, of dashes where no row is. Costs are ratios to LoRA
    (`lora`, else the reference) and to AdaLoRA of the same table, as medians: of passes over the pairs (task, seed)
    that both have, of seconds over those that all have (`timed_together`)."""
    rows = trials.reported(rows)  # a plan may have given a trial other settings since, such as another rate
    by = {(r["method"], r["task"], r["seed"]): r for r in rows}
    together = timed_together(rows)
    labels = list(dict.fromkeys([*plan["methods"], *(row["method"] for row in rows)]))
    base = "lora" if any(r["method"] == "lora" for r in rows) else plan["reference"]
    header = ["method", *plan["tasks"], f"difference to {plan['reference']}", "detectable"]
    header += ["adapter", "head", f"time / {base}", "time / adalora", f"passes / {base}", "peak MiB"]
    body = []
    for label in labels:
        own = sorted((r for r in rows if r["method"] == label), key=lambda r: (r["task"], r["seed"]))
        if not own:
            body.append([label] + ["-"] * (len(header) - 1))
            continue
        cells = [mean_cell([r["score"] for r in own if r["task"] == task]) for task in plan["tasks"]]
        pairs = [r["score"] - by[k]["score"] for r in own if (k := (plan["reference"], r["task"], r["seed"])) in by]
        cells += ["-", "-"] if label == plan["reference"] else difference_cells(pairs)
        cells += [sizes_cell(own, "adapter_params"), sizes_cell(own, "head_params")]
        timed = [r for r in own if (r["task"], r["seed"]) in together]
        cells += [_ratio(timed, by, base, "wall_seconds"), _ratio(timed, by, "adalora", "wall_seconds")]
        cells += [_ratio(own, by, base, "passes"), memory_cell(own)]
        body.append([label, *cells])
    return header, body


def sizes_cell(own: list[dict], name: str) -> str:
    sizes = sorted({r[name] for r in own})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}-{sizes[-1]:,}"


def memory_cell(own: list[dict]) -> str:
    """Median peaks; apart for CPUs, where it is the process, and GPUs, where it is what the allocator gave out."""
    found = {}
    for row in own:
        found.setdefault("CPU" if row.get("machine", "CPU").startswith("CPU") else "GPU", []).append(row)
    peaks = {kind: f"{statistics.median(r['peak_memory_mb'] for r in rows):,.0f}" for kind, rows in found.items()}
    return ", ".join(f"{peak} {kind}" if len(peaks) > 1 else peak for kind, peak in sorted(peaks.items()))


def _ratio(own: list[dict], by: dict, base: str, name: str) -> str:
    pairs = [(r[name], by[k][name]) for r in own if (k := (base, r["task"], r["seed"])) in by]
    ratios = [value / unit for value, unit in pairs if value and unit]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"
