"""Every other method of PEFT, by `--peft_type`: IA3, prefix and prompt tuning, P-tuning, LLaMA-Adapter, DoRA, VeRA,
RandLoRA, LoHa, OFT and so on, with PEFT's own defaults unless `--peft_kwargs` sets them.

The table here has what PEFT leaves open (how many virtual tokens), and what it cannot do; whatever else PEFT or the
model refuses shows when the adapter is built and tried on two rows, before anything is written.
"""

import dataclasses
import difflib
import inspect
import json
import os

import pyarrow.compute as pc
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, PeftType, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from safetensors.torch import load_file, save_file

from autolora_trainer.errors import one_line
from autolora_trainer.fused import lora_layers
from autolora_trainer.heads import head_parameters
from autolora_trainer.methods.common import Built, refuse_sharding
from autolora_trainer.trainer_utils import RetrainTrainer

# methods of their own name
SHORT = {"ia3": "IA3", "prefix_tuning": "PREFIX_TUNING", "prompt_tuning": "PROMPT_TUNING", "p_tuning": "P_TUNING"}
# other names of PEFT's types, with what makes the difference
ALIASES = {
    "DORA": ("LORA", {"use_dora": True}),
    "RSLORA": ("LORA", {"use_rslora": True}),
    "LLAMA_ADAPTER": ("ADAPTION_PROMPT", {}),
    "BONE": ("MISS", {}),  # PEFT's newer name
}
TRAINABLE = "trainable.safetensors"

VIRTUAL_TOKENS = 20  # PEFT has no default; its documentation's examples have 20
PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING")  # virtual tokens before the words of the text
REFUSED = {
    "ADALORA": "is a method of its own here. Type --method adalora",
    "XLORA": "mixes adapters that are trained already. Type --method lora",
    "POLY": "needs a task id in every row, and there is one task here. Type another --peft_type",
    "MULTITASK_PROMPT_TUNING": "needs a task id in every row, and there is one task here. Type --method prompt_tuning",
    "CPT": "needs marked examples in every row, which no script makes. Type --method prompt_tuning",
}


def resolve(method) -> tuple[str, dict]:
    """(PEFT's name of the type, settings that an alias stands for) of `MethodArguments`.

    Raises:
        ValueError: where there is no such type, or none is given.
    """
    asked = SHORT.get(method.method, method.peft_type)
    known = sorted({*(t.value for t in CONFIGS), *ALIASES} - set(REFUSED))
    if asked is None:
        raise ValueError(f"--method peft needs --peft_type, one of {', '.join(known)}.")
    name, settings = ALIASES.get(asked.upper().replace("-", "_"), (asked.upper().replace("-", "_"), {}))
    if name not in PeftType.__members__ or PeftType[name] not in CONFIGS:
        close = difflib.get_close_matches(name, known, 1)
        raise ValueError(
            f"--peft_type must be one of PEFT's types, got {asked!r}."
            + (f" Did you mean {close[0]}?" if close else f" They are {', '.join(known)}.")
        )
    if name in REFUSED:
        raise ValueError(f"--peft_type {name} {REFUSED[name]}.")
    return name, dict(settings)


def learns_prompts(method) -> bool:
    """Whether a run's method trains virtual tokens: prefix tuning, prompt tuning and their like."""
    if method.method != "peft" and method.method not in SHORT:
        return False
    return issubclass(CONFIGS[PeftType[resolve(method)[0]]], PromptLearningConfig)


def given_settings(method, name: str) -> dict:
    """`--peft_kwargs` as a dict.

    Raises:
        ValueError: if it is no JSON object, or sets what the type does not have or the script decides.
    """
    if method.peft_kwargs is None:
        return {}
    try:
        given = json.loads(method.peft_kwargs)
    except ValueError as error:
        raise ValueError(
            f"--peft_kwargs is not JSON: {str(error).splitlines()[0]}. Type e.g. '{{\"r\": 16}}'."
        ) from None
    if not isinstance(given, dict):
        raise ValueError(f"--peft_kwargs must be a JSON object, e.g. '{{\"r\": 16}}', got {method.peft_kwargs}.")
    decided = {field.name for field in dataclasses.fields(PeftConfig)}
    config = CONFIGS[PeftType[name]]
    possible = [field.name for field in dataclasses.fields(config) if field.init and field.name not in decided]
    for key in given:
        if key not in possible:
            close = difflib.get_close_matches(key, possible, 1)
            hint = f"Did you mean {close[0]}?" if close else f"It has {', '.join(possible)}."
            raise ValueError(f"--peft_kwargs sets {key!r}, and {config.__name__} has no such setting. {hint}")
    return given


