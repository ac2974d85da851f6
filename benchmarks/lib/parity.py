"""1, 2 and 4 processes on any number of rows: the same α, contributions, ranks and weights; for reliability.py.

A check takes a `Bench` and how often to make it, and yields None where the promise was kept, else what was wrong.
"""

import json
import random
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import run_glue
import run_ner
import run_nlg
from benchmarks.lib.forked import Bench
from tests.helpers.commands import as_argv
from tests.helpers.models import byte_gpt2, byte_tokenizer
from tests.helpers.processes import in_processes
from tests.helpers.rows import restaurants, reviews, sentences, write_rows

GLOBAL = 16  # rows of a weight step: batch size x accumulation x processes
KINDS = {  # task: main, rows
    "sst2": (run_glue.main, sentences),
    "ner": (run_ner.main, reviews),
    "e2e": (run_nlg.main, restaurants),
}
SETTINGS = {  # no dropout; an epsilon above the rounding of sums in another order
    **{"lora_dropout": 0, "optim": "adamw_torch", "adam_epsilon": 1e-4, "save_strategy": "no", "learning_rate": 2e-2},
    **{"initial_rank": 4, "hypergradient": "finite_difference", "hypergradient_interval": 1, "val_fraction": 0.5},
    **{"search_max_steps": 12, "num_train_epochs": 2, "use_cpu": True, "per_device_eval_batch_size": 4},
}
NEAR, NEARLY = 1e-5, 1e-4  # of α, contributions and losses; of updates, after as many steps of Adam


def parity(bench: Bench, count: int):
    items, earlier = bench.left(range(count)), bench.earlier
    bench = Bench(tempfile.mkdtemp(dir=bench.folder), dropout=0.0)
    byte_gpt2(initializer_range=0.1).save_pretrained(bench.path("e2e"))
    byte_tokenizer().save_pretrained(bench.path("e2e"))
    for index in items:
        drawn = random.Random(earlier + index)
        rows, task = drawn.randint(20, 90), list(KINDS)[index % len(KINDS)]
        settings = {
            "train_sampling_strategy": drawn.choice(["random", "group_by_length"]),
            "size": drawn.choice(["auto", "lora:2"]),
        }
        accumulations = {processes: drawn.choice([1, 2, 4]) for processes in (1, 2, 4)}
        place = bench.path(str(index))
        place.mkdir()
        what = f"{task}, {rows} rows, {settings}, accumulations {accumulations}"
        alone, *others = (
            _learned(bench, place, task, rows, {**settings, "gradient_accumulation_steps": steps}, processes)
            for processes, steps in accumulations.items()
        )
        for other in others:
            faults = _differences(alone, other)
            yield f"{what}, {other.name}: {faults}" if faults else None


def _learned(bench: Bench, place: Path, task: str, rows: int, settings: dict, processes: int) -> Path:
    """The output folder of a run."""
    main, make = KINDS[task]
    output, at_once = place / f"{processes} processes", settings["gradient_accumulation_steps"] * processes
    files = {f"{split}_file": write_rows(place / f"{split}.jsonl", make(rows)) for split in ("train", "validation")}
    own = {"task_name": task, "model_name_or_path": bench.path("e2e" if task == "e2e" else "model"), **files}
    own |= {"per_device_train_batch_size": GLOBAL // at_once, "per_device_eval_batch_size": 8 // processes}
    own |= {"decode": "false"} if task == "e2e" else {}
    in_processes(place, main, as_argv({**SETTINGS, **settings, **own, "output_dir": output}), number=processes)
    return output


def _differences(one: Path, other: Path) -> str:
    """What two runs have learned differently."""
    (ranks, losses), (others, more) = (
        [json.loads((folder / name).read_text()) for name in ("ranks.json", "eval_results.json")]
        for folder in (one, other)
    )
    pairs = [(own, others["modules"][name]) for name, own in ranks["modules"].items()]
    tensors, same = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    gaps = {
        "α": (NEAR, _gap([(a["selection"], b["selection"]) for a, b in pairs])),
        "contributions": (NEAR, _gap([(a["contributions"], b["contributions"]) for a, b in pairs])),
        "eval_loss": (NEAR, abs(losses["eval_loss"] - more["eval_loss"])),
    }
    if any(a["rank"] != b["rank"] for a, b in pairs):
        return f"ranks differ; {gaps}"
    gaps["updates"] = (NEARLY, _gap([(_product(name, tensors), _product(name, same)) for name in tensors]))
    return ", ".join(f"{name} by {gap:.1e}" for name, (most, gap) in gaps.items() if not gap <= most)


def _product(name: str, tensors: dict) -> torch.Tensor:
    """The update whose lora_B this is: a singular vector's sign, with which a retrain begins, is nobody's. Or the
    tensor itself, of a head; nothing for a lora_A."""
    if "lora_B" in name:
        return tensors[name].double() @ tensors[name.replace("lora_B", "lora_A")].double()
    return tensors[name] if "lora_A" not in name else torch.zeros(1)


def _gap(pairs: list) -> float:
    return max((torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs().max().item() for a, b in pairs)
