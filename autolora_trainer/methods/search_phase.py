"""The search of `--method autolora` as a phase of a run: its arguments, its Trainer, and what it leaves in search/."""

import os

from safetensors.torch import save_file

from autolora_trainer.compat import CHECKPOINTING, save_without_asking
from autolora_trainer.files import replacing, write_json
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.methods.base import Job
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.runs.outputs import COST_FILE, HANDOVER_FILE, SEARCH_FOLDER
from autolora_trainer.search.arguments import AutoLoraTrainingArguments, SearchArguments, search_length
from autolora_trainer.search.callback import RankSelectionCallback
from autolora_trainer.search.handover import handover_tensors
from autolora_trainer.search.trainer import AutoLoraTrainer
from autolora_trainer.training.callbacks import TerminationCallback
from autolora_trainer.training.checkpoints import CheckpointManifest, read_manifest
from autolora_trainer.training.cost import CostMeter
from autolora_trainer.training.processes import wait_for_everyone

# Arguments of the final training that the search takes over: rate, batch size, accumulation, and everything about the
# machine; of the schedule what `search_length` leaves.
SHARED_ARGUMENTS = """
    per_device_train_batch_size train_sampling_strategy gradient_accumulation_steps lr_scheduler_type
    lr_scheduler_kwargs warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim bf16 fp16 tf32
    use_cpu seed data_seed label_smoothing_factor non_finite full_determinism logging_steps report_to run_name
    disable_tqdm log_level save_strategy save_steps
    torch_compile torch_compile_backend torch_compile_mode dataloader_num_workers dataloader_pin_memory
    ddp_find_unused_parameters ddp_backend ddp_timeout fsdp fsdp_config
""".split() + [CHECKPOINTING, f"{CHECKPOINTING}_kwargs"]


def search_arguments(request) -> AutoLoraTrainingArguments:
    """The search's arguments: its own, and those it shares with the final training."""
    settings, training = request.settings, request.training
    shared = {name: getattr(training, name) for name in SHARED_ARGUMENTS}
    if shared["save_strategy"] == "best":
        shared["save_strategy"] = "steps"  # there is no best in a search
    own = {name: getattr(settings, name) for name in SearchArguments.__dataclass_fields__}
    given = settings.search_max_steps, settings.search_epochs, settings.search_look_steps
    return AutoLoraTrainingArguments(
        output_dir=os.path.join(request.output_dir, SEARCH_FOLDER),
        learning_rate=settings.search_learning_rate or training.learning_rate,
        remove_unused_columns=training.remove_unused_columns,
        **{**shared, **own, **search_length(settings.rank_rule, training.warmup_steps, *given)},
    )


def search_trainer(job: Job, arguments: AutoLoraTrainingArguments, callbacks: list) -> AutoLoraTrainer:
    """The Trainer of the search, on the base model anew."""
    model = add_lora(job.source.base_model(), job.source.lora_config(r=job.request.settings.initial_rank))
    save_without_asking(model)
    split = job.split_three if arguments.finds_size else job.split
    train_rows, val_rows, *size_rows = split(arguments.val_fraction)
    return AutoLoraTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        val_dataset=val_rows,
        size_dataset=size_rows[0] if size_rows else None,
        data_collator=job.rows.collator,
        processing_class=job.rows.tokenizer,
        callbacks=[RankSelectionCallback(job.source.name), *callbacks],
    )


def search(job: Job, folder: str) -> tuple[LearnedRanks, dict]:
    """Run the search, or go on with an interrupted one; returns the ranks, and the cost of the phase."""
    request = job.request
    arguments, checkpoint = search_arguments(request), job.folder.resume.search_checkpoint
    cost = CostMeter(earlier=read_manifest(checkpoint)["cost"] if checkpoint else None)
    termination = TerminationCallback()
    watching = [termination, cost, CheckpointManifest(cost, request.save_total_limit)]
    trainer = search_trainer(job, arguments, watching)
    job.folder.clear()
    held_out = len(job.rows.datasets["train"]) - len(trainer.train_dataset)
    job.say(
        f"search: {len(trainer.train_dataset)} rows in D_tr, {held_out} in D_val, {len(trainer.gates.names)} modules "
        f"of rank {trainer.gates.initial_rank}"
    )
    if job.rows.sharing:
        job.say(f"search: {job.rows.sharing}")
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        termination.restore()
    if termination.cut_short:
        termination.check(trainer.state)
    ranks = trainer.learned_ranks
    cost.add(trainer.measured_passes, arguments.per_device_train_batch_size)
    figures = cost.stop()
    _keep(job, trainer, folder, figures)
    trainer.gates.remove()
    wait_for_everyone()
    termination.check(trainer.state)  # a signal in the last step: the search is done and kept
    return ranks, figures


def _keep(job: Job, trainer: AutoLoraTrainer, folder: str, figures: dict) -> None:
    """Write what the retrain needs, `ranks.json` last; every process takes part, since weights may be in shards."""
    ranks, directions = trainer.learned_ranks, job.request.settings.rank_rule != "threshold"
    kept = handover_tensors(trainer.gates, trainer.rank_selection.found.chosen, directions, trainer.model)
    if not job.request.is_main_process:
        return
    os.makedirs(folder, exist_ok=True)
    with replacing(os.path.join(folder, HANDOVER_FILE)) as temporary:
        save_file(kept, temporary)
    trainer.state.save_to_json(os.path.join(folder, "trainer_state.json"))
    write_json(os.path.join(folder, COST_FILE), figures)
    ranks.save(job.folder.ranks_path)
