"""`compress`: a smaller adapter from one that is trained, whoever trained it.

Every update is taken apart into its singular directions; each has a held-out contribution, and they enter by
contribution per parameter until the held-out loss is that of the whole adapter, within a tolerance. Nothing is
trained, unless a few steps of healing are asked for.
"""

import copy
import os
import tempfile
from dataclasses import dataclass, field

import torch
import transformers
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import Trainer, TrainingArguments

from autolora_trainer.errors import sentence
from autolora_trainer.files import write_json
from autolora_trainer.heldout.contributions import contributions
from autolora_trainer.heldout.prefixes import chosen_of, find_size, measured_prefixes
from autolora_trainer.heldout.split import split_held_out
from autolora_trainer.heldout.trainer import HeldOutMixin
from autolora_trainer.lora.cut import check_cuttable, cut, cuttable_parts, leading, singular_values
from autolora_trainer.ranks.adapter import fingerprint, is_other_model, public_model_name, save_adapter
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.curve import CURVE_FILE, Curve
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.ranks.learned import RANKS_FILE, LearnedRanks, ModuleRank
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.report.curve import curve_figure, save_rank_curve
from autolora_trainer.report.heatmap import figure_svg
from autolora_trainer.report.tables import format_table
from autolora_trainer.search.rules import filled, ordered
from autolora_trainer.training.passes import fix_loss_scale
from autolora_trainer.untouched import untouched

MOST_ROWS = 512  # of held-out rows that order, and of those that judge the size


