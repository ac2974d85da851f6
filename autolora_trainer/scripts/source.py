"""The base model of a run: loaded anew as often as it is asked for, always the same; and the shapes of its updates."""

import copy
import os
from functools import cached_property

import torch
from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from transformers import AutoConfig, set_seed
from transformers.pytorch_utils import Conv1D

from autolora_trainer import hub_client
from autolora_trainer.errors import one_line, sentence
from autolora_trainer.lora.bits import quantization
from autolora_trainer.lora.fresh import fresh_modules
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.heads import WHOLE_HEADS
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.targets import linear_names, stacked_targets, whole_layers
from autolora_trainer.methods.lora import ALL_LINEAR
from autolora_trainer.names import named
from autolora_trainer.ranks.adapter import public_model_name
from autolora_trainer.scripts.model_folder import check_built_size, check_model_folder
from autolora_trainer.training.padding import align_tokens
from autolora_trainer.training.passes import RandomState


class Source:
    """Where a run takes its base model from.

    Args:
        request: what was asked for; its task has read the rows, so that config and tokenizer are there.
    Attributes:
        fresh_modules: drawn at random beside the head; see `lora.heads`. Known once the model has been loaded.
    """

    def __init__(self, request):
        self.request, self.task = request, request.task
        self.fresh_modules: list[str] = []
        self._public_name: str | None = None
        self._loaded: tuple[torch.nn.Module, RandomState] | None = None
        self._kind: tuple[type, object] | None = None  # class and config of the model

    @property
    def name(self) -> str | None:
        """What files call the base model: its Hub id, or the name of its folder."""
        return self.request.model.base_model_id or self._public_name

    # ---- the model

    def base_model(self) -> torch.nn.Module:
        """The pre-trained model, anew; its new head is the same every time, and so is what is drawn after it."""
        if self._loaded is None:
            set_seed(self.request.training.seed)
            model = self._load()
            self._public_name, self._kind = public_model_name(model), (type(model), model.config)
            return model
        (model, random_state), self._loaded = self._loaded, None
        random_state.restore()
        return model

    def loaded(self) -> torch.nn.Module:
        """The model that `base_model` will give next, to look at."""
        if self._loaded is None:
            model = self.base_model()
            self._loaded = (model, RandomState(torch.device("cpu")))
        return self._loaded[0]

    def saved_model(self, folder: str) -> torch.nn.Module:
        """A whole trained model in a folder, in fp32."""
        model = self.request.model
        config = load_pretrained(AutoConfig, folder, model)
        check_built_size(self.task.auto_class, config, folder, model.trust_remote_code)
        settings = {"dtype": "float32", "attn_implementation": model.attn_implementation}
        whole = load_pretrained(self.task.auto_class, folder, model, **settings)
        align_tokens(whole, self.task.tokenizer)
        return whole

    def _load(self) -> torch.nn.Module:
        """With a new head where the task has one; in fp32 but for what `--dtype`, `--load_in_8bit` and
        `--load_in_4bit` say of frozen weights."""
        asked = self.request.model
        model, info = load_pretrained(
            self.task.auto_class,
            asked.model_name_or_path,
            asked,
            output_loading_info=True,
            config=copy.deepcopy(self.task.config),
            dtype=asked.dtype,
            ignore_mismatched_sizes=True,
            attn_implementation=asked.attn_implementation,
            quantization_config=quantization(asked.bits, "bfloat16" if self.request.training.bf16 else asked.dtype),
        )
        check_weights(model, info, asked.model_name_or_path)
        model.fresh_modules = self.fresh_modules = fresh_modules(model, info)
        if asked.base_model_id:
            model.name_or_path = model.config._name_or_path = asked.base_model_id
        align_tokens(model, self.task.tokenizer)
        return model

    # ---- adapters on it

    def lora_config(self, **changes) -> LoraConfig:
        """The one place where LoRA's settings become a `LoraConfig`."""
        asked, task_type = self.request.settings, self.task.task_type
        targets = asked.targets
        settings = {
            "task_type": task_type,
            "lora_alpha": asked.lora_alpha,
            "lora_dropout": asked.lora_dropout,
            "use_rslora": asked.use_rslora,
            "target_modules": targets,
        }
        if self.fresh_modules:
            settings["modules_to_save"] = list(self.fresh_modules)
        if targets == ALL_LINEAR:  # PEFT leaves out heads of sequences by itself
            settings["exclude_modules"] = [*WHOLE_HEADS.get(task_type, ()), *self.fresh_modules] or None
        return LoraConfig(**{**settings, **changes})

    def skeleton(self) -> torch.nn.Module:
        """The model without weights (on the meta device): tells names and shapes."""
        if self._kind is None:
            self.loaded()
        kind, config = self._kind
        with torch.device("meta"):
            return kind(config)

    @cached_property
    def rank_one_adapter(self) -> PeftModel:
        """The skeleton under a rank-1 adapter: tells which modules an adapter would have.

        Raises:
            ValueError: where it would have none.
        """
        skeleton, config = self.skeleton(), self.lora_config(r=1, lora_dropout=0.0)  # dropout makes no shape
        try:
            with torch.device("meta"):
                return add_lora(skeleton, config)
        except ValueError as error:
            given, kind = self._typed_targets, type(skeleton).__name__
            what = f"PEFT has no default target modules for {kind}"
            if given:
                misfit = isinstance(error, NoMatchingPeftModuleError) or "not found in the base model" in str(error)
                what = f"{given} {'fits no module of' if misfit else 'does not work with'} {kind}"
            raise ValueError(
                f"{what} ({one_line(error).split('. ')[0]}). {self.linear_example()}; give --lora_target_modules."
            ) from error

    @property
    def _typed_targets(self) -> str:
        given = self.request.settings.targets
        given = [given] if isinstance(given, str) else given
        return f"--lora_target_modules {' '.join(given)}" if given else ""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """{module: (m, n) of its update}, of the modules, parts and parameters that a LoRA of this run adapts."""
        return {name: part.shape for name, part in lora_parts(self.rank_one_adapter).items()}

    @cached_property
    def costs(self) -> dict[str, int]:
        """{module: parameters of one component, m + n, of every expert}."""
        return {name: part.cost for name, part in lora_parts(self.rank_one_adapter).items()}

    @cached_property
    def experts(self) -> dict[str, int | None]:
        """{module: the experts that share its rank}; None where it is no parameter."""
        return {name: part.experts for name, part in lora_parts(self.rank_one_adapter).items()}

    def refuse_nonlinear(self) -> None:
        """Raise `ValueError` for a layer that is neither linear nor a parameter: LoRA adapts it, and it has no rank
        here; and for dropout of parameters."""
        self.refuse_dropped_experts()
        what = f"--method {self.request.method.name} finds ranks of linear layers, and"
        for name, layer in self.rank_one_adapter.get_base_model().named_modules():
            if isinstance(layer, ParamWrapper):
                continue
            if isinstance(layer, LoraLayer) and not isinstance(layer.get_base_layer(), (torch.nn.Linear, Conv1D)):
                raise ValueError(
                    f"{what} --lora_target_modules has {name!r} ({type(layer.get_base_layer()).__name__}). Leave it "
                    "out, or type --method lora."
                )

    def refuse_dropped_experts(self) -> None:
        """Raise `ValueError` for experts under dropout, of which PEFT has none for parameters."""
        if dropout := self.request.settings.lora_dropout:
            self._refuse_experts(f"--lora_dropout {dropout} is for linear layers, and", " or --lora_dropout 0")

    def refuse_experts(self) -> None:
        """Raise `ValueError` for experts, of a method that reads what goes into a layer, or has no parameters."""
        what = f"--method {self.request.method.name} is for linear layers, and"
        self._refuse_experts(what, " or type --method autolora --lora_dropout 0")

    def _refuse_experts(self, what: str, other: str) -> None:
        model, config = self.loaded(), self.lora_config()
        if names := stacked_targets(model, config):
            raise ValueError(
                f"{what} {self._typed_targets} takes experts of {type(model).__name__} too, which PEFT "
                f"adapts as parameters ({named(names)}). Type --lora_target_modules "
                f"{' '.join(whole_layers(model, config))},{other}."
            )

    def linear_names(self) -> list[str]:
        """Of the base model's linear layers."""
        return linear_names(self.loaded())

    def linear_example(self) -> str:
        linear = self.linear_names()
        return f"Its linear layers are named like {linear[len(linear) // 2] if linear else 'nothing: it has none'!r}"


