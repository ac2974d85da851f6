"""Write RESULTS.md, and the README's tables, from the committed rows, so that no number there can drift.

    python benchmarks/report.py            # RESULTS.md, the README's tables, tables and pictures in benchmarks/results
    python benchmarks/report.py --check    # exit status 1 if they are not what the rows give

Nothing here measures. Rows are those of `benchmarks/results`, the paper's numbers those of
`benchmarks/paper/numbers.yaml`, and most tables are made by the benchmark that made the rows. What no row tells is a
dash, and a line below the table has the command that would fill it.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

import matplotlib
from scipy.stats import false_discovery_control

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import measured  # noqa: E402
from benchmarks import compare, cost, front, hypergradient, patterns, pictures, planted, ranks, trials  # noqa: E402
from benchmarks.committed import (  # noqa: E402
    COMPARED,
    command_of,
    join,
    not_measured,
    plan_of,
    progress,
    provenance,
    reported,
    rows_of,
    yaml_of,
)
from benchmarks.paper_tables import at_scale, largest_runs, paper_table, table5, wall_ratios  # noqa: E402
from benchmarks.significance import (  # noqa: E402
    ENOUGH,
    cross_agreement,
    difference_cells,
    interval,
    markdown,
    mean_cell,
    middle_cells,
    p_value,
    paired_differences,
    rank_agreement,
)

PICTURES = "benchmarks/results/pictures"


# ---- what holds


def verdict(values: Sequence[float], who: str = "AutoLoRA") -> str:
    """What an interval of a difference lets one say, and no more."""
    if len(values) < ENOUGH:
        return "too few pairs to say" if len(values) else "not measured yet"
    low, high = interval(values)
    if low <= 0 <= high:
        return "no difference is shown"
    return f"{who} is ahead" if low > 0 else f"{who} is behind"


def comparisons() -> dict[str, Sequence[float]]:
    """{AutoLoRA less what: differences paired by task and seed}, of the tables and of the front."""
    found = {}
    for name, place in COMPARED.items():
        own = reported(rows_of(name))
        rivals = [label for label in plan_of(f"plans/{name}")["methods"] if label != "autolora"]
        values = {f"{label} ({place})": paired_differences(own, "autolora", label, None) for label in rivals}
        found |= {label: pairs for label, pairs in values.items() if name == "core" or len(pairs)}
    rows, plan = rows_of("front"), yaml_of("plans/front")
    wide = plan["svd_cut"]["from"]
    groups = [group for group in plan["groups"] if "autolora" in group["methods"]]
    for budget in sorted({budget for group in groups for budget in group["budgets"]}):
        there = [label for group in plan["groups"] if budget in group["budgets"] for label in group["methods"]]
        for label in dict.fromkeys(["uniform", "random", "svd_cut", *there]):
            if label != "autolora":
                name = f"{front.LABELS.get(label, label)}, both of rank {budget} (front)"
                found[name] = paired_differences(rows, "autolora", label, budget)
        name = f"uniform of rank {wide}, AutoLoRA of rank {budget} (front)"
        found[name] = paired_differences(rows, "autolora", "uniform", budget, wide)
    return found


def gain(name: str, values: Sequence[float], who: str = "AutoLoRA") -> str:
    """One difference in a sentence; nothing for too few pairs."""
    return f"{name}: {difference_cells(values)[0]} points, so {verdict(values, who)}." if len(values) >= ENOUGH else ""


def setting() -> str:
    """What the comparison of the first line was made on."""
    rows = reported(rows_of("core"))
    if not rows:
        return "**Too few pairs are measured to say whether AutoLoRA beats uniform LoRA of the same size.**"
    plan = plan_of("plans/core")
    tasks = [task for task in plan["tasks"] if task in {row["task"] for row in rows}]
    missing = "" if len(tasks) == len(plan["tasks"]) else " (the others have no rows yet)"
    count = f"{plan['settings']['max_train_samples']:,}"
    by = {(row["method"], row["task"], row["seed"]): row["passes"] for row in rows}
    pairs = [(passes, by.get(("uniform", *place))) for (method, *place), passes in by.items() if method == "autolora"]
    ratios = [own / other for own, other in pairs if other]
    passes = f" AutoLoRA takes {statistics.median(ratios or [0]):.2f} times the passes of uniform LoRA."
    return (
        f"The core table: MiniLM (6 layers, 22 million parameters) on {count} training rows each of {', '.join(tasks)}"
        f"{missing}; every method at the learning rate that was best for it on held-out training rows."
        + (passes if ratios else "")
    )


def what_is_it(found: dict[str, Sequence[float]]) -> list[str]:
    """Where the gain comes from: the passes, the ranks, or the weights that the search leaves."""
    rows = rows_of("front")
    same_passes = {name: v for name, v in found.items() if name.startswith(f"{front.LABELS['uniform for as long']},")}
    lines = [gain(f"AutoLoRA less {name}", values) for name, values in same_passes.items()]
    for label in ("autolora from scratch", "autolora, uniform ranks"):
        for budget in sorted({row["budget"] for row in rows if row["method"] == label}):
            values = paired_differences(rows, label, "uniform", budget)
            lines.append(gain(f"{front.LABELS[label]}, less uniform, both of rank {budget} (front)", values, "it"))
    return lines


def counted(found: dict[str, Sequence[float]]) -> str:
    """How many of the comparisons with other methods show something, also when their number is allowed for."""
    others = {name: values for name, values in found.items() if not re.match(r"autolora|AutoLoRA,", name)}
    others = {name: values for name, values in others.items() if len(values) >= ENOUGH and name != PRIMARY}
    if not others:
        return ""
    adjusted = false_discovery_control([p_value(values) for values in others.values()])
    shown = {}
    for values, p in zip(others.values(), adjusted):
        word = verdict(values).removeprefix("AutoLoRA is ")
        shown.setdefault(word, []).append(p <= 0.05)
    ahead, behind = (shown.get(word, []) for word in ("ahead", "behind"))
    return (
        f"Of the other {len(others)} comparisons with other methods below, each taken by itself, AutoLoRA is ahead in "
        f"{len(ahead)} and behind in {len(behind)}; allowing for their number (Benjamini and Hochberg, 5 %), in "
        f"{sum(ahead)} and {sum(behind)}."
    )


PRIMARY = "uniform (core table)"  # the comparison that the plan was made for; all others explore
TERMS = (
    "In points, paired by task and seed, with Student's 95 % interval of the mean over the pairs; ahead or behind "
    "where it leaves out zero. A mean over tasks leans on those where a run either learns or stays at chance (STS-B, "
    "CoLA), hence the median and the pairs in which AutoLoRA is ahead. Smallest detectable: the true difference that "
    "a test of so many pairs finds four times in five. All seeds share the training rows and the rows they are scored "
    "on: intervals are of initialisation, order and dropout, not of the data. *Front*: the runs of Score against "
    "parameters, whose tasks also served to choose `--scaling` and `--retrain_init`. *svd*: rank 8 trained, then cut "
    "by SVD to the size. *Search counted*: AutoLoRA's retrain is shorter by the search."
)


def what_holds() -> str:
    found = comparisons()
    equal = {name: values for name, values in found.items() if re.match(r"uniform( \(|, both)", name)}
    said = [gain(f"AutoLoRA less {PRIMARY}", equal.pop(PRIMARY)), *what_is_it(found)]
    said += [gain(f"AutoLoRA less {name}", values) for name, values in equal.items()]
    said += [counted(found), cut_sentence(), planted_sentence(), agreement_sentence(), cost_sentence()]
    body = []
    for name, values in found.items():
        mean, detectable = difference_cells(values)
        body.append([name, mean, *middle_cells(values), detectable, verdict(values)])
    table = markdown(["AutoLoRA less", "mean", "median", "ahead in", "smallest detectable", "so"], body)
    names = [name for name in COMPARED if reported(rows_of(name))]
    commands = [command_of(f"plans/{name}", name) for name in names] + [command_of("plans/front", "front", "front")]
    rows = [row for name in names for row in reported(rows_of(name))]
    origin = provenance(rows + rows_of("front"), *commands)
    return join(setting(), "\n".join(f"- {line}" for line in said if line), table, TERMS, origin)


def by_task() -> str:
    """The core table's differences one task at a time: pooled over tasks, the one that scatters most decides."""
    rows, plan = reported(rows_of("core")), plan_of("plans/core")
    if not rows:
        return ""
    body = []
    for label in plan["methods"]:
        if label != "autolora":
            own = [[row for row in rows if row["task"] == task] for task in plan["tasks"]]
            pairs = [paired_differences(task_rows, "autolora", label, None) for task_rows in own]
            body.append([label, *(difference_cells(values)[0] for values in pairs)])
    return join("AutoLoRA less each of them, by task:", markdown(["AutoLoRA less", *plan["tasks"]], body))


