"""Every other method of PEFT, by `--peft_type`: IA3, prefix and prompt tuning, P-tuning, LLaMA-Adapter, DoRA, VeRA,
RandLoRA, LoHa, OFT and so on, with PEFT's own defaults unless `--peft_kwargs` sets them.

The table here has what PEFT leaves open (how many virtual tokens), and what it cannot do; whatever else PEFT or the
model refuses shows when the adapter is built and tried on two rows, before anything is written.
"""

import dataclasses
import difflib
import inspect
import json
from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel, PeftType, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS

from autolora_trainer.errors import one_line, shown
from autolora_trainer.hub.card import Card
from autolora_trainer.hub.public import public_name
from autolora_trainer.lora.experts import routers
from autolora_trainer.lora.heads import head_parameters
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.lora.targets import named_targets
from autolora_trainer.methods.base import Built, Job, Method, Plan, peft_type_in
from autolora_trainer.methods.lora import ALL_LINEAR, QUERY_VALUE
from autolora_trainer.tasks.lengths import longest_row, positions
from autolora_trainer.training.padding import padding_error, tolerance, two_lengths
from autolora_trainer.training.processes import refuse_sharding
from autolora_trainer.training.trainer import FinalTrainer, WholeTensorsTrainer
from autolora_trainer.values import setting

# methods of their own name
SHORT = {"ia3": "IA3", "prefix_tuning": "PREFIX_TUNING", "prompt_tuning": "PROMPT_TUNING", "p_tuning": "P_TUNING"}
# other names of PEFT's types, with what makes the difference
ALIASES = {
    "DORA": ("LORA", {"use_dora": True}),
    "RSLORA": ("LORA", {"use_rslora": True}),
    "LLAMA_ADAPTER": ("ADAPTION_PROMPT", {}),
    "BONE": ("MISS", {}),  # PEFT's newer name
}

VIRTUAL_TOKENS = 20  # PEFT has no default; its documentation's examples have 20
PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING")  # virtual tokens before the words of the text
REFUSED = {
    "ADALORA": "is a method of its own here. Type --method adalora",
    "XLORA": "mixes adapters that are trained already. Type --method lora",
    "POLY": "needs a task id in every row, and there is one task here. Type another --peft_type",
    "MULTITASK_PROMPT_TUNING": "needs a task id in every row, and there is one task here. Type --method prompt_tuning",
    "CPT": "needs marked examples in every row, which no script makes. Type --method prompt_tuning",
}


@dataclass
class PeftTypeArguments:
    peft_type: str | None = setting(None, "The type of --method peft: IA3, PREFIX_TUNING, DORA, VERA, RANDLORA ….")
    peft_kwargs: str | None = setting(
        None, "Settings of its PEFT config as JSON, e.g. '{\"num_virtual_tokens\": 10}'."
    )


def resolve(asked: str | None) -> tuple[str, dict]:
    """(PEFT's name of the type, settings that an alias stands for), or `ValueError` where there is no such type."""
    known = sorted({*(t.value for t in CONFIGS), *ALIASES} - set(REFUSED))
    if asked is None:
        raise ValueError(f"--method peft needs --peft_type, one of {', '.join(known)}.")
    name = asked.upper().replace("-", "_")
    name, settings = ALIASES.get(name, (name, {}))
    if name not in PeftType.__members__ or PeftType[name] not in CONFIGS:
        hint = _hint(name, known, "They are")
        raise ValueError(f"--peft_type must be one of PEFT's types, got {asked!r}. {hint}")
    if name in REFUSED:
        raise ValueError(f"--peft_type {name} {REFUSED[name]}.")
    return name, dict(settings)


def _hint(word: str, known: list[str], verb: str) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"Did you mean {close[0]}?" if close else f"{verb} {', '.join(known)}."


def learns_prompts(name: str) -> bool:
    """Whether a type trains virtual tokens: prefix tuning, prompt tuning and their like."""
    return issubclass(CONFIGS[PeftType[name]], PromptLearningConfig)


def given_settings(peft_kwargs: str | None, name: str) -> dict:
    """`--peft_kwargs` as a dict.

    Raises:
        ValueError: if it is no JSON object, or sets what the type does not have or the script decides.
    """
    if peft_kwargs is None:
        return {}
    try:
        given = json.loads(peft_kwargs)
    except ValueError as error:
        raise ValueError(
            f"--peft_kwargs is not JSON: {str(error).splitlines()[0]}. Type e.g. '{{\"r\": 16}}'."
        ) from None
    if not isinstance(given, dict):
        raise ValueError(f"--peft_kwargs must be a JSON object, e.g. '{{\"r\": 16}}', got {peft_kwargs}.")
    decided = {field.name for field in dataclasses.fields(PeftConfig)}
    config = CONFIGS[PeftType[name]]
    possible = [field.name for field in dataclasses.fields(config) if field.init and field.name not in decided]
    for key in given:
        if key not in possible:
            hint = _hint(key, possible, "It has")
            raise ValueError(f"--peft_kwargs sets {key!r}, and {config.__name__} has no such setting. {hint}")
    return given