def load_pretrained(auto_class, name: str, model, **arguments):
    """`auto_class.from_pretrained(name)` with the script's Hub arguments, and one line for what can go wrong.

    Args:
        auto_class: e.g. `AutoConfig`.
        name: a Hub id or a folder.
        model: `ModelArguments`.
    Raises:
        ValueError: if there is no such model, or it cannot be reached.
    """
    if not os.path.isdir(name) and not hub_client.hub_answers():
        arguments["local_files_only"] = True  # the client asks a silent Hub for minutes, file by file
    try:
        if os.path.isdir(name):
            check_model_folder(name)
        return auto_class.from_pretrained(
            name,
            cache_dir=model.cache_dir,
            revision=model.model_revision,
            token=model.token,
            trust_remote_code=model.trust_remote_code,
            **arguments,
        )
    except Exception as error:  # transformers, tokenizers and safetensors raise nearly every kind
        raise ValueError(_load_failure(auto_class, name, model, error)) from error


def _load_failure(auto_class, name: str, model, error: Exception) -> str:
    """Why `auto_class` could not be loaded, and what to type."""
    arguments = {model.tokenizer_name: "--tokenizer_name", model.model_name_or_path: "--model_name_or_path"}
    advice = f"Give another with {arguments.get(name, '--output_dir')}"
    if "trust_remote_code" in str(error):
        return f"{name} comes with code of its own. Type --trust_remote_code if you trust it. {advice} if not."
    reason = sentence(error).partition(" Model type should be one of")[0]  # a hundred names follow
    if os.path.isdir(name):
        return f"The folder {name} gives no {auto_class.__name__}: {reason} {advice}."
    if isinstance(error, OSError):
        return (
            f"Could not load {name!r}: it is no folder here, and the Hugging Face Hub does not give it (no "
            "connection, or no such model). Give a folder with --model_name_or_path, or connect once so that the "
            "model is cached."
        )
    return f"Could not load {name!r}: {reason} {advice}."


def check_weights(model, info: dict, name: str) -> None:
    """Raise `ValueError` where a checkpoint does not hold the model: transformers draws at random what it lacks, which
    is right for a task's new head, and says so in a warning.

    Args:
        model: as `from_pretrained` made it.
        info: of `output_loading_info=True`.
        name: where it comes from.
    """
    inside = f"{model.base_model_prefix}."
    other = sorted(key for key, *_ in info["mismatched_keys"] if key.startswith(inside))
    if other:
        raise ValueError(
            f"The weights in {name} have other shapes than its config says, {len(other)} of them; the first is "
            f"{other[0]!r}. Give a model whose files belong together with --model_name_or_path."
        )
    wanted = [key for key in model.state_dict() if key.startswith(inside)]
    missing = sorted(key for key in info["missing_keys"] if key.startswith(inside))
    if 2 * len(missing) > len(wanted):
        raise ValueError(
            f"The weights in {name} are not those of a {type(model).__name__}: {len(missing)} of {len(wanted)} are "
            f"missing; the first is {missing[0]!r}. Give another model with --model_name_or_path."
        )
