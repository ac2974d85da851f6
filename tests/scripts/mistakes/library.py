"""Mistakes in Python."""

from datasets import Dataset
from peft import LoraConfig

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks
from autolora_trainer.ranks.learned import ModuleRank
from tests.helpers.models import lora, tiny_roberta
from tests.scripts.mistakes.cases import MODULES, Bad, Ranks

# fmt: off


def arguments(place, **changes):
    return AutoLoraTrainingArguments(output_dir=str(place), use_cpu=True, report_to=[], **changes)


def trainer(place, **changes):
    rows = Dataset.from_list([{"input_ids": [3, 4, 5], "labels": label} for label in (0, 1, 0, 1)])
    settings = {
        "model": tiny_roberta(),
        "args": arguments(place, initial_rank=4),
        "train_dataset": rows,
        "peft_config": LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]),
    }
    return AutoLoraTrainer(**{**settings, **changes})


def written(place, content):
    path = place / "ranks.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


ONE = LearnedRanks({MODULES[0]: ModuleRank(2)})

LIBRARY = [
    Bad("load: ranks cut off", "library", lambda place: LearnedRanks.load(written(place, Ranks().content()[:50])),
        "…/ranks.json is not a ranks.json: Unterminated string … it, or give the ranks.json of a finished run."),
    Bad("load: no text", "library", lambda place: LearnedRanks.load(written(place, b"\xff\xfe")),
        "…/ranks.json is not a ranks.json: 'utf-8' codec can't … it, or give the ranks.json of a finished run."),
    Bad("load: nothing there", "library", lambda place: LearnedRanks.from_pretrained(place),
        "… holds neither ranks.json nor adapter_config.json. Give the output directory of a finished run, or an "
        "adapter."),
    Bad("from_pretrained: no repository", "library", lambda place: LearnedRanks.from_pretrained("nothing/here"),
        "'nothing/here' is neither a folder or file here nor a … the `HF_HUB_OFFLINE` environment variable."),
    Bad("push_to_hub: no name", "library", lambda place: ONE.push_to_hub("a b"),
        "Could not push the ranks to a b: Repo id must use … or '.' and the maximum length is 96: 'a b'."),
    Bad("to_lora_config: a scaling that there is not", "library", lambda place: ONE.to_lora_config(scaling="linear"),
        "scaling must be constant or paper, got 'linear'."),
    Bad("to_lora_config: all zero", "library", lambda place: LearnedRanks({"q": ModuleRank(0)}).to_lora_config(),
        "Every module has rank 0, so there is no adapter to train. Set min_rank 1 or a size."),
    Bad("to_lora_config: no modules", "library", lambda place: LearnedRanks().to_lora_config(),
        "Every module has rank 0, so there is no adapter to train. Set min_rank 1 or a size."),
    Bad("check_names: another model", "library", lambda place: ONE.check_names(["a", "b"]),
        "ranks.json names 1 modules, and the model lacks 1 of … Was it learned on another checkpoint (None)?"),
    Bad("save: NaN", "library",
        lambda place: LearnedRanks({"q": ModuleRank(1, (float("nan"),))}).save(place / "ranks.json"),
        "The selection of 'q' must hold finite numbers, got (nan,)."),
    Bad("arguments: rank one under softmax", "library", lambda place: arguments(place, initial_rank=1),
        "initial_rank must be at least 2 (with softmax a single … is learned), got 1. The paper uses 8."),
    Bad("arguments: fp16", "library", lambda place: arguments(place, fp16=True),
        "The search does not run in fp16: its loss scale hides the hypergradient. Use bf16=True or fp32."),
    Bad("arguments: the rate of a step that is not taken", "library", lambda place: arguments(place, inner_lr=0.1),
        "inner_lr has no effect on hypergradient first_order, it is for finite_difference and exact. Drop it, or add"),
    Bad("arguments: a schedule that follows evaluations", "library",
        lambda place: arguments(place, lr_scheduler_type="greedy"),
        "lr_scheduler_type greedy follows evaluations, and the search makes none. Type another, e.g. linear, or sear"),
    Bad("arguments: the best model", "library",
        lambda place: arguments(place, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch"),
        "load_best_model_at_end is not for the search (weights and … together). Set it for the retrain instead."),
    Bad("arguments: a constraint that there is not", "library", lambda place: arguments(place, constraint="softmx"),
        "constraint must be one of softmax, sigmoid, none, got 'softmx'. Did you mean softmax?"),
    Bad("trainer: ordinary arguments", "library", lambda place: trainer(place, args=None),
        "args must be AutoLoraTrainingArguments, got NoneType. They take every argument of TrainingArguments."),
    Bad("trainer: no model", "library", lambda place: trainer(place, model=None),
        "The search needs the model itself, got none. Pass model=..., e.g. model_init()."),
    Bad("trainer: no rows", "library", lambda place: trainer(place, train_dataset=None),
        "The search needs train_dataset, got none. D_tr and D_val both come from it."),
    Bad("trainer: one row", "library", lambda place: trainer(place, train_dataset=[{"input_ids": [1]}]),
        "val_fraction=0.2 of 1 training rows leaves 1 for D_tr and … more training rows or another val_fraction."),
    Bad("trainer: no adapter", "library", lambda place: trainer(place, peft_config=None),
        "The search needs a LoRA adapter, got a plain … or wrap the model with get_peft_model."),
    Bad("trainer: a dict for a LoraConfig", "library", lambda place: trainer(place, peft_config={"r": 4}),
        "peft_config must be a peft.LoraConfig, got dict."),
    Bad("trainer: an adapter of another rank", "library",
        lambda place: trainer(place, peft_config=None, model=lora(tiny_roberta(), 8)),
        "The adapter has rank 8, and the search asks for initial_rank=4. Use LoraConfig(r=4) or initial_rank=8."),
    Bad("trainer: modules that match nothing", "library",
        lambda place: trainer(place, peft_config=LoraConfig(target_modules=["q_proj"])),
        "Target modules {'q_proj'} not found in the base model. Please check the target modules and try again."),
    Bad("trainer: both model and model_init", "library",
        lambda place: trainer(place, model=None, model_init=tiny_roberta),
        "The search needs the model itself, got model_init. Pass model=..., e.g. model_init()."),
]