def planted_sentence() -> str:
    found = [line for line in planted.summarize(rows_of("planted/planted")) if line["p"] is None]
    exact = {rule: [line["exact"] for line in found if line["rule"] == rule] for rule in ("default", "threshold")}
    if not found:
        return ""
    own, paper = ({f"{100 * value:.0f} %" for value in (min(values), max(values))} for values in exact.values())
    own, paper = (" to ".join(sorted(ends, key=lambda end: int(end[:-2]))) for ends in (own, paper))
    return (
        f"Of planted ranks the default finds {own} exactly (by problem), the paper's count {paper}; where nothing was "
        "planted it answers the same rank everywhere, not zero."
    )


def cut_sentence() -> str:
    rows, cut = rows_of("front"), yaml_of("plans/front")["svd_cut"]
    found = {b: paired_differences(rows, "svd_cut", "uniform", b, cut["from"]) for b in cut["budgets"]}
    texts = [
        f"to {budget}: {difference_cells(values)[0]}" for budget, values in found.items() if len(values) >= ENOUGH
    ]
    return f"Uniform rank {cut['from']} cut by SVD after training, less uncut: {'; '.join(texts)}." if texts else ""


def agreement_sentence() -> str:
    texts, rows = [], rows_of("ranks")
    for task, runs in patterns.of_searches(rows).items():
        noise = patterns.of_searches(rows, shuffled=True).get(task)
        if len(runs) > 1 and noise:
            real = list(runs.values())
            own, other = rank_agreement(real), cross_agreement(real, list(noise.values()))
            texts.append(f"{task} {own:.2f} (with shuffled labels {other:.2f})")
    meaning = "where shuffled labels give as much, they are the architecture's ranks and not the task's"
    return f"Ranks of two seeds agree (Spearman) on {', '.join(texts)}; {meaning}." if texts else ""


