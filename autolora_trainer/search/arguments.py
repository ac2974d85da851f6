"""What the search adds to `transformers.TrainingArguments`."""

import logging
import math
from dataclasses import dataclass

from transformers import TrainingArguments

from autolora_trainer.errors import is_first_process
from autolora_trainer.training.finite import NonFiniteArguments
from autolora_trainer.values import check_choice, check_numbers, setting

logger = logging.getLogger("autolora_trainer")
RANK_RULE_CHOICES = ("contributions", "threshold")
REMOVED_RULES = ("adaptive", "strength", "singular", "sensitivity", "uniform")  # until 0.1.0; worse than contributions
LOOK_STEPS, SEARCH_STEPS = 28, 112  # of the scripts' search: weight steps between two looks, and at most
MOST_ROWS = 65_536  # of a step and a process
# Its rate does not fall: it is the beginning of a training, and not a short one (`benchmarks/README.md`).
SEARCH_SCHEDULE = {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {}}


def search_length(
    rank_rule: str, warmup_steps: float, max_steps: int = -1, epochs: float | None = None, look_steps: int = 0
) -> dict:
    """Arguments of a search within a training: its length, and the schedule of its rate.

    A length that nobody gives ends when the search has settled, after `SEARCH_STEPS` steps at most. The training's
    schedule would be too long for it: a search has a rate of its own, which rises for `LOOK_STEPS` steps at most (a
    share of epochs stays one). Searches by the paper's rule whose length is given keep the training's, as the paper
    has it.
    """
    if given := max_steps > 0 or epochs is not None:
        length = {"max_steps": max_steps, "search_look_steps": look_steps}
    else:
        looks = LOOK_STEPS if rank_rule == "contributions" else 0
        length = {"max_steps": SEARCH_STEPS, "search_look_steps": look_steps or looks}
    length["num_train_epochs"] = epochs or 1.0
    if given and rank_rule == "threshold":
        return length
    if warmup_steps < 1 and length["max_steps"] > 0:
        warmup_steps = math.ceil(warmup_steps * length["max_steps"])
    return length | SEARCH_SCHEDULE | {"warmup_steps": min(warmup_steps, LOOK_STEPS)}


# The hypergradients that read a setting.
HYPERGRADIENTS_OF = {
    "virtual_step": ("finite_difference", "exact"),
    "inner_lr": ("finite_difference", "exact"),
    "finite_difference": ("finite_difference",),
    "finite_difference_radius": ("finite_difference",),
}


def check_effect(arguments, given) -> None:
    """Raise `ValueError` for a setting among the names `given` that the chosen hypergradient does not read."""
    for name, hypergradients in HYPERGRADIENTS_OF.items():
        if name in given and arguments.hypergradient not in hypergradients:
            raise ValueError(
                f"{name} has no effect on hypergradient {arguments.hypergradient}, it is for "
                f"{' and '.join(hypergradients)}. Drop it, or add --hypergradient finite_difference."
            )


def check_schedule(schedule, what: str) -> None:
    """Raise `ValueError` for a schedule that follows evaluations, in a training without any, e.g. "the search"."""
    if schedule in ("reduce_lr_on_plateau", "greedy"):
        raise ValueError(
            f"lr_scheduler_type {getattr(schedule, 'value', schedule)} follows evaluations, and {what} makes none. "
            "Type another, e.g. linear, or search with that and retrain with this: --ranks."
        )


