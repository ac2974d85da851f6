"""Where the files of a run go, where it goes on, and what is evaluated."""

from tests.scripts.mistakes.cases import GOOD, Bad, File, Finished, Folder, checkpoint, flipped, half, lines
from tests.scripts.mistakes.models import setting

# fmt: off


# ---- where the run's files go

OUTPUT = [
    Bad("a file for output_dir", "glue", {"output_dir": File("out", "mine")},
        "output_dir …/output_dir/out lies on a file (…/output_dir/out). Give another --output_dir."),
    Bad("output_dir below a file", "glue", {"output_dir": File("out", "mine", inside="run")},
        "output_dir …/output_dir/out/run lies on a file (…/output_dir/out). Give another --output_dir."),
    Bad("output_dir where nothing can be written", "glue", {"output_dir": "/proc/run"},
        "output_dir '/proc/run' cannot be made: No such file or directory. Give another --output_dir."),
    Bad("output_dir with a zero byte", "glue", {"output_dir": "out\0dir"},
        "output_dir 'out\\x00dir' cannot be made: embedded null byte. Give another --output_dir."),
    Bad("output_dir of too long a name", "glue", {"output_dir": "o" * 300},
        "output_dir '…' cannot be made: File name too long. Give another --output_dir."),
    Bad("an empty output_dir", "glue", {"output_dir": ""},
        "output_dir is empty. Give a folder, or leave --output_dir out."),
    Bad("output_dir with a finished run", "glue", {"output_dir": Finished()},
        "…/output_dir/run holds a finished run. Add --overwrite to replace it, or give another --output_dir."),
    Bad("output_dir with files of others", "glue",
        {"output_dir": Folder({"README.md": "mine", "search/notes.txt": "mine"})},
        "…/output_dir/folder holds files that no run of this … replace them. Give another --output_dir."),
    Bad("output_dir with files of others, to be replaced", "glue",
        {"output_dir": Folder({"README.md": "mine"}), "overwrite": True},
        "…/output_dir/folder holds files that no run of this … replace them. Give another --output_dir."),
    Bad("output_dir with another model", "glue",
        {"output_dir": Folder({"model.safetensors": "mine"}), "overwrite": True},
        "…/output_dir/folder holds files that no run of this … replace them. Give another --output_dir."),
]


# ---- where an interrupted run goes on

RESUME = [
    Bad("a checkpoint that is not there", "glue", {"resume_from_checkpoint": "nowhere/checkpoint-3"},
        "--resume_from_checkpoint nowhere/checkpoint-3 is no … folder, or no value for the newest."),
    Bad("a file for a checkpoint", "glue", {"resume_from_checkpoint": File("checkpoint-3", "")},
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("an empty folder for a checkpoint", "glue", {"resume_from_checkpoint": Folder(name="checkpoint-3")},
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint of Trainer's own", "glue", checkpoint(manifest__json=None),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest is broken", "glue", checkpoint(manifest__json="{"),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest is a list", "glue", checkpoint(manifest__json="[]"),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest names no sizes", "glue",
        checkpoint(manifest__json='{"files": {"optimizer.pt": 1}, "step": 1}'),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest has no step", "glue", checkpoint(manifest__json='{"files": {}}'),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint without its optimizer", "glue", checkpoint(optimizer__pt=None),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose optimizer is cut off", "glue", checkpoint(optimizer__pt=half),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint with a bit flipped", "glue", checkpoint(adapter_model__safetensors=flipped),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a search's checkpoint with a bit flipped", "glue",
        checkpoint("search/checkpoint-1", selection__safetensors=flipped),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a search's checkpoint for a run without a search", "glue",
        {"method": "lora", "resume_from_checkpoint": Finished({}, "search/checkpoint-1")},
        "--resume_from_checkpoint … or give a checkpoint-N folder beside search/."),
    Bad("a finished run for a checkpoint", "glue", {"resume_from_checkpoint": Finished()},
        "--resume_from_checkpoint …/resume_from_checkpoint/run has … folder, or no value for the newest."),
]


# ---- an earlier run's adapter, to be evaluated

EVALUATE = [
    Bad("nothing to evaluate", "glue", {"do_eval": True, "output_dir": "nothing"},
        "nothing holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
    Bad("a folder without an adapter", "glue", {"do_eval": True, "output_dir": Folder({"mine.txt": ""})},
        "…/output_dir/folder holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
    Bad("an adapter without weights", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_model.safetensors": None})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose weights are cut off", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_model.safetensors": half})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose weights are empty", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_model.safetensors": b""})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter without its config", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": None})},
        "…/output_dir/run holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
    Bad("an adapter whose config is broken", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": "{"})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose config is a list", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": "[]"})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose config has no type", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": "{}"})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter of a type that there is not", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": setting(peft_type="LORRA")})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter of other ranks than its weights", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": setting(r=9, rank_pattern={})})},
        "The adapter in …/output_dir/run does not load on … the shape in current model is torch.Size([9"),
    Bad("an adapter of another model", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": setting(target_modules=["q_proj"])})},
        "The adapter in …/output_dir/run does not load on … targeted modules that are marked to be save"),
    Bad("an adapter for tags without its labels", "ner", {"do_eval": True, "train_file": None, "task_name": "ner"},
        "ner/validation.jsonl: ner takes its labels from the training rows, got none. Give --train_file."),
    Bad("an adapter for classes in tags", "ner", {"do_eval": True, "output_dir": Finished()},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("predictions without an adapter", "glue",
        {"output_dir": "nothing", "do_predict": True, "test_file": File("test.jsonl", lines(*GOOD))},
        "nothing holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
]
