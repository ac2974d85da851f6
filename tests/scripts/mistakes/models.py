"""The base model."""

import json

import torch
from safetensors.torch import save

from tests.scripts.mistakes.cases import GOOD, PAIRS, Bad, File, Folder, Model, half, lines, sst2, train, validation

# fmt: off
OTHER_WEIGHTS = save({"x": torch.zeros(2)}, metadata={"format": "pt"})


def model(**changes):
    return {"model_name_or_path": Model({name.replace("__", "."): change for name, change in changes.items()})}


def setting(**changes):
    """A config.json with these settings changed."""
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


MODELS = [
    Bad("a model that is not there", "glue", {"model_name_or_path": "nowhere/model"},
        "Could not load 'nowhere/model': it is no folder here, and … or connect once so that the model is cached."),
    Bad("a path of a model that is not there", "glue", {"model_name_or_path": "/nowhere/at/all"},
        "Could not load '/nowhere/at/all': it is no folder here, … or connect once so that the model is cached."),
    Bad("a model name with a blank", "glue", {"model_name_or_path": "my model"},
        "Could not load 'my model': it is no folder here, and the … or connect once so that the model is cached."),
    Bad("an empty model name", "glue", {"model_name_or_path": ""},
        "Could not load '': it is no folder here, and the Hugging … or connect once so that the model is cached."),
    Bad("a file for a model", "glue", {"model_name_or_path": File("model.safetensors", b"x")},
        "Could not load '…/model_name_or_path/model.safetensors': … or connect once so that the model is cached."),
    Bad("an empty folder for a model", "glue", {"model_name_or_path": Folder()},
        "The folder …/model_name_or_path/folder gives no … convert a slow tokenizer to a ... Give anothe"),
    Bad("a model without its config", "glue", model(config__json=None),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose config is broken", "glue", model(config__json="{"),
        "The folder …/model_name_or_path/model gives no … file. Give another with --model_name_or_path."),
    Bad("a model whose config is a list", "glue", model(config__json="[]"),
        "The folder …/model_name_or_path/model gives no … list. Give another with --model_name_or_path."),
    Bad("a model whose config has no type", "glue", model(config__json="{}"),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model of a type that there is not", "glue", model(config__json='{"model_type": "robertta"}'),
        "The folder …/model_name_or_path/model gives no … `pip install --upgrade tr ... Give another w"),
    Bad("a model of another size than its config", "glue", model(config__json=setting(hidden_size=32)),
        "The weights in …/model_name_or_path/model have other … belong together with --model_name_or_path."),
    Bad("a model whose heads do not divide it", "glue", model(config__json=setting(num_attention_heads=3)),
        "The folder …/model_name_or_path/model gives no … (3). Give another with --model_name_or_path."),
    Bad("a model with a config of the wrong type", "glue", model(config__json=setting(hidden_size="large")),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model without weights", "glue", model(model__safetensors=None),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are empty", "glue", model(model__safetensors=b""),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are cut off", "glue", model(model__safetensors=half),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are text", "glue",
        model(model__safetensors="version https://git-lfs.github.com/spec/v1\n"),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are another's", "glue", model(model__safetensors=OTHER_WEIGHTS),
        "The weights in …/model_name_or_path/model are not those … Give another model with --model_name_or_path."),
    Bad("a model without a tokenizer", "glue", model(tokenizer__json=None, tokenizer_config__json=None),
        "…/model_name_or_path/model holds no tokenizer: it knows no word. Give one with --tokenizer_name."),
    Bad("a model whose tokenizer is broken", "glue", model(tokenizer__json="{"),
        "The folder …/model_name_or_path/model gives no … 1). Give another with --model_name_or_path."),
    Bad("a model whose tokenizer is cut off", "glue", model(tokenizer__json=half),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose tokenizer config is broken", "glue", model(tokenizer_config__json="["),
        "The folder …/model_name_or_path/model gives no … 1). Give another with --model_name_or_path."),
    Bad("a tokenizer that is not there", "glue", {"tokenizer_name": "nowhere/tokenizer"},
        "Could not load 'nowhere/tokenizer': it is no folder here, … or connect once so that the model is cached."),
    Bad("a tokenizer with more words than the model", "glue", {"tokenizer_name": Model(of="nlg")},
        "The train rows hold token 220, and …/glue/model has 64 … own with --tokenizer_name, or leave that out."),
    Bad("a model of pictures for tags", "ner", model(config__json='{"model_type": "vit"}'),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model's own code that nobody trusts", "glue",
        model(config__json='{"model_type": "mine", "auto_map": {"AutoConfig": "configuration.Mine"}}'),
        "…/model_name_or_path/model comes with code of its own. … another with --model_name_or_path if not."),
    Bad("rows longer than the model", "glue",
        {"max_seq_length": 64, **train(lines(*GOOD, *sst2(1, sentence="a " * 50)))},
        "The longest train row has 52 tokens, and RobertaForSequenceClassification has 38 positions. "
        "Lower --max_seq_length to 38, or give another model."),
    Bad("padding longer than the model", "glue", {"max_seq_length": 39, "pad_to_max_length": True},
        "The longest train row has 39 tokens, and Roberta… has 38 positions. Lower --max_seq_length to 38, or give"),
    Bad("no room for text", "glue", {"task_name": "rte", "max_seq_length": 5, **train(PAIRS), **validation(PAIRS)},
        "max_seq_length=5 leaves no room for text: rte needs 4 … each text. Give --max_seq_length 6 or more."),
]
