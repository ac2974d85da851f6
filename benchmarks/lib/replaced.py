"""Commands that cannot work, that meet another, or that would go on with something else; for reliability.py.

A check takes a `Bench` and how often to make it, and yields None where the promise was kept, else what was wrong.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from benchmarks.lib.forked import Bench

# Arguments of transformers and of ours that come through the parser, and fail later. What works on some machine, as a
# backend that is installed there, counts neither way.
LATE = """
    optim=adamw_apex_fused | optim=adamw_bnb_8bit,optim_args=nonsense | optim=galore_adamw | optim=lomo | optim=grokadamw
    optim=schedule_free_adamw | optim=apollo_adamw | optim=adalomo | optim=stable_adamw | optim=adamw_torch_xla
    optim=adamw_torch_npu_fused | optim=adamw_torch_8bit | optim=adamw_torch_4bit | optim=galore_adafactor
    optim=apollo_adamw_layerwise | optim=galore_adamw_layerwise | optim=schedule_free_sgd | optim=schedule_free_radam
    optim=ademamix | optim=lion_8bit,optim_args=betas=x | optim=rmsprop_bnb_32bit,optim_args=alpha=x
    optim=adamw_anyprecision | optim=adamw_anyprecision,optim_args=momentum_dtype=none | optim=adamw_torch,optim_args=x
    optim=galore_adamw,optim_target_modules=nothing | optim=lomo,learning_rate=1e-3 | learning_rate=1e300
    learning_rate=1e200,optim=sgd | adam_epsilon=1e300 | weight_decay=1e300 | max_grad_norm=1e300,learning_rate=1e250
    lr_scheduler_type=polynomial,lr_scheduler_kwargs={"nonsense":1} | lr_scheduler_type=cosine_with_min_lr
    lr_scheduler_type=warmup_stable_decay | lr_scheduler_type=linear,lr_scheduler_kwargs={"a":1}
    lr_scheduler_type=cosine,lr_scheduler_kwargs={"num_cycles":"x"} | lr_scheduler_type=reduce_lr_on_plateau
    lr_scheduler_type=greedy,lr_scheduler_kwargs={"patience":"x"} | lr_scheduler_type=polynomial,learning_rate=1e-9
    lr_scheduler_type=cosine_warmup_with_min_lr | lr_scheduler_type=polynomial,lr_scheduler_kwargs={"power":"x"}
    lr_scheduler_type=cosine_with_min_lr,lr_scheduler_kwargs={"min_lr":"x"} | warmup_steps=1e400
    lr_scheduler_type=inverse_sqrt,lr_scheduler_kwargs={"timescale":0} | warmup_steps=nan
    torch_compile_backend=nosuch | torch_compile_mode=nosuch,torch_compile=true | torch_compile_backend=tensorrt
    torch_compile_backend=ipex | torch_compile_backend=tvm | torch_compile_backend=openxla | use_liger_kernel=true
    liger_kernel_config={"nonsense":1},use_liger_kernel=true | neftune_noise_alpha=much | neftune_noise_alpha=1e400
    dataloader_persistent_workers=true | dataloader_prefetch_factor=2 | dataloader_num_workers=2,dataloader_prefetch_factor=-1
    dataloader_multiprocessing_context=nosuch | dataloader_num_workers=1,dataloader_multiprocessing_context=nosuch
    dataloader_num_workers=100000 | eval_accumulation_steps=0 | eval_accumulation_steps=-1 | label_names=nonsense
    per_device_train_batch_size=1000000000000000000 | per_device_eval_batch_size=1000000000000000000000
    gradient_accumulation_steps=1000000000000000000000 | max_steps=1000000000000000000000 | num_train_epochs=1e300
    remove_unused_columns=false | length_column_name=nothing,train_sampling_strategy=group_by_length
    train_sampling_strategy=nosuch | accelerator_config={"nonsense":1} | accelerator_config={"split_batches":true}
    accelerator_config={"dispatch_batches":true,"split_batches":"x"} | accelerator_config=nosuch.json
    accelerator_config={"gradient_accumulation_kwargs":{"num_steps":3}} | parallelism_config={"tp_size":2}
    deepspeed=nosuch.json | fsdp=full_shard | fsdp=nonsense | fsdp_config=nosuch.json | tf32=true | fp16=true
    debug=underflow_overflow,fp16=true | ddp_backend=nosuch | ddp_backend=nccl | use_cache=maybe
    activation_checkpointing=true,activation_checkpointing_kwargs={"nonsense":1}
    gradient_checkpointing_kwargs={"use_reentrant":"x","nonsense":1},gradient_checkpointing=true
    load_best_model_at_end=true | load_best_model_at_end=true,eval_strategy=steps,eval_steps=3,save_steps=2
    metric_for_best_model=nosuch,load_best_model_at_end=true,eval_strategy=steps | eval_strategy=steps,eval_steps=0
    save_steps=0.5,eval_steps=0.3,eval_strategy=steps,load_best_model_at_end=true | logging_steps=0 | save_steps=0
    report_to=nosuch | report_to=wandb | report_to=mlflow | report_to=comet_ml | report_to=neptune | report_to=clearml
    report_to=dvclive | report_to=swanlab | report_to=codecarbon | report_to=azure_ml | include_for_metrics=nosuch
    hub_strategy=nosuch | push_to_hub=true,hub_model_id=bad//name | batch_eval_metrics=true | torch_empty_cache_steps=0
    full_determinism=true,ddp_timeout=x | seed=99999999999999 | data_seed=-1 | eval_delay=1e400,eval_strategy=epoch
    attn_implementation=nosuch | attn_implementation=flash_attention_2 | dtype=float8 | load_in_4bit=true,method=full