def cost_sentence() -> str:
    rows = largest_runs()
    ratios = wall_ratios(rows, "autolora")
    if not ratios:
        return ""
    size = f"{rows[0]['train_rows']:,} training rows of {rows[0]['task']}"
    return (
        f"A whole run on {size} takes {mean_cell(ratios)} times the wall time of AdaLoRA's (smaller data: see Cost)."
    )


# ---- the rest


def front_section() -> str:
    rows, command = rows_of("front"), command_of("plans/front", "front", "front")
    if not rows:
        return join("## Score against parameters", not_measured(command))
    wanted = len(list(front.planned(yaml_of("plans/front"))))
    got = sum(row["method"] != "svd_cut" for row in rows)
    left = not_measured(command, f"not measured yet, {wanted - got} of {wanted} runs") if got < wanted else ""
    picture = f"![Score against adapter parameters]({PICTURES}/front.svg)"
    tables = front.report(rows, yaml_of("plans/front"))
    return join("## Score against parameters", tables, picture, provenance(rows, command), left)


def figure3(found: dict) -> dict[str, dict]:
    """{picture: tasks in it}, at most four side by side, and only such as have the same layers in a block."""
    alike: dict[tuple, list] = {}
    for task, learned in patterns.first_runs(found).items():
        alike.setdefault(patterns.layers_of(task), []).append((task, learned))
    parts = [runs[start : start + 4] for runs in alike.values() for start in range(0, len(runs), 4)]
    return {f"figure3_{number}": dict(part) for number, part in enumerate(parts, start=1)}