def peft_config(job: Job, name: str, settings: dict, model: torch.nn.Module) -> PeftConfig:
    """The configuration of the run's adapter for `model`: PEFT's defaults, our table, the arguments."""
    asked, fresh = job.request.settings, job.source.fresh_modules
    given = given_settings(asked.peft_kwargs, name)
    if name == "TRAINABLE_TOKENS" and not given.get("token_indices"):
        raise ValueError(
            "--peft_type TRAINABLE_TOKENS needs the tokens to train. Add --peft_kwargs '{\"token_indices\": [5, 6]}'."
        )
    if name == "LORA" and given.get("init_lora_weights") == "eva":
        raise ValueError("--peft_kwargs init_lora_weights=eva needs a pass over the rows. Type --method eva.")
    if name == "LORA":
        return named_targets(model, job.source.lora_config(**{"r": asked.rank, **settings, **given}))
    if asked.lora_r is not None:
        raise ValueError(
            f"--lora_r {asked.lora_r} is for LoRA, got --peft_type {name}. Set what it has in --peft_kwargs, "
            f"e.g. '{{\"r\": {asked.lora_r}}}'."
        )
    config = CONFIGS[PeftType[name]]
    fields = {field.name for field in dataclasses.fields(config)}
    if "num_virtual_tokens" in fields:
        settings["num_virtual_tokens"] = VIRTUAL_TOKENS
    if name == "ADAPTION_PROMPT":  # LLaMA-Adapter (Zhang et al. 2023b): 10 tokens in the upper 30 of 32 layers
        settings |= {"adapter_len": 10, "adapter_layers": max(1, model.config.num_hidden_layers - 2)}
    if fresh and "modules_to_save" in fields:
        settings["modules_to_save"] = list(fresh)
    elif fresh:
        raise ValueError(
            f"--peft_type {name} would leave {fresh[0]!r} as it was drawn: {job.request.model.model_name_or_path} "
            "does not hold it. Type --method lora, or give another --model_name_or_path."
        )
    modules = asked.lora_target_modules
    targets = default_targets(name, model) if modules in (None, [QUERY_VALUE]) else modules
    if targets == [ALL_LINEAR] and "exclude_modules" in fields and not routers(model):
        settings |= {"target_modules": ALL_LINEAR, "exclude_modules": job.source.lora_config().exclude_modules}
    elif targets and "target_modules" in fields:
        # what all-linear means to LoRA, heads, experts and routers left out: this type can exclude no modules
        layers = lora_layers(job.source.rank_one_adapter).items() if targets == [ALL_LINEAR] else ()
        whole = [name.removesuffix(".weight") for name, layer in layers if getattr(layer, "num_experts", 1) == 1]
        settings["target_modules"] = whole or targets
    return config(task_type=job.request.task.task_type, **{**settings, **given})


def default_targets(name: str, model: torch.nn.Module) -> list[str] | None:
    """Modules to adapt where PEFT has no default for this type and model: layer norms for LN_TUNING, else LoRA's; None
    where PEFT has one."""
    own = getattr(TUNERS.get(PeftType[name]), "target_module_mapping", None)
    model_type = getattr(model.config, "model_type", None)
    if own is None or model_type in own:
        return None
    if name == "LN_TUNING":
        norms = [n for n, module in model.named_modules() if type(module).__name__.endswith("Norm")]
        return sorted({n.rpartition(".")[2] for n in norms})
    default = DEFAULT_TARGETS.get(model_type)
    return list(default) if isinstance(default, (list, set, tuple)) else None


def refuse_task(name: str, task: str, label_smoothing: float) -> None:
    """Raise `ValueError` for tasks that PEFT takes and gets wrong."""
    if name in PROMPT_TYPES and task == "TOKEN_CLS":
        raise ValueError(
            f"--peft_type {name} puts virtual tokens before the words, and PEFT does not move the words' labels. Type "
            "--method prefix_tuning."
        )
    if learns_prompts(name) and label_smoothing and task != "CAUSAL_LM":
        raise ValueError(
            f"Trainer has no label smoothing for virtual tokens, got --peft_type {name} and "
            f"--label_smoothing_factor {label_smoothing}. Set it to 0."
        )
    if name == "TRAINABLE_TOKENS" and task != "CAUSAL_LM":
        raise ValueError(
            "--peft_type TRAINABLE_TOKENS leaves the new head of a classifier as it was drawn. Type "
            "another --peft_type."
        )
    if name == "LILY" and task == "CAUSAL_LM":
        raise ValueError(
            "--peft_type LILY weighs its experts by the mean over a whole text, so that a token would see later ones. "
            "Type another --peft_type."
        )


