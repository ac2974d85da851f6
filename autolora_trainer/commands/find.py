"""`autolora find`: which modules, which ranks and how large, for the rows and the tool that somebody has."""

import os

import transformers
from peft import LoraConfig
from transformers import set_seed

from autolora_trainer.commands.data import load_tokenizer, read_rows, settle_padding, task_of
from autolora_trainer.commands.export import TEXTS, check_new, check_pad, export, write_adapter
from autolora_trainer.commands.surroundings import loading, one_bar, pushed, repository
from autolora_trainer.drawing import drawn
from autolora_trainer.errors import is_first_process, sentence
from autolora_trainer.files import refuse_links
from autolora_trainer.find.rank_search import RankSearch
from autolora_trainer.hub.adapter_card import write_adapter_card
from autolora_trainer.hub.public import public_command
from autolora_trainer.hub_client import bounded_waits
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.report.curve import format_curve
from autolora_trainer.report.findings import save_findings
from autolora_trainer.report.page import PAGE_FILE, save_page
from autolora_trainer.runs.record import seen, write_record
from autolora_trainer.training.processes import launched

ADAPTER = "adapter"  # the folder of a trainable adapter within the output folder
SENTENCE = (
    "A LoRA adapter for {base}, ready to be trained: modules and ranks were chosen by what they take off the loss of "
    "held-out rows in a short search, and it holds what that search has learned."
)


@bounded_waits()
def run(options) -> str:
    """Find the ranks of `options.model` for `options.data`; what there is to say of them."""
    launched()
    repo_id = repository(options)
    if repo_id is not None and options.format in TEXTS:
        raise ValueError(f"--push_to_hub uploads an adapter, got --format {options.format}. Add --format adapter.")
    check_pad(options)
    if options.resume_from_checkpoint:
        if os.path.exists(os.path.join(options.output_dir, RANKS_FILE)):
            return f"already finished: autolora show {options.output_dir}"
    else:
        check_new(options.output_dir)
    one_bar()
    search = _search(options).run(options.resume_from_checkpoint, keep_checkpoints=True)
    if not is_first_process():
        return ""
    lines = _written(search, options, repo_id)
    search.end()  # from here on nothing is lost
    if repo_id is not None:
        lines.insert(-1, pushed(options, os.path.join(options.output_dir, ADAPTER), repo_id))
    return "\n".join(lines)


def _search(options) -> RankSearch:
    """Rows, model and settings."""
    base, tokenizer = loading(options), load_tokenizer(options.model, options.model)
    rows = read_rows(options.data)
    task, rows = task_of(rows, options.data, tokenizer, options.max_length)
    held_out = None
    if options.eval_file is not None:
        _, held_out = task_of(read_rows(options.eval_file), options.eval_file, tokenizer, options.max_length)
    labels = {} if task.labels is None else {"num_labels": task.labels}
    set_seed(options.seed)  # of a head that the checkpoint lacks
    try:
        kind = getattr(transformers, task.model_class)
        model = kind.from_pretrained(options.model, trust_remote_code=False, **labels, **base)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{options.model} does not load as {task.model_class}: {sentence(error)}") from error
    settle_padding(model, tokenizer, task, rows)
    targets = options.lora_target_modules
    settings = {"r": options.lora_r, "lora_alpha": options.lora_alpha, "task_type": task.task_type}
    accumulation = {"gradient_accumulation_steps": options.gradient_accumulation_steps}
    args = task.training_arguments(options.output_dir, options, **accumulation)
    return RankSearch(
        model, rows, LoraConfig(target_modules=targets[0] if len(targets) == 1 else targets, **settings),
        eval_dataset=held_out, args=args, size=options.size,
        tolerance=options.tolerance, max_lora_rank=options.max_lora_rank, initial_rank=options.initial_rank,
        search_steps=options.search_steps, output_dir=options.output_dir, seed=options.seed, **task.prepared,
    )  # fmt: skip


def _written(search: RankSearch, options, repo_id: str | None) -> list[str]:
    """Write what was found, ranks.json of the output folder last; what there is to say of it."""
    ranks, folder, form = search.ranks, options.output_dir, options.format
    lines, end = [format_rank_table(ranks.ranks)], []
    if ranks.curve is not None:
        lines.append(format_curve(ranks.curve, search.parameters))
    size = f"{search.parameters:,} parameters, {search.parameters * 4 / 1e6:.2f} MB in float32"
    lines.append(f"{size}; a server needs --max-lora-rank {lora_rank_for_servers(ranks.ranks)}")
    if form in TEXTS:
        end = ["", export(ranks, form, lora_alpha=options.lora_alpha)]
    else:
        start = os.path.join(folder, ADAPTER)
        refuse_links(folder, [ADAPTER])
        before = seen(start)
        what = "a trainable adapter with what the search has learned"
        end = [write_adapter(search.config, search.start, start, form, options.pad, what)]
        save_findings(ranks, start, search.parameters)
        with drawn("README.md", "written"):
            write_adapter_card(start, ranks, SENTENCE, size, "start", options.typed, repo_id)
        write_record(start, before)
    with drawn(PAGE_FILE, "written"):
        save_page(folder, ranks, search.parameters, command=public_command(options.typed))
    save_findings(ranks, folder, search.parameters)
    return [*lines, *end, f"ranks.json, curve.json, pictures and {PAGE_FILE} in {folder}"]
