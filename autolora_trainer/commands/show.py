"""`autolora show` and `autolora diff`: what is to be known of an adapter, and where two patterns differ."""

import os
import statistics
from collections import Counter
from contextlib import suppress

from autolora_trainer.files import parse_json, read_bounded
from autolora_trainer.ranks.adapter_config import CONFIG_FILE
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.report.curve import format_curve
from autolora_trainer.report.tables import bare_name, format_cost, format_table, is_score

MOST_NEIGHBOUR = 5_000_000  # bytes of a file of results
MOST_SCORES = 100  # that are shown; entities have three a type


def show(source: str) -> str:
    """What there is to know of any LoRA adapter, in a folder or on the Hub, and of a run of this package; of a
    `ranks.json` too. No model is loaded."""
    ranks, adapter = LearnedRanks.from_pretrained(source), _adapter(source)
    lines = [f"ranks of {ranks.base_model or 'a model without a name'}", format_rank_table(ranks.ranks)]
    if ranks.rank_rule:
        lines.append(f"rule {ranks.rank_rule}, {ranks.initial_rank} components per module at the start")
    results = neighbour(source, "all_results.json") or {}
    sizes = [results.get(name) for name in ("adapter_params", "head_params")]
    sizes = [size if type(size) is int and 0 <= size < 10**15 else None for size in sizes]
    if ranks.curve is not None:
        lines += ["", format_curve(ranks.curve, ranks.curve.size if sizes[0] is None else sizes[0])]
    if adapter is not None:
        lines += _described(adapter)
    with suppress(ValueError):  # a rank that vLLM cannot serve
        lines.append(f"a server needs --max-lora-rank {lora_rank_for_servers(ranks.ranks)}")
    if None not in sizes:
        lines.append("{:,} adapter parameters, {:,} in the head".format(*sizes))
    scores = {k: v for k, v in results.items() if k.startswith(("eval_", "predict_")) and isinstance(v, float)}
    scores = [
        f"{k[:80]} = {v:{'.4f' if abs(v) < 1e6 else '.4g'}}"
        for k, v in scores.items()
        if is_score(k) or bare_name(k) == "loss"
    ]
    if scores:
        more = f" and {len(scores) - MOST_SCORES} more" if len(scores) > MOST_SCORES else ""
        lines.append(", ".join(scores[:MOST_SCORES]) + more)
    cost = neighbour(source, "cost.json")
    if cost:
        lines += ["", format_cost(cost)]
    return "\n".join(lines)


def _adapter(source: str) -> AdapterFile | None:
    """The adapter of a folder or a repository; None of a file, and where there are ranks alone."""
    if os.path.isfile(source) or (os.path.isdir(source) and not os.path.exists(os.path.join(source, CONFIG_FILE))):
        return None
    with suppress(ValueError):  # an adapter of another form, or a repository of ranks alone
        return AdapterFile.from_pretrained(source)


def _described(adapter: AdapterFile) -> list[str]:
    """Size, dtype and scale of an adapter, and what its scales mean for a server."""
    dora, rslora = (adapter.config.get(name) for name in ("use_dora", "use_rslora"))
    kind = "DoRA" if dora else "rsLoRA" if rslora else "LoRA"
    scales = sorted(set(adapter.scales.values()))
    beside = f", {adapter.other_parameters:,} beside them" if adapter.other_parameters else ""
    dtypes = " and ".join(adapter.dtypes)
    lines = [
        f"{kind}: {adapter.parameters:,} parameters{beside}, {adapter.megabytes:.2f} MB in {dtypes}",
        f"largest rank {max(adapter.ranks.values())}, scale {scales[0]:.4g}"
        + f" to {scales[-1]:.4g}" * (len(scales) > 1),
    ]
    if max(scales) > 1.001 * min(scales):
        lines.append("the scales differ: a server that reads one, lora_alpha / r, computes something else; merge it")
    return lines


def neighbour(source: str, name: str) -> dict | None:
    """A JSON file beside the ranks of a folder, where there is one."""
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    path = os.path.join(folder, name)
    if not os.path.isfile(path) or not os.path.exists(source):
        return None
    try:
        content = parse_json(read_bounded(path, MOST_NEIGHBOUR))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Remove it, and the ranks are shown without it.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {content!r:.80}. Remove it, or run again.")
    return content


def diff(first: LearnedRanks, second: LearnedRanks) -> str:
    """Where two patterns differ: a line a module, then how far they agree."""
    left, right = first.ranks, second.ranks
    pairs = [(name, left.get(name, "-"), right.get(name, "-")) for name in dict.fromkeys([*left, *right])]
    shared = [(x, y) for _, x, y in pairs if "-" not in (x, y)]
    rows = [[name, str(x), str(y), "-" if "-" in (x, y) else f"{y - x:+d}"] for name, x, y in pairs if x != y]
    lines = [format_table(["module", "first", "second", "change"], rows)] if rows else []
    lines.append(f"{len(rows)} of {len(pairs)} modules differ; total rank {first.total_rank} and {second.total_rank}")
    xs, ys = zip(*shared) if shared else ((), ())
    if len(set(xs)) > 1 and len(set(ys)) > 1:
        spearman = statistics.correlation(_places(xs), _places(ys))  # scipy.stats takes a second to load
        lines.append(f"Spearman correlation over {len(shared)} shared modules: {spearman:.2f}")
    return "\n".join(lines)


def _places(values) -> list[float]:
    """The place of each value in their order; equal ones share the mean of theirs.

    Example:
        >>> _places([5, 3, 5])
        [2.5, 1.0, 2.5]
    """
    places, before = {}, 0
    for value, count in sorted(Counter(values).items()):
        places[value], before = before + (count + 1) / 2, before + count
    return [places[value] for value in values]
