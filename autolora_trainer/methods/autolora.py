"""AutoLoRA: search (§4.2-4.3), ranks (§4.4), and the adapter that the final training retrains (§4.5)."""

import json
import os

from accelerate.utils import release_memory
from safetensors.torch import save_file

from autolora_trainer.arguments import SEARCH_STEPS, AutoLoraTrainingArguments, SearchArguments
from autolora_trainer.callbacks import RankSelectionCallback
from autolora_trainer.checkpoints import CheckpointManifest, read_json, read_manifest, write_atomically
from autolora_trainer.cost import CostMeter
from autolora_trainer.cut import CutCallback
from autolora_trainer.fused import adapt
from autolora_trainer.hub_client import save_without_asking
from autolora_trainer.methods.common import Built, check_first_component, shrink, skeleton_adapter
from autolora_trainer.ranks import LearnedRanks, is_other_model
from autolora_trainer.retrain import build_adapter, kept_components, load_kept_components
from autolora_trainer.rules import EVIDENCE, parse_budget
from autolora_trainer.termination import TerminationCallback
from autolora_trainer.trainer import AutoLoraTrainer

# Arguments of the final training that the search takes over (CONTRACT: rate, batch size, accumulation and schedule,
# and everything about the machine).
SHARED_ARGUMENTS = """
    per_device_train_batch_size train_sampling_strategy gradient_accumulation_steps lr_scheduler_type
    lr_scheduler_kwargs warmup_steps
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim bf16 fp16 tf32 use_cpu seed data_seed
    label_smoothing_factor non_finite
    full_determinism logging_steps report_to run_name disable_tqdm log_level save_strategy save_steps
    activation_checkpointing activation_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    dataloader_num_workers dataloader_pin_memory ddp_find_unused_parameters ddp_backend ddp_timeout
""".split()
KEPT_COMPONENTS = "kept_components.safetensors"


def check(run) -> None:
    """Raise `ValueError` for modules, a size or given ranks that would fail after a search or a retrain."""
    if not run.training.do_train:
        return
    costs, ranks = list(run.costs.values()), run.given_ranks
    if run.searches:
        skeleton_adapter(run)
        if run.method.rank_budget:
            check_first_component(run, parse_budget(run.method.rank_budget, costs), costs)
    elif run.method.retrain_cut:
        ranks.check_names(run.costs, exactly=True)
        largest = max(ranks.ranks, key=ranks.ranks.get)
        if ranks.ranks[largest] > ranks.initial_rank:
            raise ValueError(
                f"--retrain_cut begins with initial_rank {ranks.initial_rank} of --ranks in every module, and "
                f"{largest!r} has rank {ranks.ranks[largest]}. Drop --retrain_cut, or correct the file."
            )


def search_arguments(run) -> AutoLoraTrainingArguments:
    """The search's arguments: its own, and those it shares with the final training."""
    shared = {name: getattr(run.training, name) for name in SHARED_ARGUMENTS}
    if shared["save_strategy"] == "best":
        shared["save_strategy"] = "steps"  # there is no best in a search
    epochs, steps = run.method.search_epochs, run.method.search_max_steps
    if epochs is None and steps < 0:
        epochs, steps = 1.0, SEARCH_STEPS
    own = {name: getattr(run.method, name) for name in SearchArguments.__dataclass_fields__}
    return AutoLoraTrainingArguments(
        output_dir=run.search_dir,
        learning_rate=run.method.search_learning_rate or run.training.learning_rate,
        num_train_epochs=epochs or 1.0,
        max_steps=steps,
        remove_unused_columns=run.training.remove_unused_columns,
        **shared,
        **own,
    )


def search(run) -> tuple[LearnedRanks, dict]:
    """Run the search, or go on with an interrupted one; `ranks.json` is written last.

    Returns:
        The ranks, and the cost of the phase.
    """
    arguments = search_arguments(run)
    checkpoint = run.resume.search_checkpoint
    cost = CostMeter(earlier=read_manifest(checkpoint)["cost"] if checkpoint else None)
    termination = TerminationCallback()
    watching = [termination, cost, CheckpointManifest(cost, run.save_total_limit)]
    model = adapt(run.base_model(), run.lora_config(r=run.method.initial_rank))
    save_without_asking(model)
    train_rows, val_rows = run.split(arguments.val_fraction)
    trainer = AutoLoraTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        val_dataset=val_rows,
        data_collator=run.data_collator,
        processing_class=run.tokenizer,
        callbacks=[RankSelectionCallback(run.base_model_name), *watching],
    )
    run.say(
        f"search: {len(trainer.train_dataset)} rows in D_tr, {len(trainer.val_dataset)} in D_val, "
        f"{len(trainer.gates.names)} modules of rank {trainer.gates.initial_rank}"
    )
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        termination.restore()
    if termination.cut_short:
        termination.check(trainer.state)
    ranks = trainer.learned_ranks
    _, trend = trainer.held_out_evidence()
    if trend < EVIDENCE:
        run.warn(
            f"the held-out loss did not fall during the search (t = {trend:.1f}), so these ranks say more about the "
            "architecture than about the task. Raise --search_max_steps or --search_learning_rate to learn longer."
        )
    figures = cost.stop()
    if run.is_main_process:
        os.makedirs(run.search_dir, exist_ok=True)
        kept = list(ranks.ranks.values())
        path = os.path.join(run.search_dir, KEPT_COMPONENTS)
        save_file(
            kept_components(trainer.gates, trainer.search_state(), kept, run.method.rank_rule, trainer.model), path
        )
        trainer.state.save_to_json(os.path.join(run.search_dir, "trainer_state.json"))
        write_atomically(os.path.join(run.search_dir, "cost.json"), json.dumps(figures) + "\n")
        ranks.save(run.ranks_path)
    trainer.gates.remove()
    run.wait_for_everyone()
    termination.check(trainer.state)  # a signal in the last step: the search is done and kept
    return ranks, figures


def build(run) -> Built:
    if run.method.ranks:
        ranks, phases = run.given_ranks, {}
        run.say(f"ranks from {os.path.basename(run.method.ranks)}, no search")
    elif run.resume.search_done:
        ranks = LearnedRanks.load(run.ranks_path)
        phases = {"search": read_json(os.path.join(run.search_dir, "cost.json"))}
    else:
        ranks, cost = search(run)
        phases = {"search": cost}
        release_memory()  # the search's model hangs in cycles, and on a GPU there may be no room for two
    base = run.base_model()
    ranks.check_names(name for name, _ in base.named_modules())
    if is_other_model(ranks, base):
        run.warn(f"the ranks were learned on {ranks.base_model}, and this base model has other weights")
    if run.method.retrain_cut:
        wide = adapt(base, run.lora_config(r=ranks.initial_rank))
        return Built(
            wide,
            ranks,
            phases,
            [CutCallback(ranks, run.method.retrain_cut)],
            lambda wide: shrink(run, wide.cpu(), ranks),
        )
    model = build_adapter(base, ranks, run.lora_config(), run.method.scaling)
    if run.method.warm_start and not run.resume.train_checkpoint:
        load_kept_components(os.path.join(run.search_dir, KEPT_COMPONENTS), model)
    return Built(model, ranks, phases)
