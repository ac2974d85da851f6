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
    allocation_sizes,
    claims,
    committed,
    comparison,
    compress_report,
    cost_tables,
    hero,
    patterns,
    short,
    trials,
)
from benchmarks.lib.committed import command_of, join, not_measured, provenance, rows_of  # noqa: E402
from benchmarks.lib.paper_tables import TABLES, paper_table, table5  # noqa: E402

COMPRESS = (
    "python benchmarks/compress.py --data $DATA --models gpt2=GPT2 minilm=MODEL smollm2=SMOLLM2 --bf16 --tasks e2e "
    "jnlpba smollm2"
)
RELIABILITY = "python benchmarks/reliability.py"
PAGES = ("benchmarks/results/paper.md", "RESULTS.md", "README.md")
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
        *(f"![Ranks of {', '.join(tasks)}](pictures/{name}.svg)" for name, tasks in shown), patterns.describe(found)
    )


def own_block(name: str, table, command: str, output: str = "") -> str:
    """The rows of a benchmark that has no plan."""
    rows, command = rows_of(name), f"{command} --output benchmarks/results/{output or name}"
    return join(table(rows), provenance(rows, command)) if rows else not_measured(command)


ALLOCATION = (
    "python benchmarks/allocation.py --data $DATA --models gpt2=GPT2 minilm=MODEL smollm2=SMOLLM2 --bf16 "
    "--output benchmarks/results/allocation.jsonl"
)


def allocation_block(table) -> str:
    """One table of the comparison at equal size and at the size found."""
    return table(rows_of("allocation")) or not_measured(ALLOCATION)


def picture_of(name: str, what: str) -> str:
    """A picture of the comparison, once there are rows."""
    return f"![{what}]({PICTURES}/{name}.svg)" if rows_of("allocation") else ""


def hero_block() -> str:
    """The README's picture, for light and for dark pages."""
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{PICTURES}/hero_dark.svg">'
    what = "Held-out loss against adapter parameters, and the ranks that were found"
    shown = f'<picture>{source}<img alt="{what}" src="{PICTURES}/hero_light.svg"></picture>'
    return shown if searched_for_hero() else ""


def searched_for_hero() -> bool:
    rows = rows_of("allocation")
    return bool(allocation_sizes.search_of(hero.TASK, hero.SEED, rows))


def allocation_source() -> str:
    """Where the rows of the comparison come from."""
    rows = rows_of("allocation")
    return provenance(rows, ALLOCATION) if rows else not_measured(ALLOCATION)


def left_of_allocation() -> str:
    """How many trials of the comparison are missing of those that are due."""
    rows = rows_of("allocation")
    left = sum(trial["task"] in allocation_plan.ON_CPU for trial in allocation_plan.left(rows))
    what = f"Not measured yet, {left} trials of the comparison and those that follow"
    return f"{not_measured(ALLOCATION, what)}" if left else ""


def open_block() -> str:
    """One list of what is not measured."""
    return join(left_of_allocation(), short.open_runs(written(_content(PAGES[0]) or "")))


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
    """Promises and how often they held, and what did not."""
    latest = {row["check"]: row for row in rows}
    public = lambda fault: re.sub(r"(?:/[^/\s'\"]+)*?/tmp[^/\s'\"]+", "FOLDER", " ".join(fault.split()))
    faults = [f"- {name}: {public(fault)}" for name, row in latest.items() for fault in row["faults"]]
    return join(short.reliability_short(rows), join("What did not hold:", "\n".join(faults)) if faults else "")


ALLOCATED = {
    "same size": allocation_report.same_size,
    "found size": allocation_report.found_size,
    "others": allocation_report.others,
    "front": claims.front,
    "passes": lambda rows: short.passes(rows, rows_of("searches")),
}
PAPER = ("full", "adapter", "uniform", "adalora", "eva", "autolora paper")
BLOCKS = {  # by the names in the pages
    "summary": lambda: claims.summary(rows_of("allocation"), rows_of("compress")),
    "forest": partial(picture_of, "forest", "Differences to uniform LoRA, with their intervals"),
    "curves": partial(picture_of, "allocation", "Held-out loss against adapter parameters"),
    "hero": hero_block,
    "allocation source": allocation_source,
    **{name: partial(allocation_block, table) for name, table in ALLOCATED.items()},
    **{f"table {number}": partial(paper_table, number) for number in TABLES},
    "table 5": table5,
    "figure 3": ranks_block,
    "planted short": partial(own_block, "planted/planted", short.planted_short, planted.COMMAND, "planted"),
    "compress short": partial(own_block, "compress", claims.compressed_table, COMPRESS, "compress.jsonl"),
    "paper short": lambda: short.paper_short(trials.reported(rows_of("core", "adapters")), PAPER),
    "steps": lambda: short.steps(rows_of("cost")),
    "cost": cost_block,
    "reliability": partial(own_block, "reliability", reliability_tables, RELIABILITY, "reliability.jsonl"),
    "not measured": open_block,
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
        figures["forest"] = partial(claims.forest, rows)
    if searched_for_hero():
        figures |= {f"hero_{'dark' if dark else 'light'}": partial(hero.picture, rows, dark) for dark in (0, 1)}
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
