"""How many tokens rows have, and a model has positions for."""

import pyarrow.compute as pc
import torch
from datasets import Dataset


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