def searched_ranks() -> dict:
    """Rank patterns of AutoLoRA's default by task, of every file that has them."""
    return patterns.collect(rows_of(*COMPARED), rows_of("ranks"))


def ranks_section() -> str:
    """Figure 3, and what the ranks say."""
    found = searched_ranks()
    if not found:
        return join("## Figure 3: the ranks", not_measured(command_of("plans/core", "core")))
    origin = "Ranks of AutoLoRA's default: of core, ner, e2e and webnlg.jsonl, else of the searches of ranks.jsonl."
    return join(
        "## Figure 3: the ranks, task by task",
        f"{origin} The first seed of each task; the paper has QQP and MNLI (RoBERTa-base) and E2E (GPT2-medium).",
        *(f"![Ranks of {', '.join(tasks)}]({PICTURES}/{name}.svg)" for name, tasks in figure3(found).items()),
        f"**What the ranks say.** {patterns.leanings(found)} Where different tasks share a pattern, and shuffled "
        "labels give it too (Agreement between seeds, and its controls), it is the architecture's.",
        patterns.describe(found),
    )


def planted_section() -> str:
    rows, command = rows_of("planted/planted"), "python benchmarks/planted.py --output benchmarks/results/planted"
    if not rows:
        return join("## Planted ranks", not_measured(command))
    body = []
    for line in sorted(planted.summarize(rows), key=lambda line: list(planted.PROBLEMS).index(line["problem"])):
        runs = [row for row in rows if row["problem"] == line["problem"]]
        if line["rule"] not in (runs[0]["default_rule"], "threshold"):
            continue
        exact = {
            rule: [100 * statistics.mean(a == b for a, b in zip(r["true"], r["learned"][rule])) for r in runs]
            for rule in (line["rule"], "threshold")
        }
        lead = [a - b for a, b in zip(*exact.values())] if len(exact) > 1 else []
        spearman = [planted.spearman(row["true"], row["learned"][line["rule"]]) for row in runs]
        body.append(
            [
                line["problem"],
                f"**{line['rule']}**" if line["rule"] != "threshold" else "threshold (paper)",
                mean_cell(spearman) if line["p"] is None else "-",
                mean_cell(exact[line["rule"]]),
                *difference_cells(lead),
                "-" if line["p"] is None else f"{line['p']:.3f}",
            ]
        )
    header = ["problem", "rule", "Spearman", "exact, %", "less the paper's", "smallest detectable", "p (control)"]
    text = (
        "Frozen models whose teachers differ by updates of known rank; the search at its defaults, rank 0 allowed. "
        "Intervals are over seeds. Controls have nothing to find: p is of `no module is preferred`."
    )
    return join("## Planted ranks", text, markdown(header, body), provenance(rows, command))


def agreement_section() -> str:
    rows = rows_of("ranks")
    command = "python benchmarks/ranks.py --data $DATA --model MODEL --output benchmarks/results/ranks"
    text = "Pairs of seeds are not independent, so there is no interval; every run is in the last table."
    shown = (text, ranks.report(rows), provenance(rows, command)) if rows else (not_measured(command),)
    return join("## Agreement between seeds, and its controls", *shown)


