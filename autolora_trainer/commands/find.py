"""`autolora find`: which modules, which ranks and how large, for the rows and the tool that somebody has."""

import os

import torch
import transformers
from peft import LoraConfig
from transformers.utils import logging

from autolora_trainer.commands.data import load_tokenizer, read_rows, task_of
from autolora_trainer.commands.export import TEXTS, check_new, export, write_adapter
from autolora_trainer.errors import is_first_process, sentence
from autolora_trainer.files import write_json
from autolora_trainer.find import RankSearch
from autolora_trainer.ranks.curve import CURVE_FILE
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.report.curve import format_curve, save_rank_curve
from autolora_trainer.report.heatmap import save_rank_heatmap

ADAPTER = "adapter"  # the folder of a trainable adapter within the output folder


def run(options) -> str:
    """Find the ranks of `options.model` for `options.data`; what there is to say of them."""
    check_new(options.output_dir)
    logging.set_verbosity_error()
    tokenizer = load_tokenizer(options.model, options.model)
    rows = read_rows(options.data)
    task, rows = task_of(rows, options.data, tokenizer, options.max_length)
    held_out = None
    if options.eval_file is not None:
        _, held_out = task_of(read_rows(options.eval_file), options.eval_file, tokenizer, options.max_length)
    labels = {} if task.labels is None else {"num_labels": task.labels}
    try:
        model = getattr(transformers, task.model_class).from_pretrained(options.model, **labels)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{options.model} does not load as {task.model_class}: {sentence(error)}") from error
    model.config.pad_token_id = tokenizer.pad_token_id
    targets = options.lora_target_modules
    settings = {"r": options.lora_r, "lora_alpha": options.lora_alpha, "task_type": task.task_type}
    args = task.arguments(
        os.path.join(options.output_dir, "search"), per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate, bf16=options.bf16, use_cpu=not torch.accelerator.is_available(),
        report_to="none", disable_tqdm=True, **task.own_arguments,
    )  # fmt: skip
    search = RankSearch(
        model, rows, LoraConfig(target_modules=targets[0] if len(targets) == 1 else targets, **settings),
        eval_dataset=held_out, args=args, trainer_class=task.trainer_class, size=options.size,
        tolerance=options.tolerance, max_lora_rank=options.max_lora_rank, initial_rank=options.initial_rank,
        search_steps=options.search_steps, output_dir=args.output_dir, seed=options.seed, **task.prepared,
    ).run()  # fmt: skip
    return "\n".join(_written(search, options)) if is_first_process() else ""


def _written(search: RankSearch, options) -> list[str]:
    """Write what was found; what there is to say of it."""
    ranks, folder, form = search.ranks, options.output_dir, options.format
    ranks.save(os.path.join(folder, RANKS_FILE))
    save_rank_heatmap(ranks, folder)
    lines = [format_rank_table(ranks.ranks)]
    if ranks.curve is not None:
        write_json(os.path.join(folder, CURVE_FILE), ranks.curve.to_dict(), indent=1)
        save_rank_curve(ranks.curve, folder, search.parameters)
        lines.append(format_curve(ranks.curve, search.parameters))
    megabytes = search.parameters * 4 / 1e6
    lines.append(
        f"{search.parameters:,} parameters, {megabytes:.2f} MB in float32; a server needs --max-lora-rank "
        f"{lora_rank_for_servers(ranks.ranks)}"
    )
    if form in TEXTS:
        lines += ["", export(ranks, form, lora_alpha=options.lora_alpha)]
    else:
        start = os.path.join(folder, ADAPTER)
        what = "a trainable adapter with what the search has learned"
        lines.append(write_adapter(search.config, search.start, start, form, options.pad, what))
    lines.append(f"ranks.json, curve.json and pictures in {folder}")
    return lines
