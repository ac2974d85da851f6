"""RESULTS.md and its long tables: are they what the committed rows give, and do they say no more than they do?"""

import json
import os
import re
import shutil
import tempfile

import pytest
import yaml

from benchmarks import report
from benchmarks.lib import committed, paper_tables, patterns, short, trials

ROOT = trials.ROOT
PAGES = ("RESULTS.md", "benchmarks/results/paper.md")


@pytest.fixture(autouse=True)
def bars(monkeypatch):
    """benchmarks/reliability.py, where the page needs it, silences bars for its process; not for this one."""
    monkeypatch.setenv("TQDM_DISABLE", "1")


def test_the_page_and_its_pictures_are_what_the_rows_give(capsys):
    status = report.main(["--check"])
    assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_names_exists(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        text = file.read()
    here = os.path.join(ROOT, os.path.dirname(name))
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    typed = re.findall(r"python (\S+\.py)", text) + re.findall(r"benchmarks/(?:plans|paper)/\S+\.yaml", text)
    assert len(links) > 4 and [link for link in links if not os.path.exists(os.path.join(here, link))] == []
    assert len(typed) > 8 and [path for path in typed if not os.path.exists(os.path.join(ROOT, path))] == []


def test_results_are_short():
    with open(os.path.join(ROOT, "RESULTS.md"), encoding="utf-8") as file:
        text = file.read()
    assert len(text.splitlines()) <= 200 and len(text.encode()) <= 14_000
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        tables = re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE)
        assert all(len(table.splitlines()) - 2 <= 8 for table in tables), part[:60]
        assert len(tables) <= 2, part[:60]


