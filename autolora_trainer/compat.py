"""All that depends on a version of a library: the private names this package relies on, and what works around one.

Each says which version needs it, and when it may go.
"""

import copy
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import transformers
from huggingface_hub.utils import _http
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch.nn import Parameter
from transformers import PreTrainedModel, Trainer, TrainingArguments

# Private methods of Trainer that this package overrides or calls: without one of them a resume would not be exact, a
# bad step not skipped, or rows not in their order, and nothing would say so.
HOOKS = """
    _get_collator_with_removed_columns _get_eval_sampler _get_grad_norm _get_num_items_in_batch _get_train_sampler
    _load_best_model _load_from_checkpoint _load_optimizer_and_scheduler _load_rng_state _prepare_inputs
    _remove_unused_columns _run_epoch _save _save_checkpoint _save_optimizer_and_scheduler _save_rng_state
""".split()


def check_hooks(trainer: type = Trainer) -> None:
    """Raise `ImportError` if the installed transformers has not got every method that this package relies on."""
    missing = [name for name in HOOKS if not hasattr(trainer, name)]
    if missing:
        raise ImportError(
            f"transformers {transformers.__version__} is installed, whose Trainer has no {', '.join(missing)}; what a "
            "run computes and resumes from would change unseen. Install one that is known: transformers==5.23.0"
        )


check_hooks()


def client_factory() -> Callable:
    """What makes the Hub client's connections; it may be the user's. huggingface_hub 2.4 has a public way to set it
    and none to read it."""
    return _http._GLOBAL_CLIENT_FACTORY


# of the connections that it makes; an answer's body is read through one. huggingface_hub 1 makes them by httpx
ByteStream = (_http.httpx2 if hasattr(_http, "httpx2") else _http.httpx).SyncByteStream

# what TrainingArguments calls it: transformers 5.23 has renamed it, and keeps the old name for command lines
_NEW_NAME = "activation_checkpointing" in {field.name for field in dataclasses.fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if _NEW_NAME else "gradient_checkpointing"


def loss_scaled_for_accumulation(trainer: Trainer) -> bool | None:
    """What a Trainer says of its loss where it is not its model's; None of Trainer's own, and before 5.19, where none
    says so."""
    return getattr(trainer, "loss_is_scaled_for_ga", None)


def save_without_asking(model) -> None:
    """Let a PEFT model save itself without a request to the Hub.

    PEFT asks at every save, checkpoints included, whether the base model's vocabulary has grown since (0.21), and a
    Hub that is silent then holds up each of them. For models whose vocabulary stays as it is, as the scripts' do.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)


def silence_known_warnings() -> None:
    """Drop warnings about nothing of the user's."""
    # PEFT 0.21 reads a property that transformers 5 renamed. Until PEFT follows.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    # transformers 5.23 renamed it, and TRL's configurations have the old name. Until transformers 6.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # PEFT finds Conv1D by itself


def has_fused_head(model) -> bool:
    """Whether TRL (1.16) has given a model a head that makes log-probabilities of the targets and no logits, which
    take a forward pass more. Its forward says so by an argument that the signature it shows has not."""
    return "fused_lm_head" in inspect.signature(model.forward, follow_wrapped=False).parameters


def drawn_parameters(model) -> set:
    """The parameters of a model that its checkpoint lacks, and that `from_pretrained` has drawn at random. It says so
    in a warning alone; since transformers 5 it marks what it has loaded. Empty for a model that came another way (from
    a configuration, a copy, moved by accelerate): nothing is known of it then.
    """
    parameters = list(model.parameters()) if isinstance(model, PreTrainedModel) else []
    loaded = [p for p in parameters if getattr(p, "_is_hf_initialized", False) or type(p) is not Parameter]
    return set(parameters) - set(loaded) if 2 * len(loaded) > len(parameters) else set()


@contextmanager
def gradients_through_4_bit(model) -> Iterator[None]:
    """Inside, gradients pass through 4-bit layers on a CPU in evaluation mode too.

    On CPUs with AVX512-BF16 bitsandbytes (0.50) repacks a weight in its first forward in evaluation mode, for a kernel
    that has no gradient, and says nothing: what lies before such a layer then learns less. Until it asks for one.
    """
    supported = {m: m.support_avx512bf16_for_cpu for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")}
    packed = []
    for layer in supported:
        layer.support_avx512bf16_for_cpu, weight = False, layer.weight
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

            state = weight.quant_state  # which the inverse changes
            packed.append((weight, weight.data, state, dict(vars(state))))
            weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)
    try:
        yield
    finally:
        for layer, value in supported.items():
            layer.support_avx512bf16_for_cpu = value
        for weight, data, state, values in packed:
            weight.data, weight.quant_state = data, state
            vars(state).clear()
            vars(state).update(values)


@contextmanager
def checkpoints_without_reentrance(model) -> Iterator[int]:
    """Inside, no activation checkpoint that transformers runs is reentrant, also where peft's
    `prepare_model_for_kbit_training` has asked for them; yields how many modules were switched.

    transformers (5.23) gives every module the function that checkpoints it, and has no public way to read or change
    one. Without `use_reentrant` torch (2.13) is reentrant. Until peft asks for the other kind.
    """
    name = "_gradient_checkpointing_func"
    held = {module: vars(module).get(name) for module in model.modules()}
    reentrant = {
        module: function
        for module, function in held.items()
        if isinstance(function, functools.partial)
        and getattr(module, "gradient_checkpointing", False)
        and function.keywords.get("use_reentrant") is not False
    }
    for module, function in reentrant.items():
        setattr(module, name, functools.partial(function, use_reentrant=False))
    try:
        yield len(reentrant)
    finally:
        for module, function in reentrant.items():
            setattr(module, name, function)


def layers_to_shard(model) -> list[str]:
    """Names of the classes of layers that FSDP2 may shard one by one. accelerate (1.15) takes all that a model names,
    and fails where it has none of a class, and where a module around its input embeddings is among them (BERT,
    RoBERTa), which it shards once more. Until it does not."""
    embeddings, modules = model.get_input_embeddings(), {}
    for module in model.modules():
        modules.setdefault(type(module).__name__, []).append(module)
    around = {name for name, own in modules.items() if any(embeddings in set(module.modules()) for module in own)}
    return [name for name in getattr(model, "_no_split_modules", None) or () if name in modules and name not in around]


def meant_parameters(model, config: LoraConfig, target_modules) -> set[str]:
    """The `target_parameters` that PEFT makes of target modules: models whose experts were linear layers before
    transformers 5 have them as parameters now, and PEFT (0.21) turns the old names into the new ones. PEFT does it
    while it wraps the model; here nothing is wrapped.

    Raises:
        ValueError: for a part alone of what is one parameter now.
    """
    own = dataclasses.replace(config, target_modules=target_modules, target_parameters=None)
    convert_peft_config_for_transformers(own, model, None)
    return set(own.target_parameters or ())


def all_linear(model, config: LoraConfig) -> set[str]:
    """Names of the modules that PEFT means by `all-linear`, heads left out. PEFT 0.21 has no public way to ask."""
    return _maybe_include_all_linear_layers(copy.copy(config), model).target_modules


@contextmanager
def patterns_of_parameters() -> Iterator[None]:
    """Inside, PEFT does not warn of keys of rank_pattern that fit no module: it (0.21) looks at modules alone, and
    keys of parameters do act. For adapters whose ranks are compared afterwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match any targeted module")
        yield