def peft_config(run, model: torch.nn.Module) -> PeftConfig:
    """The configuration of the run's adapter for `model`: PEFT's defaults, our table, the arguments."""
    name, settings = resolve(run.method)
    given = given_settings(run.method, name)
    if name == "TRAINABLE_TOKENS" and not given.get("token_indices"):
        raise ValueError(
            "--peft_type TRAINABLE_TOKENS needs the tokens to train. Add --peft_kwargs '{\"token_indices\": [5, 6]}'."
        )
    if name == "LORA" and given.get("init_lora_weights") == "eva":
        raise ValueError("--peft_kwargs init_lora_weights=eva needs a pass over the rows. Type --method eva.")
    if name == "LORA":
        return run.lora_config(**{"r": run.method.rank, **settings, **given})
    if run.method.lora_r is not None:
        raise ValueError(
            f"--lora_r {run.method.lora_r} is for LoRA, got --peft_type {name}. Set what it has in --peft_kwargs, "
            f"e.g. '{{\"r\": {run.method.lora_r}}}'."
        )
    config = CONFIGS[PeftType[name]]
    fields = {field.name for field in dataclasses.fields(config)}
    if "num_virtual_tokens" in fields:
        settings["num_virtual_tokens"] = VIRTUAL_TOKENS
    if name == "ADAPTION_PROMPT":  # LLaMA-Adapter (Zhang et al. 2023b): 10 tokens in the upper 30 of 32 layers
        settings |= {"adapter_len": 10, "adapter_layers": max(1, model.config.num_hidden_layers - 2)}
    if run.fresh_modules and "modules_to_save" in fields:
        settings["modules_to_save"] = list(run.fresh_modules)
    elif run.fresh_modules:
        raise ValueError(
            f"--peft_type {name} would leave {run.fresh_modules[0]!r} as it was drawn: {run.model.model_name_or_path} "
            "does not hold it. Type --method lora, or give another --model_name_or_path."
        )
    targets = run.method.lora_target_modules or default_targets(name, model)
    if targets == ["all-linear"] and "exclude_modules" in fields:
        settings |= {"target_modules": "all-linear", "exclude_modules": run.lora_config().exclude_modules}
    elif targets and "target_modules" in fields:
        settings["target_modules"] = all_linear(run, model) if targets == ["all-linear"] else targets
    return config(task_type=run.application.task_type, **{**settings, **given})


def all_linear(run, model: torch.nn.Module) -> list[str]:
    """What `all-linear` means to LoRA, heads left out, for types that can exclude no modules."""
    with torch.device("meta"):
        skeleton = get_peft_model(type(model)(model.config), run.lora_config(r=1))
    return list(lora_layers(skeleton))


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