def check_positions(datasets: dict, model: PeftModel) -> None:
    """Raise `ValueError` where virtual tokens and a row together have more tokens than the model has positions."""
    config, limit = model.peft_config["default"], positions(model)
    if not config.is_prompt_learning or limit is None:
        return
    for split, dataset in datasets.items():
        longest = longest_row(dataset)
        if longest + config.num_virtual_tokens > limit:
            raise ValueError(
                f"{config.num_virtual_tokens} virtual tokens and the longest {split} row, {longest} tokens, exceed "
                f"the {limit} positions of {type(model.get_base_model()).__name__}. Lower --max_seq_length to "
                f"{limit - config.num_virtual_tokens}, or num_virtual_tokens in --peft_kwargs."
            )


def try_two_rows(job: Job, model: PeftModel) -> None:
    """One forward pass on two rows: a type that cannot do the task fails here and not after a search for rows."""
    head = set(map(id, head_parameters(model).values()))
    if not any(p.requires_grad and id(p) not in head for p in model.parameters()):
        raise ValueError("it has nothing to train there")
    columns = inspect.signature(model.get_base_model().forward).parameters
    train = job.rows.datasets["train"]
    rows = [train[index] for index in range(min(2, len(train)))]
    batch = job.rows.collator([{key: value for key, value in row.items() if key in columns} for row in rows])
    device = next(model.parameters()).device  # bitsandbytes loads onto an accelerator where there is one
    batch = {key: value.to(device) for key, value in batch.items()}
    model.eval()
    with torch.no_grad():
        loss = model(**batch).loss
    model.train()
    if not torch.isfinite(loss):
        raise ValueError(f"its loss on the first two rows is {loss.item()}")
    pair = None if job.request.data.pad_to_max_length else two_lengths(train)
    if pair is not None and (error := padding_error(model, job.rows.collator, *pair)) > tolerance(model):
        raise ValueError(f"what it computes of a row depends on the rows beside it: padding changes it by {error:.0%}")


class PeftTypes(Method):
    """`peft`, whose type is `--peft_type`, or a type under a name of its own."""

    def __init__(self, name: str, peft_type: str | None = None):
        self.name, self.peft_type = name, peft_type
        self.arguments = PeftTypeArguments if peft_type is None else None
        own = {"lora_r"} if peft_type is None else {"peft_kwargs"}
        self.reads = frozenset({"lora_target_modules", *own})

    def check_request(self, request) -> None:
        refuse_sharding(request.training, f"--method {self.name} saves whole tensors")
        if request.training.save_only_model and request.training.load_best_model_at_end:
            raise ValueError(
                f"--load_best_model_at_end takes the best weights of --method {self.name} from what a checkpoint "
                "holds for a resume, and --save_only_model leaves that out. Drop one of the two."
            )

    def prepare(self, job: Job) -> Plan:
        name, settings = resolve(self.peft_type or job.request.settings.peft_type)
        task_type, smoothing = job.request.task.task_type, job.request.training.label_smoothing_factor
        arguments = {}
        if task_type == "CAUSAL_LM" and smoothing and learns_prompts(name):
            # generation has it by default, and Trainer 5.23 fails with it: it looks for the model inside an adapter
            arguments = {"label_smoothing_factor": 0.0}
            job.warn(
                "no label smoothing: Trainer has none for virtual tokens. Other methods have it; compare with care."
            )
        base = job.source.base_model()
        refuse_task(name, task_type, smoothing)
        try:
            model = get_peft_model(base, peft_config(job, name, settings, base))
            try_two_rows(job, model)
        except Exception as error:  # PEFT raises nearly every kind
            reason = shown(one_line(error), 300).rstrip(".")
            if reason.startswith(("--peft", "--method")):
                raise
            raise ValueError(
                f"--peft_type {name} does not work with {type(base).__name__} for {task_type}: {reason}. Give "
                "its settings with --peft_kwargs, its modules with --lora_target_modules, or another --peft_type."
            ) from error
        check_positions(job.rows.datasets, model)
        # what PEFT saves is for use, not always for going on
        trainer = FinalTrainer if name == PeftType.LORA else WholeTensorsTrainer
        return lambda: Built(model, trainer=trainer, arguments=arguments)

    def card(self, folder: str) -> Card:
        if self.peft_type is not None:
            return super().card(folder)
        name = public_name(peft_type_in(folder) or self.name).lower()
        return Card.of_adapter(name, name == "lora")