@dataclass
class SearchArguments:
    """The settings of the search, shared by `AutoLoraTrainingArguments` and the scripts (paper: §4 and §5.1)."""

    # Gates (Eq. 2-3)
    initial_rank: int = setting(8, "k, the number of rank-1 components of every LoRA update during the search (§5.1).")
    constraint: str = setting(
        "softmax", "How selection logits become selection variables: softmax (Eq. 3), sigmoid or none (§5.5)."
    )
    gate_scaling: str = setting(
        "plain",
        "plain: gates are α over its uniform start, so the search begins as plain LoRA and learns at its "
        "pace; paper: α itself (Eq. 2), which makes updates k times smaller.",
    )

    # Hypergradient (Eq. 4-5)
    hypergradient: str = setting(
        "first_order",
        "first_order (eta = 0, §5.5), finite_difference (DARTS, the paper's way) or exact (double "
        "backward; small models).",
    )
    hypergradient_interval: int = setting(
        4, "Take a selection step every T weight steps. The paper takes one at every step (T=1)."
    )
    virtual_step: str = setting(
        "adamw",
        "The virtual weight step: sgd is Eq. 4 as written; adamw is the step that the optimizer really "
        "takes, preconditioned and clipped (not in the paper).",
    )
    inner_lr: float | None = setting(None, "eta of Eq. 4. Default: the weights' current learning rate.")
    finite_difference: str = setting(
        "central",
        "central: passes on both sides of the weights (DARTS); one_sided: the weight step's own pass is "
        "one of the two: one pass less in fp32, none less in bf16 (not in the paper).",
    )
    finite_difference_radius: float | None = setting(
        None,
        "R: the weights move by R along the direction of the difference. Default: 0.01 for central "
        "(DARTS), 0.001 for one_sided.",
    )
    selection_learning_rate: float = setting(1e-2, "Learning rate of the selection logits (the paper: 1e-3, §5.1).")
    val_fraction: float = setting(0.2, "Share of the training rows that D_val takes (the paper: 0.5, §5.2).")

    # From selection variables to ranks (§4.4)
    rank_rule: str = setting(
        "contributions",
        "How ranks follow from the search: contributions (what components take off the held-out loss, per parameter) "
        "or threshold (§4.4).",
    )
    threshold: float | None = setting(
        None, "lambda of the rule `threshold`. Default: 1/k for softmax, 0.5 for sigmoid, layer mean for none."
    )
    size: str | None = setting(
        None,
        "Adapter parameters: a number, lora:R for as many as uniform LoRA of rank R, or auto: the size is found on "
        "held-out rows. Default: auto; of the rule threshold its count, of other methods rank 4.",
    )
    rank_budget: str | None = setting(None, "The old name of size.")
    tolerance: float = setting(
        0.06, "Share of the held-out gain that a size which is found may lose; a retrain wins most of it back."
    )
    max_lora_rank: int | None = setting(
        None, "The most that the rank of a module may be, for servers that have a cap."
    )
    min_rank: int | None = setting(
        None,
        "0 lets a module earn no rank at all and stay out of the adapter; 1 keeps every module. Default: 0 for "
        "contributions, else 1.",
    )
    search_look_steps: int = setting(
        0,
        "Look every so many weight steps whether the held-out gain is more than chance and the best components are "
        "those of the look before, and stop the search then. 0: never; of the scripts, where no length is given: 28.",
    )

    def __post_init__(self):
        self.check_search()

    def check_search(self):
        """Raise `ValueError` for a setting out of range, before anything is loaded."""
        check_choice("constraint", self.constraint, ("softmax", "sigmoid", "none"))
        check_choice("gate_scaling", self.gate_scaling, ("plain", "paper"))
        least = 2 if self.constraint == "softmax" else 1
        if self.initial_rank < least:
            reason = " (with softmax a single component has α = 1, whatever is learned)" * (self.initial_rank == 1)
            raise ValueError(
                f"initial_rank must be at least {least}{reason}, got {self.initial_rank}. The paper uses 8."
            )
        check_choice("hypergradient", self.hypergradient, ("finite_difference", "first_order", "exact"))
        check_choice("finite_difference", self.finite_difference, ("central", "one_sided"))
        check_choice("virtual_step", self.virtual_step, ("sgd", "adamw"))
        if self.rank_rule in REMOVED_RULES:
            raise ValueError(
                f"The rank rule {self.rank_rule} is gone: at equal size it is worse than contributions. Type "
                "--rank_rule contributions, or --rank_rule threshold for the paper's."
            )
        check_choice("rank_rule", self.rank_rule, RANK_RULE_CHOICES)
        self._settle_size()
        if self.hypergradient_interval < 1:
            raise ValueError(
                f"hypergradient_interval must be at least 1, got {self.hypergradient_interval}. The paper uses 1."
            )
        if not 0 < self.val_fraction < 1:
            raise ValueError(
                f"val_fraction must be between 0 and 1 (both splits need examples), got {self.val_fraction}. "
                "The paper uses 0.5."
            )
        check_numbers(self, {"a positive number": "selection_learning_rate finite_difference_radius"})
        if self.inner_lr is not None and not (math.isfinite(self.inner_lr) and self.inner_lr >= 0):
            raise ValueError(f"inner_lr must be zero or a positive number, got {self.inner_lr}.")
        optional = ("inner_lr", "finite_difference_radius")
        check_effect(self, [name for name in optional if getattr(self, name) is not None])
        self._check_threshold()
        if self.max_lora_rank is not None and self.rank_rule == "threshold":
            raise ValueError(
                "max_lora_rank caps the ranks of contributions, and rank_rule threshold gives a module up to "
                f"initial_rank, {self.initial_rank}. Lower that, and drop max_lora_rank."
            )
        if self.min_rank not in (0, 1, None):
            raise ValueError(f"min_rank must be 0 or 1, got {self.min_rank}.")
        check_numbers(
            self,
            {
                "at least 0": "search_look_steps",
                "at least 0 and below 1": "tolerance",
                "at least 1": "max_lora_rank",
            },
        )

    def _check_threshold(self) -> None:
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(
                f"threshold must be a finite number, got {self.threshold}. The paper uses 1/initial_rank."
            )
        if self.threshold is not None and self.rank_rule != "threshold":
            raise ValueError(
                f"threshold belongs to rank_rule 'threshold', got rank_rule {self.rank_rule!r}. "
                "Add --rank_rule threshold or drop --threshold."
            )

    def _settle_size(self) -> None:
        """`rank_budget` as `size`."""
        if self.rank_budget is not None and self.size not in (None, self.rank_budget):
            raise ValueError(
                f"rank_budget is the old name of size, got rank_budget {self.rank_budget} and size {self.size}. Drop "
                "rank_budget."
            )
        if self.rank_budget is not None and is_first_process():
            logger.warning(f"rank_budget is the old name of size. Type size {self.rank_budget}.")
        self.size, self.rank_budget = self.rank_budget if self.size is None else self.size, None
        if self.size == "auto" and self.rank_rule == "threshold":
            raise ValueError(
                "size auto is found by contributions, and rank_rule threshold has its own count. Give a number, "
                "lora:R, or no size."
            )

    @property
    def finds_size(self) -> bool:
        """Whether the size of the adapter is found on held-out rows."""
        return self.rank_rule == "contributions" and self.size in (None, "auto")

    @property
    def least_rank(self) -> int:
        """`min_rank`, or its default."""
        return (0 if self.rank_rule == "contributions" else 1) if self.min_rank is None else self.min_rank


