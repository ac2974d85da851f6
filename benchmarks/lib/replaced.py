"""Commands that cannot work, that meet another, or that would go on with something else; for reliability.py.

A check takes a `Bench` and how often to make it, and yields None where the promise was kept, else what was wrong.
"""

import json
import os
import random
import shutil
import signal
import time
from itertools import product
from pathlib import Path

from autolora_trainer.runs.aside import ASIDE_FOLDER
from benchmarks.lib.forked import Bench

# Arguments of transformers and of ours, a line each, most of which come through the parser and fail later. What works
# on some machine, as a backend that is installed there, counts neither way.
LATE = Path(__file__).with_name("late.txt").read_text(encoding="utf-8").splitlines()


SECONDS = 60  # of such a run


def _settings(text: str) -> dict[str, str]:
    """`a=1,b={"x":1,"y":2}` as {name: value}: commas inside braces belong to the value."""
    found, depth, word = {}, 0, ""
    for letter in text + ",":
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            name, _, value = word.partition("=")
            found[name], word = value, ""
        else:
            word += letter
    return found


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".run.lock"
    }


def late(bench: Bench, count: int):
    """Each of `LATE`, with a search and without, over a finished run: it fails, and the run is there to the byte; in
    `.replaced`, where the new one has a checkpoint to go on from."""
    bench.reference()
    whole = _contents(bench.path("reference"))
    for text, method in bench.left(product(LATE, ("autolora", "lora"))):
        changes = {"method": method, **_settings(text)}
        status = bench.run([*bench.argv("reference", **changes), "--overwrite"], lambda: signal.alarm(SECONDS))
        found, aside = (_contents(bench.path("reference", *place)) for place in ((), (ASIDE_FOLDER, "1")))
        kept = found == whole or aside.items() >= whole.items()  # there, or put aside where it went on for a while
        if found != whole:
            shutil.rmtree(bench.path("reference"))
            bench.reference()
            whole = _contents(bench.path("reference"))
        if status in (1, 2):
            yield None if kept else f"{method}, {text}: status {status}, and the run before is not what it was"
        elif status not in (0, -signal.SIGALRM):  # it works, for ever perhaps
            yield f"{method}, {text}: status {status}: {bench.log()[-300:]}"


def pairs(bench: Bench, count: int):
    """Two runs of other seeds in one folder, the second at a random moment of the first, with one of three arguments:
    what lies there in the end is one run's alone."""
    bits, generator = {}, random.Random(bench.earlier)
    for seed in (1, 2):
        bits[seed] = bench.reference(seed=seed)
    started = time.monotonic()
    bench.reference(seed=1)
    length = time.monotonic() - started
    for number in bench.left(range(count)):
        shutil.rmtree(bench.path("both"), ignore_errors=True)
        extra = (["--overwrite"], ["--resume_from_checkpoint"], [])[number % 3]
        first = bench.start(bench.argv("both", seed=1))
        time.sleep(generator.uniform(0, 1.1 * length))
        second = bench.run([*bench.argv("both", seed=2), *extra])
        said = bench.log().strip().splitlines()[-1:]
        status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        winner = 2 if second == 0 else 1
        settings = bench.read("both", "run.json")["settings"] if bench.path("both", "run.json").exists() else {}
        if (second == 0 and status != 0) or (second != 0 and status != 0):
            yield f"pair {number} {extra}: statuses {status} and {second}"
        elif second not in (0, 2) or (second == 2 and not said):
            yield f"pair {number} {extra}: the second ended with {second}: {said}"
        elif bench.bits("both") != bits[winner] or settings.get("seed") != winner:
            yield f"pair {number} {extra}: statuses {status} and {second}, and the folder holds neither run"
        else:
            yield None