HYPERGRADIENT = {
    "accuracy": "--model MODEL --train_file $DATA/mrpc/train.jsonl --task_name mrpc --states 16 64 --dropout 0.1 "
    f"--accumulation 1 --max_seq_length 48 --output {hypergradient.RESULTS}",
    "ranks": f"--section ranks --steps 80 --seeds 1 2 3 4 5 --output {hypergradient.RESULTS}",
}


def hypergradient_section() -> str:
    texts = []
    for name, arguments in HYPERGRADIENT.items():
        rows = rows_of(f"hypergradient/{name}")
        commands = [row["command"] for row in rows] or [f"{hypergradient.COMMAND} {arguments}"]
        texts += [hypergradient.TABLES[name](rows), provenance(rows, *commands)] if rows else [not_measured(*commands)]
    text = (
        "One seed and two trained states for accuracy, five seeds for the ranks: there are no intervals here. The "
        "steps between are in fp32, the measured passes in bf16 where it says so."
    )
    return join("## Hypergradient", text, *texts)


def cost_section() -> str:
    """A table per measurement: rows of one machine and the same settings."""
    rows, texts, groups = rows_of("cost"), [], {}
    for row in rows:
        groups.setdefault((row["machine"], json.dumps(row["settings"])), []).append(row)
    for own in groups.values():
        steps = own[0]["task"] == "steps"
        most = [row for row in own if steps or row["train_rows"] == max(r["train_rows"] for r in own)]
        commands = [with_places(row) for row in {row["method"]: row for row in most}.values()]
        texts += [cost.steps_table(most) if steps else cost.total_table(most), provenance(most, *commands)]
        rounds = sorted({row.get("rounds", row["settings"]["rounds"]) for row in most})  # fewer where interrupted
        span = " to ".join(map(str, sorted({rounds[0], rounds[-1]})))
        texts[-1] += f" Medians over {span} interleaved rounds; ratios are of medians."
        if len(most) < len(own):
            texts += [cost.GROWTH, cost.growth_table(own)]
    command = "python benchmarks/cost.py --table steps --shape roberta-base --device cuda --dtype bf16 --attn sdpa"
    gpu = not any(row["settings"]["device"] == "cuda" for row in rows)
    missing = not_measured(f"{command} --output benchmarks/results/cost.jsonl", "On a GPU not measured yet")
    return join("## Cost", *texts, missing if gpu else "")


def with_places(row: dict) -> str:
    """The command of a row of cost.py with everybody's names: it has files as the machine of its run had them."""
    places = {
        "$DATA/cost.jsonl": "benchmarks/results/cost.jsonl",
        "$DATA/train": f"$DATA/{row['task']}/train",
        "$DATA/validation": f"$DATA/{row['task']}/validation",
        "--model model": "--model MODEL",
        "--model_name_or_path model": "--model_name_or_path MODEL",
    }
    command = row["command"]
    for own, public in places.items():
        command = command.replace(own, public)
    return command


def reliability_section() -> str:
    rows = rows_of("reliability")
    command = "python benchmarks/reliability.py --output benchmarks/results/reliability.jsonl"
    if not rows:
        return join("## Reliability", not_measured(command))
    from benchmarks import reliability  # here: it takes the Hub away from what comes after it

    latest = {row["check"]: row for row in rows}
    faults = [f"- {name}: {_public(fault)}" for name, row in latest.items() for fault in row["faults"]]
    failed = join("What did not hold:", "\n".join(faults)) if faults else ""
    return join("## Reliability", reliability.report(rows), failed, provenance(rows, command))


def _public(fault: str) -> str:
    """A fault in one line, without the temporary folder of its run."""
    return re.sub(r"/tmp/[^/\s'\"]+", "FOLDER", " ".join(fault.split()))