@dataclass
class AutoLoraTrainingArguments(SearchArguments, NonFiniteArguments, TrainingArguments):
    """Arguments of `AutoLoraTrainer`: everything of `TrainingArguments`, which here describes **the search**, and
    the settings of the search itself.

    `learning_rate`, `num_train_epochs` and `max_steps` are those of the search; the retrain has its own
    `TrainingArguments`. LoRA's own settings stay in PEFT's `LoraConfig`.

    Raises:
        ValueError: for a setting out of range, and for what a search cannot have: `fp16` (its loss scale hides the
            hypergradient), `load_best_model_at_end` (it would bring back the weights of one step and the selection of
            another), `auto_find_batch_size`, `save_only_model`, a schedule that follows evaluations …
    """

    def __post_init__(self):
        if self.eval_strategy == "no":
            check_schedule(self.lr_scheduler_type, "the search")
        super(SearchArguments, self).__post_init__()  # TrainingArguments', or that of a subclass mixed in
        self.check_search()
        self.check_non_finite()
        if self.mixed_precision == "fp16":  # of fp16=True, or of accelerate's configuration
            raise ValueError(
                "The search does not run in fp16: its loss scale hides the hypergradient. Use bf16=True or fp32."
            )
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end is not for the search (weights and selection variables belong together). "
                "Set it for the retrain instead."
            )
        if (rows := self.per_device_train_batch_size * self.gradient_accumulation_steps) > MOST_ROWS:
            raise ValueError(
                f"per_device_train_batch_size x gradient_accumulation_steps are {rows:,} rows a step, and the search "
                f"draws as many held-out ones; at most {MOST_ROWS:,} are taken. Lower one of them."
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size tries batch sizes until one fits, and the search has a batch of D_val beside "
                "each. Give the search a per_device_train_batch_size, with gradient_accumulation_steps."
            )
        if self.save_only_model and self.save_strategy != "no":
            raise ValueError(
                "save_only_model leaves out what a search needs to resume. Drop it, or set save_strategy no."
            )
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy {self.hub_strategy.value} pushes checkpoints of the search, which hold its weights "
                'without its selection. Set hub_strategy="end", and push with trainer.push_to_hub().'
            )
        if self.adam_epsilon <= 0:
            raise ValueError(
                f"adam_epsilon must be a positive number, got {self.adam_epsilon}: lora_A has no gradient in the "
                "first step, and its step would be 0 / 0."
            )
        reads_adamw = self.hypergradient != "first_order" and self.virtual_step == "adamw"
        if reads_adamw and self.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(
                f"virtual_step adamw reads the state of PyTorch's AdamW, got optim {self.optim.value}. Use "
                "--virtual_step sgd, or --optim adamw_torch."
            )
