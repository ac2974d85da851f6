"""`compress`: a smaller adapter from one that is trained, whoever trained it.

Every update is taken apart into its singular directions; each has a held-out contribution, and they enter by
contribution per parameter until the held-out loss is that of the whole adapter, within a tolerance. Nothing is
trained, unless a few steps of healing are asked for.
"""

import copy
import os
import tempfile
from contextlib import contextmanager

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import Trainer, TrainingArguments

from autolora_trainer.compat import CHECKPOINTING
from autolora_trainer.heldout.contributions import contributions
from autolora_trainer.heldout.groups import groups_of, warn_of_shared
from autolora_trainer.heldout.prefixes import SIZES, chosen_of, find_size, mean_loss, measured_prefixes
from autolora_trainer.heldout.split import check_rows, split_held_out
from autolora_trainer.heldout.trainer import HeldOutMixin
from autolora_trainer.lora.cut import check_cuttable, cut, cuttable_parts, leading, singular_values
from autolora_trainer.ranks.adapter import fingerprint, public_model_name
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.search.rules import filled, ordered
from autolora_trainer.shrink.given import load_given
from autolora_trainer.shrink.result import CompressedAdapter, as_file
from autolora_trainer.training.finite import FiniteStepMixin
from autolora_trainer.training.forecast import Forecast
from autolora_trainer.training.kinds import arguments_of, trainer_of
from autolora_trainer.training.padding import align_tokens, tokenizer_of, warn_of_padding
from autolora_trainer.training.passes import fix_loss_scale
from autolora_trainer.training.progress import phase, ticking
from autolora_trainer.untouched import untouched

MOST_ROWS = 512  # of held-out rows that order, and of those that judge the size


def compress(
    model: PeftModel | str | os.PathLike,
    eval_dataset=None,
    *,
    base_model=None,
    adapter_name: str = "default",
    args: TrainingArguments | None = None,
    trainer_class: type[Trainer] | None = None,
    data_collator=None,
    processing_class=None,
    rank: int | float | None = None,
    size: str | int = "auto",
    tolerance: float = 0.01,
    max_lora_rank: int | None = None,
    heal_steps: int = 0,
    train_dataset=None,
    device_map=None,
    output_dir: str | os.PathLike | None = None,
) -> CompressedAdapter:
    """The smallest adapter whose held-out loss is that of the given one, within a tolerance. The given one, in memory
    or on disk, is never changed.

    Args:
        model: a `PeftModel` with a LoRA adapter; or an adapter's folder or Hub id, on `base_model` (a model, folder or
            Hub id; default: the one its config names).
        eval_dataset: rows that the adapter was not trained on, as `trainer_class` takes its training rows; a half of
            them orders the components, the other judges the size, at most 512 rows each.
        args, trainer_class, data_collator, processing_class: whose rows, loss and batches they are: a trainer that is
            never trained (but for `heal_steps`); by default that of `args`, without any `SFTTrainer` for texts.
        rank: without rows: so many components everywhere, or, of a float, the share of the energy Σ σ² that every
            module keeps, as of PEFT's `save_as_lora`.
        size: auto, a number of parameters, or lora:R, as many as rank R everywhere.
        tolerance: share by which the held-out loss may grow, and with a standard error by twice that.
        max_lora_rank: a cap on any module, for servers.
        heal_steps: so many steps of ordinary training afterwards, on `train_dataset`, with `args`.
        device_map: of a base model that is loaded here, as `from_pretrained` takes it.
        output_dir: where to save it; of several processes the first does.
    Raises:
        ValueError: one line, for an adapter that is not plain LoRA, or is of another base model, for rows that are
            missing or too few, and for a size out of reach.
    """
    _check(eval_dataset, rank, size, tolerance, max_lora_rank, heal_steps, train_dataset)
    if not isinstance(model, torch.nn.Module):
        model = load_given(os.fspath(model), base_model, device_map=device_map)
    check_cuttable(model, adapter_name)
    with untouched(model), tempfile.TemporaryDirectory() as folder:
        model.set_adapter(adapter_name)
        align_tokens(model, tokenizer_of(processing_class, data_collator))
        trainer_class = trainer_class or trainer_of(args, eval_dataset)
        if args is None:
            args = arguments_of(trainer_class)(folder, bf16=False, report_to="none", disable_tqdm=True)
        prepared = {"data_collator": data_collator, "processing_class": processing_class}
        if rank is not None:
            found, curve, largest = {}, None, {}
            chosen = leading(singular_values(cuttable_parts(model, adapter_name)), rank)
        else:
            with _weights_kept(model):
                trainer = _measuring(trainer_class)(model=model, args=args, train_dataset=eval_dataset, **prepared)
            if train_dataset is not None:
                warn_of_shared(trainer, train_dataset=train_dataset, eval_dataset=trainer.train_dataset)
            chosen, found, curve, largest = _chosen(trainer, adapter_name, size, tolerance, max_lora_rank)
        small = _compressed(model, adapter_name, chosen, found, curve, largest)
        if heal_steps:
            healing = copy.copy(args)
            healing.max_steps, healing.save_strategy, healing.load_best_model_at_end = heal_steps, "no", False
            small.tensors = _healed(model, small, lambda own: _healing(trainer_class)(
                model=own, args=healing, train_dataset=train_dataset, **prepared))  # fmt: skip
    if output_dir is not None and args.process_index == 0:
        small.save_pretrained(output_dir)
    return small