def plan_section(title: str, text: str, name: str) -> str:
    """A section of one plan and its rows: the table, where it comes from, and what is missing."""
    rows, plan, command = reported(rows_of(name)), plan_of(f"plans/{name}"), command_of(f"plans/{name}", name)
    shown = [compare.report(rows, plan), provenance(rows, command)] if rows else []
    return join(f"## {title}", text, *shown, progress(rows, plan, command))


def extras_section() -> str:
    """What does not count: scored on too few rows, or on others than the official ones."""
    text = (
        "Not in the core table: RTE's development split has 277 rows, too few to tell methods apart, and of QQP there "
        "is a sample alone, 750 of whose training rows stand in for the development split."
    )
    return plan_section("Extras: RTE and a sample of QQP", text, "extras")


def llama_section() -> str:
    rows = rows_of("llama")
    command = (
        "python benchmarks/llama.py --text $DATA/TEXT --other $DATA/OTHER --output benchmarks/results/llama.jsonl"
    )
    text = (
        "A Llama of 6 blocks, 192 wide, pre-trained here from random weights on encyclopedia text, then adapted to "
        "novels in all 42 linear layers; perplexity of held-out novels (lower is better) at equal adapter parameters, "
        "to a component. All are retrained from scratch, so what differs here is the ranks alone."
    )
    if not rows:
        return join("## A small Llama on other text", text, not_measured(command))
    from benchmarks import llama

    gains = {label: paired_differences(rows, label, "uniform", None) for label in ("random", "autolora")}
    cells = "; ".join(f"{label} less uniform, by seed: {difference_cells(v)[0]}" for label, v in gains.items())
    return join("## A small Llama on other text", text, llama.report(rows), cells, provenance(rows, command))


def all_linear_section() -> str:
    text = (
        "All 37 linear layers of MiniLM, rank 2 on average, ranks of zero allowed, one rate, everything trained from "
        "the pre-trained model: what differs is the ranks alone. The time counts the search."
    )
    return plan_section("All linear layers: the ranks alone", text, "all_linear")


SMALL = "MiniLM (6 layers, 22 million parameters) in place of RoBERTa-base"
TABLES = {  # of the paper: {plan: its rows}, the plan at the paper's scale, and what differs here
    1: (
        {"plans/core": "core", "plans/adapters": "adapters"},
        "paper/table1_roberta_base",
        f"Here {SMALL}; 2,000 training rows of each task; 8 seeds (CoLA, MRPC and STS-B 5; Adapter and EVA 3), where "
        "the paper has one; every development row that there is (QNLI and MNLI: three quarters, see Data in "
        "benchmarks/README.md); learning rates tuned within the training rows. *uniform* is LoRA of rank 4, *random* "
        "and *svd* patterns of its size. *autolora paper* has the paper's rates in its search, 1e-4 and 1e-3, which "
        "move a small model little; the tuned rate is its retrain's.",
    ),
    2: (
        {"plans/e2e": "e2e", "plans/webnlg": "webnlg"},
        "paper/table2_gpt2_medium",
        "Here a GPT-2 of 7 million parameters, 2,000 training rows of E2E and 3,000 of WebNLG, greedy texts of E2E's "
        "first 400 test inputs and of all of WebNLG's, 3 seeds; all linear layers, rank 16 for E2E and 64 for WebNLG, "
        "as fewer weights do not teach such a model to write; learning rates tuned within the training rows. TER: "
        "lower is better.",
    ),
    3: (
        {"plans/ner": "ner"},
        "paper/table3_bionlp",
        f"Here {SMALL}, 4,000 training sentences, 3 seeds; the whole test set; learning rates tuned within the "
        "training rows.",
    ),
    4: (
        {"plans/ablations": "ablations"},
        "paper/table4_ablations",
        f"Here {SMALL}, at most 2,000 training rows of a task, 3 seeds, learning rates of a small model, for the "
        "search too (2e-3, where Table 1 has 1e-4). Sizes follow the thresholds of §5.5: sigmoid keeps nearly every "
        "component, twice the parameters of the others.",
    ),
}
INTRODUCTION = (
    "Written by `python benchmarks/report.py` from the rows in [benchmarks/results](benchmarks/results); a test "
    "compares the two. Cells are means (95 % interval over seeds, number of seeds); a dash was not "
    "measured, and with fewer than three seeds there is no interval. A row is run again, and its score compared, with "
    "`python benchmarks/rerun.py FILE LINE --data $DATA --model MODEL`. How things are measured, and why: "
    "[benchmarks/README.md](benchmarks/README.md)."
)