""".replace("\n", " | ")


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
    """Each of `LATE`, with a search and without, over a finished run: it fails, and the run is there to the byte."""
    bench.reference()
    whole = _contents(bench.path("reference"))
    for text in filter(None, map(str.strip, LATE.split(" | "))):
        for method in ("autolora", "lora"):
            changes = {"method": method, **_settings(text)}
            status = bench.run([*bench.argv("reference", **changes), "--overwrite"])
            same = _contents(bench.path("reference")) == whole
            if not same:
                shutil.rmtree(bench.path("reference"))
                bench.reference()
                whole = _contents(bench.path("reference"))
            if status in (1, 2):
                yield None if same else f"{method}, {text}: status {status}, and the run before is not what it was"
            elif status:
                yield f"{method}, {text}: status {status}: {bench.log()[-300:]}"


def pairs(bench: Bench, count: int):
    """Two runs of other seeds in one folder, the second at a random moment of the first, with one of three arguments:
    what lies there in the end is one run's alone."""
    bits, generator = {}, random.Random(0)
    for seed in (1, 2):
        bits[seed] = bench.reference(seed=seed)
    started = time.monotonic()
    bench.reference(seed=1)
    length = time.monotonic() - started
    for number in range(count):
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


FILES = {
    "flipped labels": _edit("train.jsonl", _flipped),
    "one row less": _edit("train.jsonl", lambda text: text.rsplit("\n", 2)[0] + "\n"),
    "one row more": _edit("train.jsonl", lambda text: text + text.splitlines()[0] + "\n"),
    "rows in another order": _edit("train.jsonl", lambda text: "\n".join(reversed(text.splitlines())) + "\n"),
    "one word": _edit("train.jsonl", lambda text: text.replace("a", "b", 1)),
    "base weights": _first_byte_of_weights,
    "tokenizer": _edit("model/tokenizer.json", lambda text: text.replace('"lowercase": true', '"lowercase": false') + " "),
    "config": _edit("model/config.json", lambda text: text.replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 1e-06')),
    **{f"{part} {name}": _noted(part, name) for part, name in (
        ("environment", "torch"), ("environment", "transformers"), ("environment", "peft"), ("environment", "accelerate"),
        ("environment", "tokenizer"), ("environment", "attn_implementation"), ("environment", "device"),
        ("environment", "base_revision"), ("rows", "train"), ("settings", "processes"))},
}  # fmt: skip


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
    for what, given, edit in [*cases, *((what, {}, edit) for what, edit in FILES.items())]:
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
