"""The tables of compress.py on rows whose shares are known, and its plan."""

from benchmarks import compress
from benchmarks.lib import compress_report


def row(seed, task="e2e", ahead=0.1):
    """The given adapter takes the loss from 5 to 3: a cut of loss 3.2 keeps 90 % of the gain."""
    cuts = [
        {"method": method, "size": size, "parameters": 100, "loss": 3.4 - ahead * 2 * (method == "contributions")}
        for method in compress_report.METHODS for size in compress_report.SIZES
    ]  # fmt: skip
    cuts[-1]["loss"] = None  # uniform at a half
    found = {"method": "contributions", "size": "found", "parameters": 250, "loss": 3.03}
    healed = [{"method": "healed", "size": size, "parameters": 100, "loss": 3.0} for size in ("1/8", "1/4", "found")]
    return {"kind": "cuts", "task": task, "seed": seed, "parameters": 800, "given": 3.0, "without": 5.0, "cuts": cuts,
            "found": found, "healed": healed}  # fmt: skip


def test_tables_say_what_is_kept_and_how_far_it_is_ahead():
    rows = [row(seed) for seed in (11, 12, 13)]
    rows += [{"kind": "scratch", "task": "e2e", "seed": 11, "size": "1/8", "parameters": 100, "loss": 3.1}]
    text = compress_report.report(rows)
    assert "| `compress` | 90.0 % (90.0 to 90.0) |" in text
    assert "| `compress` less: singular values over all modules | 10.0 % (10.0 to 10.0) |" in text
    assert text.splitlines()[8].endswith("| - |")  # no pair at a half
    assert "| e2e | found | 31 % (31 to 31) | +1.0 % | 98.5 % (98.5 to 98.5) | 100.0 % (100.0 to 100.0) | - |" in text
    assert (
        "| e2e | 1/8 | 12 % (12 to 12) | +6.7 % | 90.0 % (90.0 to 90.0) | 100.0 % (100.0 to 100.0) | 95.0 % |" in text
    )


def test_the_plan_has_every_trial_once_and_the_main_ones_first():
    keys = [compress.key(trial) for trial in compress.plan()]
    assert len(keys) == len(set(keys)) == 10 + 12 + 1
    assert all(key.startswith("cuts") for key in keys[:10]) and keys[-1] == "cuts smollm2 11"