@dataclass
class CompressedAdapter:
    """A smaller adapter, not yet written.

    Attributes:
        config, tensors: as PEFT saves them, {name in the file: tensor}; every module has scale 1.
        ranks: `LearnedRanks` of all modules of the given adapter, with what their components contribute.
        given: parameters, megabytes and largest rank of the given adapter.
        curve: held-out loss against size; None where no rows judged it.
        largest: {components of a point of the curve: largest rank there}.
    """

    config: LoraConfig
    tensors: dict[str, torch.Tensor]
    ranks: LearnedRanks
    given: dict[str, float]
    curve: Curve | None = None
    largest: dict[int, int] = field(default_factory=dict)

    @property
    def file(self) -> AdapterFile:
        """Its sizes, scales and dtypes."""
        return _as_file(self.config, self.tensors)

    def load(self, base_model: torch.nn.Module) -> PeftModel:
        """The adapter on its base model, as `PeftModel.from_pretrained` would load it."""
        model = get_peft_model(base_model, copy.deepcopy(self.config))
        set_peft_model_state_dict(model, dict(self.tensors))
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write adapter_config.json, adapter_model.safetensors, ranks.json and, where there is a curve, curve.json and
        its picture; the weights whole or not at all."""
        save_adapter(self.config, self.tensors, folder)
        self.ranks.save(os.path.join(folder, RANKS_FILE))
        if self.curve is not None:
            write_json(os.path.join(folder, CURVE_FILE), self.curve.to_dict(), indent=1)
            save_rank_curve(self.curve, folder, self.file.parameters)

    def plot(self):
        """The curve as a matplotlib figure, with the size that was chosen."""
        if self.curve is None:
            raise ValueError("No held-out rows judged this size, so there is no curve. Give eval_dataset.")
        return curve_figure(self.curve, self.file.parameters)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """Sizes, curve and grid in a notebook, as text and as HTML."""
        html = self.ranks._repr_mimebundle_()["text/html"]
        if self.curve is not None:
            html += figure_svg(self.plot())
        return {"text/plain": str(self), "text/html": html}

    def __str__(self) -> str:
        own, rows = self.file, []
        per_parameter = self.given["megabytes"] / self.given["all_parameters"]
        beside = self.given["all_parameters"] - self.given["parameters"]
        for point in reversed(self.curve.points[1:] if self.curve else ()):
            parameters, largest = point.parameters, self.largest[point.components]
            chosen = "  chosen" if parameters == own.parameters else ""
            whole = "  given" if parameters == self.given["parameters"] else ""
            megabytes = per_parameter * (parameters + beside)
            rows.append([f"{point.loss:.4f}", f"{parameters:,}", f"{megabytes:.2f}", f"{largest}{whole}{chosen}"])
        lines = [format_table(["held-out loss", "parameters", "MB", "largest rank"], rows, left=0)] if rows else []
        share = own.parameters / self.given["parameters"]
        lines.append(format_rank_table(self.ranks.ranks))
        lines.append(
            f"{own.parameters:,} of {self.given['parameters']:,} parameters ({share:.0%}), {own.megabytes:.2f} of "
            f"{self.given['megabytes']:.2f} MB; a server needs --max-lora-rank {lora_rank_for_servers(own.ranks)}"
        )
        return "\n".join(lines)


def compress(
    model: PeftModel | str | os.PathLike,
    eval_dataset=None,
    *,
    base_model=None,
    adapter_name: str = "default",
    args: TrainingArguments | None = None,
    trainer_class: type[Trainer] = Trainer,
    data_collator=None,
    processing_class=None,
    rank: int | float | None = None,
    size: str | int = "auto",
    tolerance: float = 0.01,
    max_lora_rank: int | None = None,
    heal_steps: int = 0,
    train_dataset=None,
    output_dir: str | os.PathLike | None = None,
) -> CompressedAdapter:
    """The smallest adapter whose held-out loss is that of the given one, within a tolerance. The given one, in memory
    or on disk, is never changed.

    Args:
        model: a `PeftModel` with a LoRA adapter; or an adapter's folder or Hub id, on `base_model` (a model, folder or
            Hub id; default: the one its config names).
        eval_dataset: rows that the adapter was not trained on, as `trainer_class` takes its training rows; a half of
            them orders the components, the other judges the size, at most 512 rows each.
        args, trainer_class, data_collator, processing_class: whose rows, loss and batches they are: a `Trainer` that
            is never trained (but for `heal_steps`), or TRL's `SFTTrainer` with an `SFTConfig` …
        rank: without rows: so many components everywhere, or, of a float, the share of the energy Σ σ² that every
            module keeps, as of PEFT's `save_as_lora`.
        size: auto, a number of parameters, or lora:R, as many as rank R everywhere.
        tolerance: share by which the held-out loss may grow, a standard error included.
        max_lora_rank: a cap on any module, for servers.
        heal_steps: so many steps of ordinary training afterwards, on `train_dataset`, with `args`.
        output_dir: where to save it; of several processes the first does.
    Raises:
        ValueError: one line, for an adapter that is not plain LoRA, or is of another base model, for rows that are
            missing or too few, and for a size out of reach.
    """
    _check(eval_dataset, rank, size, tolerance, max_lora_rank, heal_steps, train_dataset)
    model = model if isinstance(model, torch.nn.Module) else _loaded(os.fspath(model), base_model)
    check_cuttable(model, adapter_name)
    with untouched(model), tempfile.TemporaryDirectory() as folder:
        model.set_adapter(adapter_name)
        args = TrainingArguments(folder, report_to="none", disable_tqdm=True) if args is None else args
        prepared = {"data_collator": data_collator, "processing_class": processing_class}
        if rank is not None:
            found, curve, largest = {}, None, {}
            chosen = leading(singular_values(cuttable_parts(model, adapter_name)), rank)
        else:
            trainer = _measuring(trainer_class)(model=model, args=args, train_dataset=eval_dataset, **prepared)
            chosen, found, curve, largest = _chosen(trainer, adapter_name, size, tolerance, max_lora_rank)
        small = _compressed(model, adapter_name, chosen, found, curve, largest)
        if heal_steps:
            healing = copy.copy(args)
            healing.max_steps, healing.save_strategy, healing.load_best_model_at_end = heal_steps, "no", False
            small.tensors = _healed(model, small, lambda own: trainer_class(
                model=own, args=healing, train_dataset=train_dataset, **prepared))  # fmt: skip
    if output_dir is not None and args.process_index == 0:
        small.save_pretrained(output_dir)
    return small


def _check(eval_dataset, rank, size, tolerance, max_lora_rank, heal_steps, train_dataset) -> None:
    if (rank is None) == (eval_dataset is None):
        given = "neither" if rank is None else "both"
        raise ValueError(f"compress takes eval_dataset, or rank where there are no rows, got {given}. Give one.")
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


def _loaded(source: str, base_model) -> PeftModel:
    """An adapter of a folder or of the Hub on its base model."""
    file = AdapterFile.from_pretrained(source)
    base = base_model or file.config.get("base_model_name_or_path")
    name = type(base).__name__ if isinstance(base, torch.nn.Module) else base
    try:
        if not isinstance(base, torch.nn.Module):
            kind = getattr(
                transformers, f"AutoModelFor{KINDS.get(file.config.get('task_type'), '')}".removesuffix("For")
            )
            labels = {} if file.labels is None else {"num_labels": file.labels}
            base = kind.from_pretrained(base, **labels)
        model = PeftModel.from_pretrained(base, source)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(
            f"The adapter {source} does not load on {name}: {sentence(error)} Give the base_model that it was trained "
            "on."
        ) from error
    path = os.path.join(source, RANKS_FILE)
    if os.path.exists(path) and is_other_model(ranks := LearnedRanks.load(path), model):
        raise ValueError(f"{source} was learned on {ranks.base_model}, and this base model has other weights.")
    return model


KINDS = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
}


def _measuring(trainer_class: type[Trainer]) -> type[Trainer]:
    """A Trainer whose rows and loss are measured on."""
    return type(f"Measuring{trainer_class.__name__}", (HeldOutMixin, trainer_class), {})


def _chosen(trainer, adapter_name: str, size, tolerance: float, max_lora_rank: int | None):
    """(components, contributions, curve, largest ranks) of the smallest adapter that keeps the held-out loss."""
    fix_loss_scale(trainer)
    model, parts = trainer.model, cuttable_parts(trainer.model, adapter_name)
    trainer.accelerator.prepare_model(model, evaluation_mode=True)  # its autocast
    order_rows, size_rows = split_held_out(trainer.train_dataset, trainer.args.seed)
    own = {"adapter_name": adapter_name}
    with trainer._plain_loss():
        batches = trainer._drawn_batches(order_rows, MOST_ROWS)
        found = contributions(model, batches, trainer._held_out_loss, reduce=trainer._add_up, **own)
        costs = {name: part.cost for name, part in parts.items()}
        order = ordered(found, parts, 0, max_lora_rank)
        batches = trainer._drawn_batches(size_rows, MOST_ROWS)
        with measured_prefixes(model, batches, trainer._held_out_loss, collect=trainer._collect, **own) as losses:
            curve = find_size(losses, order, costs, tolerance, of_whole=True)
    components = order[: curve.kept] if size == "auto" else filled(order, costs, size)
    ranks = {p.components: {n: len(js) for n, js in chosen_of(order[: p.components]).items()} for p in curve.points}
    largest = {count: max(own.values(), default=0) for count, own in ranks.items()}
    return chosen_of(components), found, curve, largest


def _compressed(model, adapter_name: str, chosen, found, curve, largest) -> CompressedAdapter:
    config, tensors = cut(model, chosen, adapter_name)
    parts = cuttable_parts(model, adapter_name)
    modules = {
        name: ModuleRank(len(chosen.get(name, ())), (), tuple(found[name].tolist()) if found else ()) for name in parts
    }
    ranks = LearnedRanks(
        modules, public_model_name(model), fingerprint(model, parts), max(part.rank for part in parts.values()),
        rank_rule="contributions" if found else "singular values", curve=curve,
    )  # fmt: skip
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    given = _as_file(model.peft_config[adapter_name], state)
    sizes = {"parameters": given.parameters, "all_parameters": given.parameters + given.other_parameters}
    return CompressedAdapter(config, tensors, ranks, sizes | {"megabytes": given.megabytes}, curve, largest)


DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def _as_file(config: LoraConfig, tensors: dict[str, torch.Tensor]) -> AdapterFile:
    """Tensors as if they had been read from a file."""
    return AdapterFile(
        config.to_dict(), {name: (DTYPES.get(t.dtype, "F32"), tuple(t.shape)) for name, t in tensors.items()}
    )


def _healed(model: PeftModel, small: CompressedAdapter, make_trainer) -> dict[str, torch.Tensor]:
    """The tensors of a small adapter after a training; for it `model` is taken apart, which the caller mends."""
    own = small.load(model.unload())
    own.peft_config["default"].inference_mode = False
    own.set_adapter("default")
    make_trainer(own.train()).train()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(own).items()}