def page() -> str:
    """RESULTS.md."""
    tables = {number: paper_table(number, *table) for number, table in TABLES.items()}
    figure2 = at_scale("paper/table1_roberta_large", "figure2")
    figure2 = join("## Figure 2: RoBERTa-large", "The paper has a bar chart without numbers.", figure2)
    sections = [
        tables.pop(1),
        by_task(),
        extras_section(),
        figure2,
        *tables.values(),
        table5(),
        ranks_section(),
        front_section(),
        planted_section(),
        agreement_section(),
        all_linear_section(),
        llama_section(),
        hypergradient_section(),
        cost_section(),
        reliability_section(),
        join("## Every method, once", "On few rows: does each run? [methods.md](benchmarks/results/methods.md)."),
    ]
    return join("# Results", contents(sections), what_holds(), INTRODUCTION, *sections) + "\n"


def contents(sections: list[str]) -> str:
    """Links to the sections, as GitHub names them."""
    titles = re.findall(r"^## (.*)$", "\n".join(sections), re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return (
        "On this page: " + ", ".join(f"[{title.partition(':')[0]}](#{a})" for title, a in zip(titles, anchors)) + "."
    )


# ---- files


def texts() -> dict[str, str]:
    """{path: text} of all that is written here: the page, the README with its tables, and those that benchmarks write
    beside their rows, as far as there are rows."""
    from benchmarks import llama

    made = {
        "front": lambda rows: front.report(rows, yaml_of("plans/front")),
        "methods": lambda rows: compare.report(rows, plan_of("plans/methods")),
        "llama": llama.report,
        "ranks": ranks.report,
    }
    found = {f"benchmarks/results/{name}.md": write(rows) for name, write in made.items() if (rows := rows_of(name))}
    readme = _content(measured.README)
    return {"RESULTS.md": page(), **({measured.README: measured.written(readme)} if readme else {}), **found}


def draw(folder: str) -> list[str]:
    """Write the pictures; their paths."""
    figures = {}
    if found := searched_ranks():
        figures = {name: partial(pictures.heatmaps, tasks) for name, tasks in figure3(found).items()}
    if rows := rows_of("front"):
        figures["front"] = partial(pictures.front, rows)
    with matplotlib.rc_context(pictures.STYLE):
        saved = [pictures.save(figure(), os.path.join(folder, name)) for name, figure in figures.items()]
    return [path for paths in saved for path in paths]


def texts_of(path: str) -> list[str]:
    """What is written in an SVG: ranks, tasks and sizes, which do not depend on the version of matplotlib."""
    with open(path, encoding="utf-8") as file:
        return re.findall(r"<text[^>]*>(.*?)</text>", file.read())


def _content(name: str) -> str | None:
    path = os.path.join(trials.ROOT, name)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()


def stale() -> list[str]:
    """The files that are not what the rows give."""
    found = [name for name, text in texts().items() if _content(name) != text]
    with tempfile.TemporaryDirectory() as folder:
        for path in draw(folder):
            kept = f"{PICTURES}/{os.path.basename(path)}"
            there = os.path.join(trials.ROOT, kept)
            same = os.path.exists(there) and (path.endswith("png") or texts_of(path) == texts_of(there))
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
        with open(os.path.join(trials.ROOT, name), "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