def _check(eval_dataset, rank, size, tolerance, max_lora_rank, heal_steps, train_dataset) -> None:
    if (rank is None) == (eval_dataset is None):
        given = "neither" if rank is None else "both"
        raise ValueError(f"compress takes eval_dataset, or rank where there are no rows, got {given}. Give one.")
    check_rows(eval_dataset, "eval_dataset")
    if rank is not None and (size != "auto" or max_lora_rank is not None):
        raise ValueError("rank decides the size alone, got size or max_lora_rank beside it. Drop one of them.")
    if isinstance(rank, bool) or (rank is not None and not (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1)):
        raise ValueError(f"rank must be a whole number, or a share of the energy between 0 and 1, got {rank!r}.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}. 0.01 lets the held-out loss grow by 1 %.")
    if max_lora_rank is not None and max_lora_rank < 1:
        raise ValueError(f"max_lora_rank must be at least 1, got {max_lora_rank}.")
    if heal_steps < 0 or (heal_steps and train_dataset is None):
        raise ValueError(f"heal_steps {heal_steps} trains on train_dataset, and needs 0 or more. Give train_dataset.")


def _measuring(trainer_class: type[Trainer]) -> type[Trainer]:
    """A Trainer whose rows and loss are measured on."""
    return type(f"Measuring{trainer_class.__name__}", (HeldOutMixin, trainer_class), {})


@contextmanager
def _weights_kept(model: torch.nn.Module):
    """Inside, a trainer is made: TRL rounds to bfloat16 what is trained on a base of 4 or 8 bits, and here that is the
    adapter which is measured and cut."""
    held = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, data in held.items():
        parameter.data = data.to(parameter.device)


def _healing(trainer_class: type[Trainer]) -> type[Trainer]:
    """A Trainer that takes no step of which a weight would be no number."""
    return type(f"Healing{trainer_class.__name__}", (FiniteStepMixin, trainer_class), {})


def _chosen(trainer, adapter_name: str, size, tolerance: float, max_lora_rank: int | None):
    """(components, contributions, curve, largest ranks) of the smallest adapter that keeps the held-out loss."""
    fix_loss_scale(trainer)
    if getattr(trainer.args, CHECKPOINTING):  # which Trainer sees to in `train` alone
        getattr(trainer.model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    model, parts = trainer.model, cuttable_parts(trainer.model, adapter_name)
    trainer.accelerator.prepare_model(model, evaluation_mode=True)  # its autocast
    rows = trainer.train_dataset
    warn_of_padding(trainer, rows)
    order_rows, size_rows = split_held_out(rows, trainer.args.seed, groups_of(trainer, rows))
    own = {"adapter_name": adapter_name}
    with trainer._plain_loss():
        ordering, judging = (trainer._drawn_batches(rows, MOST_ROWS) for rows in (order_rows, size_rows))
        passes, at_once = 2 * len(ordering) + SIZES * len(judging) / 3, trainer.args.per_device_train_batch_size
        forecast = Forecast("compress", passes, at_once, model, trainer.is_world_process_zero(), trains=False)
        with phase(trainer, "contributions", len(ordering)) as tick:
            rows = ticking(ordering, lambda: (tick(), forecast.passed(2)))
            found = contributions(model, rows, trainer._held_out_loss, shares=False, reduce=trainer._add_up, **own)
        costs = {name: part.cost for name, part in parts.items()}
        order = ordered(found, parts, 0, max_lora_rank)
        prefixes = measured_prefixes(model, judging, trainer._held_out_loss, collect=trainer._collect, **own)
        with phase(trainer, "curve", SIZES) as tick, prefixes as losses:

            def counted(components):
                found = losses(components)
                tick(loss=mean_loss(found))
                return found

            curve = find_size(counted, order, costs, tolerance, of_whole=True)
    components = order[: curve.kept] if size == "auto" else filled(order, costs, size)
    ranks = {p.components: {n: len(js) for n, js in chosen_of(order[: p.components]).items()} for p in curve.points}
    largest = {count: max(own.values(), default=0) for count, own in ranks.items()}
    return chosen_of(components), found, curve, largest


def _compressed(model, adapter_name: str, chosen, found, curve, largest) -> CompressedAdapter:
    config, tensors = cut(model, chosen, adapter_name)
    parts = cuttable_parts(model, adapter_name)
    modules = {
        name: ModuleRank(len(chosen.get(name, ())), (), tuple(found[name].tolist()) if found else (), part.experts)
        for name, part in parts.items()
    }
    ranks = LearnedRanks(
        modules, public_model_name(model), fingerprint(model, parts), max(part.rank for part in parts.values()),
        rank_rule="contributions" if found else "singular values", curve=curve,
    )  # fmt: skip
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    given = as_file(model.peft_config[adapter_name], state)
    sizes = {"parameters": given.parameters, "all_parameters": given.parameters + given.other_parameters}
    before = {name: part.rank for name, part in parts.items()}
    return CompressedAdapter(config, tensors, ranks, sizes | {"megabytes": given.megabytes}, before, curve, largest)


def _healed(model: PeftModel, small: CompressedAdapter, make_trainer) -> dict[str, torch.Tensor]:
    """The tensors of a small adapter after a training; for it `model` is taken apart, which the caller mends."""
    own = small.load(model.unload())
    own.peft_config["default"].inference_mode = False
    own.set_adapter("default")
    trainer = make_trainer(own.train())
    trainer.train()
    trainer.check_finite()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(own).items()}