# ---- a page of rows that are known


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository with the page, the plans and no rows; `add` appends some."""
    for name in PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.join(ROOT, name), tmp_path / name)
    for folder in ("plans", "paper"):
        shutil.copytree(os.path.join(ROOT, "benchmarks", folder), tmp_path / "benchmarks" / folder)
    monkeypatch.setattr(trials, "ROOT", str(tmp_path))

    def add(name, *rows):
        for row in rows:
            trials.append_row(str(tmp_path / "benchmarks" / "results" / f"{name}.jsonl"), row)

    return add


def page(name="RESULTS.md"):
    return report.texts()[name]


def long():
    return page("benchmarks/results/paper.md")


def row(task, seed, method, score, **more):
    made = {"task": task, "seed": seed, "method": method, "score": score, "scores": {}, "settings": ["--seed=0"]}
    made |= {"adapter_params": 36864, "head_params": 770, "wall_seconds": 10.0, "search_seconds": 0.0, "passes": 5}
    made |= {"peak_memory_mb": 100.0, "ranks": [1, 8] * 6, "versions": {"torch": "9.9"}, "machine": "M", "date": "D1"}
    return {**made, **more}


def section(text, title):
    return re.search(rf"^## {title}.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[0]


def line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_without_rows_there_are_dashes_and_commands_and_no_numbers_of_ours(place):
    text = long()
    ours = [line for line in text.splitlines() if line.startswith(("| uniform |", "| autolora |"))]
    assert len(ours) >= 6 and all(set(line.split("|", 2)[2]) <= set("| -") for line in ours if "0.00" not in line)
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert len(titles) == 7 and all("not measured yet" in section(text, re.escape(title)) for title in titles)
    command = "compare.py benchmarks/plans/core.yaml --data $DATA --model MODEL --output benchmarks/results/core.jsonl"
    assert command in text and command in section(page(), "Not measured")
    marked = re.findall(report.MARKED.pattern.replace(").*?(", ")(.*?)("), page(), re.DOTALL)
    assert "![" not in text + page() and len(marked) > 10
    assert not any(re.search(r"\d %", content) for _, _, content, _ in marked)


def test_paper_and_rows_stand_side_by_side_with_what_is_missing(place):
    tuning = [("uniform", rate, 70 + rate) for rate in (0.001, 0.002, 0.004)]
    for label, rate, score in tuning:
        settings = [f"--learning_rate={rate}"]
        place("core", row("sst2", 100, label, score, kind="tuning", val_fraction=0.2, settings=settings))
    for seed in range(3):
        place("core", row("sst2", seed, "uniform", 80.0 + seed, date=f"D{seed}"), row("sst2", seed, "full", 90.0))
    table = section(long(), "Table 1")
    assert line(table, "| LoRA |").startswith("| LoRA | 0.3M | 59.0 | 94.5 | 89.1 |")
    assert line(table, "| uniform |").startswith("| uniform | 36,864 | - | 81.00 (78.52 to 83.48, n=3) | - |")
    assert table.index("| uniform |") < table.index("The paper, RoBERTa-base") < table.index("| LoRA |")
    assert "+9.00 (+6.52 to +11.48, n=3) | 3.26" in table  # full: 5.65 s / √3, s = 1
    assert "not measured yet, 306 of 312 runs: `python benchmarks/compare.py benchmarks/plans/core.yaml" in table
    assert "6 rows; seeds 0 to 2; torch 9.9; M; D0 to D2." in table
    assert line(table, "| uniform | 0.001, 0.002, 0.004").startswith("| uniform | 0.001, 0.002, 0.004 | **0.004** | -")
    assert "AdaLoRA has 84.8, printed 85.0" in table and "η = 0) has 85.4, printed 85.2" in long()
    shown = section(page(), "The paper's table")
    assert "| uniform | 36,864 | 81.0 |" in shown and "AdaLoRA 85.0, AutoLoRA 85.5" in shown


def test_metrics_of_texts_and_entities_have_columns_of_their_own(place):
    scores = {"predict_bleu": 20.0, "predict_nist": 4.0, "predict_ter": 0.5}
    for task, score in (("e2e", 20.0), ("webnlg", 5.0)):
        place(task, row(task, 0, "autolora", score, scores=scores))
    place("ner", row("jnlpba", 0, "full", 64.0, scores={"predict_precision": 0.6, "predict_f1": 0.64}))
    text = long()
    shown = "| autolora | 36,864 | 20.00 (n=1) | 4.00 (n=1) | - | - | - | 20.00 (n=1) | - | 0.50 (n=1) |"
    assert shown in section(text, "Table 2")
    assert "| full | 36,864 | 60.00 (n=1) | 64.00 (n=1) |" in section(text, "Table 3")


def test_an_average_needs_every_column():
    rows = [row(task, 0, "m", score) for task, score in (("a", 50.0), ("b", 60.0))]
    assert paper_tables.score_cell(rows, "average", ["a", "b", "average"]) == "55.00"
    assert paper_tables.score_cell(rows, "average", ["a", "b", "c", "average"]) == "-"


def test_rows_at_the_papers_scale_are_a_table_of_their_own(place):
    place("table1", row("cola", 0, "lora", 60.0))
    place("table5", row("sst2", 0, "adalora", 90.0), row("sst2", 0, "grid", 90.0, wall_seconds=150.0))
    text = long()
    assert "| lora | 36,864 | 60.00 (n=1) | - |" in section(text, "Table 1")
    assert "15.00" in line(section(text, "Table 5"), "| grid |")
    assert "(roberta-base, 5 seeds) not measured yet" not in section(text, "Table 1")


def test_table_5_from_the_steps_of_a_gpu(place):
    shared = {"task": "steps", "settings": {"rounds": 3, "device": "cuda", "dtype": "bf16", "shape": "large"}}
    shared |= {"seed": 0, "score": None, "passes": 1.0, "peak_memory_mb": 1.0, "command": "run", "machine": "GPU"}
    seconds = {"LoRA r=8": 0.05, "AdaLoRA 6->4": 0.1, "search, defaults": 0.1, "EVA r=8": None}
    for method, value in seconds.items():
        place("cost", {**shared, "method": method, "wall_seconds": value, "versions": {"torch": "9.9"}})
    table = section(long(), "Table 5")
    # a grid of 16 trainings at half the unit; 80 steps of search are 8 s of AdaLoRA's 1,000 s
    assert "| large, bf16, GPU | 1 | 8.00 | 0.51 |" in table


def test_cost_is_paired_by_round_and_reliability_names_what_failed(place):
    shared = {"task": "cola", "train_rows": 9, "settings": {"rounds": 3, "device": "cpu"}, "command": "run", "seed": 0}
    shared |= {"score": 0.5, "adapter_params": 4, "passes": 3, "search_seconds": None, "retrain_seconds": 1.0}
    shared |= {"machine": "CPU", "versions": {"torch": "9.9"}}
    for turn, (unit, own) in enumerate(((10.0, 11.0), (100.0, 120.0), (10.0, 13.0))):
        place("cost", {**shared, "round": turn, "method": "adalora", "wall_seconds": unit})
        place("cost", {**shared, "round": turn, "method": "autolora", "wall_seconds": own})
    for method, seconds in (("adalora", 2.0), ("autolora", 4.0)):  # fewer rows: for the growth alone
        place("cost", {**shared, "round": 1, "method": method, "wall_seconds": seconds, "train_rows": 5})
    checks = {
        "check": "kill",
        "passed": 1,
        "count": 2,
        "seconds": 3.0,
        "faults": [f"it\nwas lost in '{tempfile.gettempdir()}/tmpx1/killed/a'"],
        "command": "c",
    }
    place("reliability", {**checks, "passed": 0, "faults": ["old"]}, checks)
    text = long()
    assert line(section(text, "Table 5"), "| autolora, here").startswith(
        "| autolora, here | 1.20 (0.95 to 1.45, n=3) |"
    )
    shown = section(text, "Cost")
    assert "13.0 |       1.30" in line(shown, "| autolora")
    assert line(shown, "| 5 ").split()[3:7] == ["2.0", "(1.00)", "|", "4.0"]
    shown = section(page(), "Stopped, damaged, doubled")
    assert (
        "goes on to the same bits | 1 of 2 |" in shown
        and "- kill: it was lost in 'FOLDER/killed/a'" in shown
        and "- kill: old" not in shown
    )


def test_ranks_say_which_projection_which_depth_and_who_agrees():
    assert [len(range(7)[part]) for part in patterns.thirds(7)] == [2, 3, 2]
    up, down = [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]  # query and value of three blocks
    found = {"a": {0: up, 1: up}, "b": {0: down}, "deeper": {0: up * 2}}
    text = patterns.describe(found)
    assert "| a | 0, 1 | 3.0 | 4.0 | 1.5 | 3.5 | 5.5 | 0 of 2 | 1.00 (1.00 to 1.00) |" in text
    assert "| b | 0 | 4.0 | 3.0 | 5.5 | 3.5 | 1.5 | 0 of 1 | - |" in text
    assert "| a | - | -1.00 | - |" in text and "| deeper | - | - | - |" in text
    first = patterns.first_runs(found)["a"]
    assert first.ranks["layer.0.query"] == 1 and first.ranks["layer.2.value"] == 6
    found = {"a": {0: [2] * 4, 1: [1, 2, 3, 4]}, "e2e": {0: [1, 2, 3, 4, 5, 6, 7, 8]}}  # two blocks; GPT-2's layers
    text = patterns.describe(found)
    assert "| a | 0, 1 | 2.0 | 2.5 | 1.8 | nan | 2.8 | 1 of 2 | 0.00 (0.00 to 0.00) |" in text
    assert "| e2e | 0 | 3.0 | 4.0 | 5.0 | 6.0 |" in text and "| a | - | - |" in text
    assert patterns.first_runs(found)["e2e"].ranks["layer.1.mlp.c_fc"] == 7


def test_runs_of_the_default_are_collected_by_task_and_seed():
    runs = [row("b", 1, "autolora", 1.0, ranks=[2, 3]), row("c", 0, "uniform", 1.0)]
    assert patterns.collect(runs) == {"b": {1: [2, 3]}}


def test_a_new_row_makes_the_page_and_its_pictures_stale(place, capsys):
    place("core", *(row("sst2", seed, "autolora", 80.0) for seed in range(3)))
    place("allocation", *allocation_rows(seed=11))
    assert report.main([]) == 0 and report.main(["--check"]) == 0
    place("allocation", *allocation_rows(seed=12))
    assert set(report.stale()) >= {"RESULTS.md", "benchmarks/results/allocation.md"}
    place("allocation", *({**own, "task": "webnlg"} for own in allocation_rows(seed=11)))
    os.remove(os.path.join(trials.ROOT, report.PICTURES, "figure3_1.png"))
    assert report.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert all(name in said for name in ("RESULTS.md", "pictures/allocation.svg", "pictures/figure3_1.png"))


def allocation_rows(seed):
    """No adapter, uniform and contributions of one size; contributions are ahead by a tenth of uniform's gain."""
    shared = {"stage": "final", "task": "e2e", "seed": seed, "versions": {}, "machine": "M", "date": "D1"}
    train = {**shared, "kind": "train", "size": "half", "account": "a", "parameters": 1000, "score": None}
    return [
        {**shared, "kind": "none", "loss": 5.0},
        *({**train, "method": m, "loss": loss} for m, loss in (("uniform", 3.0), ("contributions", 2.8))),
    ]


