"""Write the tables of RESULTS.md and of the README from the committed rows, so that no number there can drift.

    python benchmarks/report.py            # both pages' tables, tables and pictures in benchmarks/results
    python benchmarks/report.py --check    # exit status 1 if they are not what the rows give

Nothing here measures. In the pages, what stands between `<!-- report.py: NAME -->` and `<!-- end -->` is written here,
everything else by people. Rows are those of `benchmarks/results`, the paper's numbers those of
`benchmarks/paper/numbers.yaml`, and most tables are made by the benchmark that made the rows. What no row tells is a
dash, and a line below the table has the command that would fill it.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer.drawing import style  # noqa: E402
from benchmarks import pictures, planted  # noqa: E402
from benchmarks.lib import (  # noqa: E402
    allocation_plan,
    allocation_report,
    committed,
    comparison,
    compress_report,
    cost_tables,
    patterns,
    trials,
)
from benchmarks.lib.committed import command_of, join, not_measured, plan_block, provenance, rows_of  # noqa: E402
from benchmarks.lib.paper_tables import TABLES, at_scale, paper_table, table5  # noqa: E402
from benchmarks.lib.significance import markdown  # noqa: E402

COMPRESS = (
    "python benchmarks/compress.py --data $DATA --models gpt2=GPT2 minilm=MODEL smollm2=SMOLLM2 --bf16 --tasks e2e "
    "jnlpba smollm2"
)
RELIABILITY = "python benchmarks/reliability.py"
PAGES = ("RESULTS.md", "README.md")
PICTURES = "benchmarks/results/pictures"
PLACES = {
    **{"$DATA/cost.jsonl": "benchmarks/results/cost.jsonl", "$DATA/train": "$DATA/{}/train"},
    **{"$DATA/validation": "$DATA/{}/validation", "--model model": "--model MODEL"},
    **{"--model_name_or_path model": "--model_name_or_path MODEL"},
}
MARKED = re.compile(r"(<!-- report\.py: ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def searched_ranks() -> dict:
    """Rank patterns of AutoLoRA's default by task, of every file that has them."""
    return patterns.collect(rows_of(*committed.COMPARED))


def ranks_block() -> str:
    """Figure 3, and where the ranks are."""
    if not (found := searched_ranks()):
        return not_measured(command_of("plans/core", "core"))
    shown = patterns.figure3(found).items()
    return join(
        *(f"![Ranks of {', '.join(tasks)}]({PICTURES}/{name}.svg)" for name, tasks in shown), patterns.describe(found)
    )


def own_block(name: str, table, command: str, output: str = "") -> str:
    """The rows of a benchmark that has no plan."""
    rows, command = rows_of(name), f"{command} --output benchmarks/results/{output or name}"
    return join(table(rows), provenance(rows, command)) if rows else not_measured(command)


def planted_table(rows: list[dict]) -> str:
    """By problem: how many modules and totals come out exactly, of the default rule and of the paper's count."""
    lines = {(line["problem"], line["rule"]): line for line in planted.summarize(rows)}
    body = []
    for name in sorted({line["problem"] for line in lines.values()}, key=list(planted.PROBLEMS).index):
        cells = [name]
        for rule in ("contributions", "threshold"):
            line = lines[name, rule]
            cells += [f"{line['exact']:.1%}", f"{line['totals']} of {line['searches']}"]
        levels = lines[name, "contributions"]["levels"].items()
        body.append([*cells, ", ".join(f"{level}: {mean:.2f}" for level, mean in levels)])
    header = [
        "problem",
        "modules exact",
        "totals exact",
        "the paper's modules",
        "totals",
        "mean rank found at true rank",
    ]
    return markdown(header, body)


ALLOCATION = (
    "python benchmarks/allocation.py --data $DATA --models gpt2=GPT2 minilm=MODEL smollm2=SMOLLM2 --bf16 "
    "--output benchmarks/results/allocation.jsonl"
)


def allocation_block(table) -> str:
    """One table of the comparison at equal size and at the size found."""
    return table(rows_of("allocation")) or not_measured(ALLOCATION)


def curves() -> str:
    """Its picture, once there are rows."""
    return f"![Held-out loss against adapter parameters]({PICTURES}/allocation.svg)" if rows_of("allocation") else ""


def allocated() -> str:
    """All of its tables, its picture, where the rows come from, and how many are missing of those that are due."""
    if not (rows := rows_of("allocation")):
        return not_measured(ALLOCATION)
    left = sum(trial["task"] in allocation_plan.ON_CPU for trial in allocation_plan.left(rows))
    missing = not_measured(ALLOCATION, f"not measured yet, {left} trials and those that follow") if left else ""
    return join(curves(), allocation_report.report(rows), provenance(rows, ALLOCATION), missing)