SETTINGS = {  # of the command, one at a time
    **{"seed": 7, "learning_rate": 1e-2, "weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    **{"initial_rank": 3, "hypergradient": "first_order", "hypergradient_interval": 3, "val_fraction": 0.3},
    **{"selection_learning_rate": 0.02, "search_learning_rate": 1e-3, "search_max_steps": 14, "max_steps": 14},
    **{"num_train_epochs": 9, "retrain_epochs": 2, "rank_rule": "threshold", "size": "lora:1", "tolerance": 0.2},
    **{
        "min_rank": 1,
        "max_lora_rank": 2,
        "constraint": "none",
        "scaling": "paper",
        "lora_alpha": 8,
        "lora_dropout": 0,
    },
    **{"use_rslora": True, "lora_target_modules": "query-value", "retrain_init": "scratch", "retrain_cut": 0.5},
    **{"count_search": True, "gate_scaling": "square_root", "virtual_step": "sgd", "finite_difference": "forward"},
    **{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "dataloader_drop_last": True},
    **{"max_seq_length": 8, "pad_to_max_length": True, "max_train_samples": 40, "sample_seed": 3, "data_seed": 4},
    **{"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6, "max_grad_norm": 0.1},
    **{"label_smoothing_factor": 0.1, "bf16": True, "non_finite": "stop", "attn_implementation": "eager"},
    **{"train_sampling_strategy": "group_by_length", "activation_checkpointing": True, "neftune_noise_alpha": 5},
    **{"full_determinism": True, "method": "lora", "average_tokens_across_devices": False, "search_look_steps": 4},
}
HARMLESS = {
    **{"logging_steps": 1, "eval_strategy": "epoch", "per_device_eval_batch_size": 3, "save_steps": 5},
    **{"save_total_limit": 1, "dataloader_num_workers": 1, "report_to": "none", "log_level": "error"},
    **{"save_strategy": "epoch", "logging_first_step": True, "run_name": "other", "disable_tqdm": True},
}


def _edit(name: str, change):
    """A change of a file of the bench."""
    return lambda bench, folder: bench.path(*name.split("/")).write_text(
        change(bench.path(*name.split("/")).read_text())
    )


def _flipped(text: str) -> str:
    return (
        text.replace('"label": 0', '"label": 9')
        .replace('"label": 1', '"label": 0')
        .replace('"label": 9', '"label": 1')
    )


def _first_byte_of_weights(bench: Bench, folder: Path) -> None:
    path = bench.path("model", "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _noted(part: str, name: str):
    """As if this machine, or these rows, had another: the run was begun with something else."""

    def change(bench: Bench, folder: Path) -> None:
        note = json.loads((folder / "run.json").read_text())
        note[part][name] = "another"
        (folder / "run.json").write_text(json.dumps(note))

    return change


ENVIRONMENT = "torch transformers peft accelerate tokenizer attn_implementation device base_revision".split()
FILES = {
    "flipped labels": _edit("train.jsonl", _flipped),
    "one row less": _edit("train.jsonl", lambda text: text.rsplit("\n", 2)[0] + "\n"),
    "one row more": _edit("train.jsonl", lambda text: text + text.splitlines()[0] + "\n"),
    "rows in another order": _edit("train.jsonl", lambda text: "\n".join(reversed(text.splitlines())) + "\n"),
    "one word": _edit("train.jsonl", lambda text: text.replace("a", "b", 1)),
    "base weights": _first_byte_of_weights,
    "tokenizer": _edit("model/tokenizer.json", lambda text: text + " "),
    "config": _edit("model/config.json", lambda text: text.replace("1e-05", "1e-06") + " "),
    **{f"environment {name}": _noted("environment", name) for name in ENVIRONMENT},
    "rows train": _noted("rows", "train"),
    "settings processes": _noted("settings", "processes"),
}


def changes(bench: Bench, count: int):
    """Each of `SETTINGS`, `HARMLESS` and `FILES` before a resume: refused with nothing touched, or the same bits."""
    bits = bench.reference()
    process = bench.start(bench.argv("begun"))
    while not bench.path("begun", "search", "checkpoint-4", "manifest.json").exists():
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    inputs = [bench.path(name) for name in ("model", "train.jsonl", "validation.jsonl")]
    cases = [(f"{name} {value}", {name: value}, None) for name, value in {**SETTINGS, **HARMLESS}.items()]
    for what, given, edit in bench.left([*cases, *((what, {}, edit) for what, edit in FILES.items())]):
        shutil.rmtree(bench.path("killed"), ignore_errors=True)
        shutil.copytree(bench.path("begun"), bench.path("killed"))
        kept = {path: path.read_bytes() for place in inputs for path in (place, *place.rglob("*")) if path.is_file()}
        if edit is not None:
            edit(bench, bench.path("killed"))
        before = _contents(bench.path("killed"))
        status = bench.run([*bench.argv("killed", **given), "--resume_from_checkpoint"])
        said = bench.log().strip().splitlines()[-1]
        if status == 0:
            yield None if bench.bits("killed") == bits else f"{what}: went on to other bits"
        elif (
            status == 2 and ("begun" in said or what.split()[0] in said) and _contents(bench.path("killed")) == before
        ):
            yield None
        else:
            yield f"{what}: status {status}: {said}"
        for path, content in kept.items():
            path.write_bytes(content)