def test_the_first_table_is_of_ranks_at_the_same_size(place):
    for seed in (11, 12, 13):
        place("allocation", *allocation_rows(seed))
    shown = section(page(), "Learned ranks against uniform ranks of the same size")
    assert "| e2e | - | 1,000: +10.0 % (+10.0 % to +10.0 %) | - |" in shown
    assert "Means (bootstrap) over 1 small cells: +10.0 % (+10.0 % to +10.0 %)." in shown
    assert "pictures/forest.svg" in page() and "Not measured yet, " in section(page(), "Not measured")
    assert "+10.0 % (+10.0 % to +10.0 %) more off the held-out loss" in page()
    place("allocation", *({**own, "task": "novels"} for own in allocation_rows(seed=11)))
    assert "capacity may be a limit: E2E +10.0 % (+10.0 % to +10.0 %), novels +10.0 %." in page()


def test_a_whole_search_stands_beside_lora_of_its_seed():
    search = {"kind": "search", "task": "e2e", "k": 8, "steps": 56, "passes": 150, "settled": True}
    run = {"task": "e2e", "passes": 200, "wall_seconds": 50.0, "search_seconds": 0.0, "peak_memory_mb": 1000.0}
    ours = {**run, "method": "autolora", "search_seconds": 40.0, "peak_memory_mb": 1020.0}
    runs = [{**run, "method": "lora", "seed": seed} for seed in (0, 1, 2)]
    whole = [*runs, *({**ours, "seed": seed, "search_seconds": s} for seed, s in enumerate((40.0, 30.0, 50.0)))]
    line = "| E2E | 56 | 150 | 15.0% | 5.0% | 1 of 1 |"
    assert f"{line} 16.0% (12 to 20%) | 1.02 |" in short.passes([search], whole)  # of the 250 s that 1,000 steps take
    assert f"{line} - | - |" in short.passes([search, {**search, "label": "fixed", "passes": 9}], whole[3:])


