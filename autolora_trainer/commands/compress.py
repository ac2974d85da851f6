"""`autolora compress`: any LoRA adapter, made smaller on held-out rows."""

import tempfile

from autolora_trainer.commands.data import load_tokenizer, read_rows, settle_padding, task_of
from autolora_trainer.commands.export import check_new
from autolora_trainer.commands.surroundings import loading, one_bar, pushed, repository
from autolora_trainer.errors import is_first_process
from autolora_trainer.hub_client import bounded_waits
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.shrink.compressing import compress
from autolora_trainer.shrink.given import load_given
from autolora_trainer.shrink.result import CompressedAdapter
from autolora_trainer.training.processes import launched


@bounded_waits()
def run(options) -> str:
    """Compress `options.adapter`; what there is to say of the result."""
    launched()
    repo_id = repository(options)
    check_new(options.output_dir)
    if options.eval_file is None and (options.heal_steps or options.train_file is not None):
        raise ValueError("--heal_steps and --train_file belong to --eval_file. Give one, or drop them.")
    base = options.base_model or AdapterFile.from_pretrained(options.adapter).config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{options.adapter} does not name its base model. Give --base_model.")
    one_bar()
    small = _compressed(options, base)
    if not is_first_process():
        return ""
    small.command = options.typed
    small.save_pretrained(options.output_dir, repo_id)
    what = "adapter, ranks.json" + (", curve.json and rank_curve.png" if small.curve else "")
    lines = [str(small), f"{what} in {options.output_dir}"]
    return "\n".join(lines + ([pushed(options, options.output_dir, repo_id)] if repo_id else []))


def _compressed(options, base: str) -> CompressedAdapter:
    shared = {"max_lora_rank": options.max_lora_rank, "size": options.size, "tolerance": options.tolerance}
    how = loading(options)
    if options.eval_file is None:
        model = load_given(options.adapter, base, **how)
        return compress(model, rank=options.rank if options.energy is None else options.energy, **shared)
    tokenizer = load_tokenizer(options.adapter, base)
    task, rows = task_of(read_rows(options.eval_file), options.eval_file, tokenizer, options.max_length)
    model, train_rows = load_given(options.adapter, base, **how), None
    settle_padding(model, tokenizer, task, rows)
    if options.train_file is not None:
        _, train_rows = task_of(read_rows(options.train_file), options.train_file, tokenizer, options.max_length)
    with tempfile.TemporaryDirectory() as folder:
        args = task.training_arguments(folder, options, logging_strategy="no")
        return compress(
            model, rows, args=args, train_dataset=train_rows,
            heal_steps=options.heal_steps, **task.prepared, **shared,
        )  # fmt: skip