def refuse_task(run) -> None:
    """Raise `ValueError` for tasks that PEFT takes and gets wrong."""
    name, task = resolve(run.method)[0], run.application.task_type
    if name in PROMPT_TYPES and task == "TOKEN_CLS":
        raise ValueError(
            f"--peft_type {name} puts virtual tokens before the words, and PEFT does not move the words' labels. Type "
            "--method prefix_tuning."
        )
    if learns_prompts(run.method) and run.training.label_smoothing_factor:
        raise ValueError(
            f"Trainer has no label smoothing for virtual tokens, got --peft_type {name} and "
            f"--label_smoothing_factor {run.training.label_smoothing_factor}. Set it to 0."
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


def longest_row(dataset) -> int:
    """Tokens of the longest row."""
    if not isinstance(dataset, Dataset):
        return max(len(row["input_ids"]) for row in dataset)
    batches = dataset.with_format("arrow").iter(10_000)
    return max(pc.max(pc.list_value_length(batch["input_ids"])).as_py() for batch in batches)


def positions(model: torch.nn.Module) -> int | None:
    """How many tokens a model has position embeddings for; None where positions are relative.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> positions(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=32)))
        32
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith(("position_embeddings", "wpe", "embed_positions")):
            # RoBERTa counts from the padding token's id, OPT from 2
            before = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    return None


def check_positions(run, model: PeftModel) -> None:
    """Raise `ValueError` where virtual tokens and a row together have more tokens than the model has positions."""
    config, limit = model.peft_config["default"], positions(model)
    if not config.is_prompt_learning or limit is None:
        return
    for split, dataset in run.datasets.items():
        longest = longest_row(dataset)
        if longest + config.num_virtual_tokens > limit:
            raise ValueError(
                f"{config.num_virtual_tokens} virtual tokens and the longest {split} row, {longest} tokens, exceed "
                f"the {limit} positions of {type(model.get_base_model()).__name__}. Lower --max_seq_length to "
                f"{limit - config.num_virtual_tokens}, or num_virtual_tokens in --peft_kwargs."
            )


def adapt(run) -> PeftModel:
    """The base model under the adapter.

    Raises:
        ValueError: in one line, for whatever PEFT or the model objects to.
    """
    base = run.base_model()
    name, kind = resolve(run.method)[0], type(base).__name__
    refuse_task(run)
    try:
        model = get_peft_model(base, peft_config(run, base))
        _try(run, model)
    except Exception as error:  # PEFT raises nearly every kind
        reason = one_line(error).rstrip(".")
        if reason.startswith(("--peft", "--method")):
            raise
        raise ValueError(
            f"--peft_type {name} does not work with {kind} for {run.application.task_type}: {reason[:300]}. Give its "
            "settings with --peft_kwargs, its modules with --lora_target_modules, or another --peft_type."
        ) from error
    return model


def _try(run, model: PeftModel) -> None:
    """One forward pass on two rows: a type that cannot do the task fails here and not after a search for rows."""
    head = set(map(id, head_parameters(model).values()))
    if not any(p.requires_grad and id(p) not in head for p in model.parameters()):
        raise ValueError("it has nothing to train there")
    columns = inspect.signature(model.get_base_model().forward).parameters
    rows = [run.train_dataset[index] for index in range(min(2, len(run.train_dataset)))]
    batch = run.data_collator([{key: value for key, value in row.items() if key in columns} for row in rows])
    device = next(model.parameters()).device  # bitsandbytes loads onto an accelerator where there is one
    batch = {key: value.to(device) for key, value in batch.items()}
    model.eval()
    with torch.no_grad():
        loss = model(**batch).loss
    model.train()
    if not torch.isfinite(loss):
        raise ValueError(f"its loss on the first two rows is {loss.item()}")


def check(run) -> None:
    """Raise `ValueError` for what the type cannot do, before anything is written."""
    if not run.training.do_train:
        return
    refuse_sharding(run, f"--method {run.method.method} saves whole tensors")
    if run.training.save_only_model and run.training.load_best_model_at_end:
        raise ValueError(
            f"--load_best_model_at_end takes the best weights of --method {run.method.method} from what a checkpoint "
            "holds for a resume, and --save_only_model leaves that out. Drop one of the two."
        )
    run.adapted = adapt(run)  # kept: building twice would cost twice
    check_positions(run, run.adapted)


def build(run) -> Built:
    model, run.adapted = run.adapted or adapt(run), None
    return Built(model)


# ---- training


def is_other_type(model: torch.nn.Module) -> bool:
    """Whether `model` is under an adapter of PEFT that is no LoRA."""
    configs = getattr(model, "peft_config", {})
    return isinstance(model, PeftModel) and configs["default"].peft_type != PeftType.LORA


class PeftTypeTrainer(RetrainTrainer):
    """The standard Trainer with checkpoints that hold every trainable tensor as it is.

    What PEFT saves is for use, not always for going on: of P-tuning's encoder it keeps the output alone.
    """

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            tensors = {name: p.detach().cpu().contiguous() for name, p in self._trainable().items()}
            save_file(tensors, os.path.join(output_dir, TRAINABLE))

    @torch.no_grad()
    def _restore(self, checkpoint):
        tensors = load_file(os.path.join(checkpoint, TRAINABLE))
        for name, parameter in self._trainable().items():
            parameter.copy_(tensors[name])

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._restore(resume_from_checkpoint)

    def _load_best_model(self):
        self._restore(self.state.best_model_checkpoint)