def test_runs_of_one_machine_and_batch_are_one_line():
    how = {"rounds": 3, "variants": None, "batch_size": 16, "length": 64}
    row = {"task": "steps", "machine": "M", "method": "search, defaults", "step_ratio": 1.2, "memory_ratio": 1.0}
    rows = [{**row, "settings": how}, {**row, "settings": {**how, "rounds": 7}, "step_ratio": 1.4}]
    rows += [{**row, "settings": how, "method": "DoRA r=8", "step_ratio": 1.5}]
    rows += [{**row, "settings": {**how, "length": 128}, "step_ratio": 1.6}]
    lines = short.steps(rows).splitlines()[2:]
    assert lines == [
        "| MiniLM, 16 x 64 tokens | M | 2 | 1.30 | 1.00 | - | - | 1.50 |",
        "| MiniLM, 16 x 128 tokens | M | 1 | 1.60 | 1.00 | - | - | - |",
    ]


def test_the_papers_numbers_are_as_many_as_its_columns():
    with open(os.path.join(ROOT, "benchmarks", "paper", "numbers.yaml"), encoding="utf-8") as file:
        numbers = yaml.safe_load(file)
    assert list(numbers) == [f"table{number}" for number in range(1, 6)]
    for table in numbers.values():
        assert all(len(line["scores"]) == len(table["columns"]) for line in table["methods"].values())
    assert json.dumps(numbers["table1"]["methods"]["autolora"]) == json.dumps(
        {
            "name": "AutoLoRA",
            "parameters": "0.3M",
            "scores": numbers["table4"]["methods"]["autolora paper"]["scores"],
        }
    )


def test_every_row_without_a_score_says_how_it_came_about():
    rows = committed.rows_of("planted/planted")
    assert rows and all(row["command"] and row["versions"] and row["machine"] and row["date"] for row in rows)
    assert all(row["seconds"] > 0 and "seed" in row for row in rows)