def cost_block() -> str:
    """A table per measurement: rows of one machine and the same settings."""
    rows, texts, groups = rows_of("cost"), [], {}
    for row in rows:
        groups.setdefault((row["machine"], json.dumps(row["settings"])), []).append(row)
    for own in groups.values():
        steps = own[0]["task"] == "steps"
        most = [row for row in own if steps or row["train_rows"] == max(r["train_rows"] for r in own)]
        commands = [row["command"] for row in {row["method"]: row for row in most}.values()]
        for mine, public in PLACES.items():  # rows have files as the machine of their run had them
            commands = [command.replace(mine, public.format(own[0]["task"])) for command in commands]
        table = cost_tables.steps_table(most) if steps else cost_tables.total_table(most)
        texts += [table, provenance(most, *commands)]
        rounds = sorted({row.get("rounds", row["settings"]["rounds"]) for row in most})  # fewer where interrupted
        span = " to ".join(map(str, sorted({rounds[0], rounds[-1]})))
        texts[-1] += f" Medians over {span} interleaved rounds; ratios are of medians."
        if len(most) < len(own):
            texts += [cost_tables.GROWTH, cost_tables.growth_table(own)]
    command = "python benchmarks/cost.py --table steps --shape roberta-base --device cuda --dtype bf16 --attn sdpa"
    missing = not_measured(f"{command} --output benchmarks/results/cost.jsonl", "On a GPU not measured yet")
    return join(*texts, "" if any(row["settings"]["device"] == "cuda" for row in rows) else missing)


def reliability_tables(rows: list[dict]) -> str:
    from benchmarks import reliability  # here: it takes the Hub away from what comes after it

    latest = {row["check"]: row for row in rows}
    public = lambda fault: re.sub(r"(?:/[^/\s'\"]+)*?/tmp[^/\s'\"]+", "FOLDER", " ".join(fault.split()))
    faults = [f"- {name}: {public(fault)}" for name, row in latest.items() for fault in row["faults"]]
    failed = join("What did not hold:", "\n".join(faults)) if faults else ""
    return join(reliability.report(rows), failed)


BLOCKS = {  # by the names in the pages
    "same size": partial(allocation_block, allocation_report.same_size),
    "found size": partial(allocation_block, allocation_report.found_size),
    "curves": curves,
    "allocation": allocated,
    **{f"table {number}": partial(paper_table, number) for number in TABLES},
    "table 5": table5,
    "figure 2": partial(at_scale, "paper/table1_roberta_large", "figure2"),
    "figure 3": ranks_block,
    "extras": partial(plan_block, "extras"),
    "planted ranks": partial(own_block, "planted/planted", planted_table, planted.COMMAND, "planted"),
    "compress": partial(own_block, "compress", compress_report.report, COMPRESS, "compress.jsonl"),
    "cost": cost_block,
    "reliability": partial(own_block, "reliability", reliability_tables, RELIABILITY, "reliability.jsonl"),
}


def written(text: str) -> str:
    """A page with what the rows give between its marks."""
    return MARKED.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def texts() -> dict[str, str]:
    """{path: text} of all that is written here: the pages, and the tables that benchmarks write beside their rows, as
    far as there are pages and rows."""
    pages = {name: written(text) for name in PAGES if (text := _content(name))}
    of_plan = lambda name: lambda rows: comparison.report(rows, committed.plan_of(f"plans/{name}"))
    made = {"methods": of_plan("methods"), "allocation": allocation_report.report}
    made |= {"compress": compress_report.report}
    found = {f"benchmarks/results/{name}.md": write(rows) for name, write in made.items() if (rows := rows_of(name))}
    return pages | found


def draw(folder: str) -> list[str]:
    """Write the pictures; their paths."""
    figures = {name: partial(pictures.heatmaps, tasks) for name, tasks in patterns.figure3(searched_ranks()).items()}
    if rows := rows_of("allocation"):
        figures["allocation"] = partial(allocation_report.picture, rows)
    with style():
        saved = [pictures.save(figure(), os.path.join(folder, name)) for name, figure in figures.items()]
    return [path for paths in saved for path in paths]


def _content(name: str) -> str | None:
    path = os.path.join(trials.ROOT, name)
    return Path(path).read_text(encoding="utf-8") if os.path.exists(path) else None


def stale() -> list[str]:
    """The files that are not what the rows give. Of pictures the texts count, whatever the version of matplotlib."""
    said = lambda path: re.findall(r"<text[^>]*>(.*?)</text>", Path(path).read_text(encoding="utf-8"))
    found = [name for name, text in texts().items() if _content(name) != text]
    with tempfile.TemporaryDirectory() as folder:
        for path in draw(folder):
            kept = f"{PICTURES}/{os.path.basename(path)}"
            there = os.path.join(trials.ROOT, kept)
            same = os.path.exists(there) and (path.endswith("png") or said(path) == said(there))
            found += [] if same else [kept]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if something would change")
    options = parser.parse_args(argv)
    if options.check:
        for name in (old := stale()):
            print(f"{name} is not what the rows give. Type: python benchmarks/report.py", file=sys.stderr)
        return int(bool(old))
    draw(os.path.join(trials.ROOT, PICTURES))
    for name, text in texts().items():
        Path(trials.ROOT, name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
