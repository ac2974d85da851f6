"""The adapter that is to be made smaller, on its base model."""

import os

import torch
import transformers
from peft import PeftModel

from autolora_trainer.errors import sentence
from autolora_trainer.files import check_regular
from autolora_trainer.ranks.adapter import is_other_model
from autolora_trainer.ranks.adapter_config import patterns_of
from autolora_trainer.ranks.adapter_file import AdapterFile, check_loadable
from autolora_trainer.ranks.learned import RANKS_FILE, LearnedRanks
from autolora_trainer.ranks.matching import check_patterns
from autolora_trainer.training.finite import check_weights

KINDS = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
}


def load_given(source: str, base_model, **loading) -> PeftModel:
    """An adapter of a folder or of the Hub on its base model, which `loading` is for where it is not loaded yet."""
    file = AdapterFile.from_pretrained(source)
    base = base_model or file.config.get("base_model_name_or_path")
    name = type(base).__name__ if isinstance(base, torch.nn.Module) else base
    try:
        if not isinstance(base, torch.nn.Module):
            if os.path.isdir(base):
                check_regular(base)
            kind = getattr(
                transformers, f"AutoModelFor{KINDS.get(file.config.get('task_type'), '')}".removesuffix("For")
            )
            labels = {} if file.labels is None else {"num_labels": file.labels}
            # no code that comes with a model, and no question whether it may run
            base = kind.from_pretrained(base, trust_remote_code=False, **labels, **loading)
        if os.path.isdir(source):
            check_loadable(source, (name for name, _ in base.named_modules()))
        else:
            check_patterns(patterns_of(file.config), (name for name, _ in base.named_modules()))
        given = list(base.parameters())
        model = PeftModel.from_pretrained(base, source)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(
            f"The adapter {source} does not load on {name}: {sentence(error)} Give the base_model that it was trained "
            "on."
        ) from error
    check_weights(model, source, given)
    path = os.path.join(source, RANKS_FILE)
    if os.path.exists(path) and is_other_model(ranks := LearnedRanks.load(path), model):
        raise ValueError(f"{source} was learned on {ranks.base_model}, and this base model has other weights.")
    return model
