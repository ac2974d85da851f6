"""Padding beside a row, which must not change what a model computes of it: its token, and its side."""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping

import pyarrow.compute as pc
import torch
from transformers.trainer_utils import align_special_tokens

from autolora_trainer.compat import gradients_through_4_bit
from autolora_trainer.lora.parts import base_model_of
from autolora_trainer.untouched import undrawn

logger = logging.getLogger("autolora_trainer")


def align_tokens(model: torch.nn.Module, tokenizer) -> None:
    """Give a model's config, and that of its text part, the padding, start and end token of the tokenizer that batches
    its rows, as Trainer does when it trains: a head that looks for the end of a text takes padding for text otherwise.
    Models whose positions are counted from their padding token (RoBERTa) are built by it, and keep it.

    Args:
        tokenizer: or a processor that has one; nothing happens without either.
    """
    tokenizer, base = getattr(tokenizer, "tokenizer", tokenizer), base_model_of(model)
    if hasattr(tokenizer, "pad_token_id") and hasattr(getattr(base, "config", None), "get_text_config"):
        if counts_from_padding(base) not in (None, tokenizer.pad_token_id):
            return
        align_special_tokens(base, tokenizer)
        if tokenizer.pad_token_id is not None:
            base.config.pad_token_id = tokenizer.pad_token_id  # of a model of text and pictures, too


def counts_from_padding(model: torch.nn.Module) -> int | None:
    """The padding token that a model's positions are counted from; None where they are not."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings"):
            return module.padding_idx
    return None


def tokenizer_of(processing_class, collator):
    """Whatever batches rows: what a Trainer was given, or what its collator pads with."""
    return processing_class if processing_class is not None else getattr(collator, "tokenizer", None)


def settle_side(model, tokenizer, collate: Callable, rows, sides: Iterable[str]) -> dict[str, float]:
    """Pad on the first of some sides where a row's logits do not depend on its batch.

    Args:
        rows: of several lengths, or there is nothing to settle; of a `collate` that pads as `tokenizer` says.
    Returns:
        {side: how much the logits change} where they do on every side; the tokenizer's is then left as it was.
    """
    own, errors, pair = tokenizer.padding_side, {}, two_lengths(rows)
    for side in sides if pair is not None else ():
        tokenizer.padding_side = side
        errors[side] = padding_error(model, collate, *pair)
        if not errors[side] > tolerance(model):
            return {}
    tokenizer.padding_side = own
    return errors


@torch.no_grad()
def padding_error(model: torch.nn.Module, collate: Callable, row: Mapping, longer: Mapping) -> float:
    """By how much the logits of a row change when a longer one is in its batch, as a share of the largest; what is
    within `tolerance` is rounding. NaN where that cannot be told: of a loss that compares rows, a kernel of another
    device, a collator that draws."""
    known = inspect.signature(base_model_of(model).forward).parameters
    found, modes, device = [], {module: module.training for module in model.modules()}, next(model.parameters()).device
    model.eval()
    try:
        with undrawn(), gradients_through_4_bit(model):
            for rows in ([row], [row, longer]):
                batch = {name: value.to(device) for name, value in collate([*rows]).items()}
                mask = batch["attention_mask"]
                inputs = {name: value for name, value in batch.items() if name in known and name != "labels"}
                logits, real = model(**inputs).logits, mask[0].bool()
                if len(logits) != len(rows):
                    return math.nan
                own = logits[0].float()
                # of every token: virtual ones stand before them
                found.append((own[-mask.shape[1] :][real] if own.dim() == 2 else own, batch["input_ids"][0][real]))
    except Exception:  # whoever trains will tell what does not work
        return math.nan
    finally:
        for module, mode in modes.items():
            module.training = mode
    (alone, ids), (beside, others) = found
    if alone.shape != beside.shape or not torch.equal(ids, others):
        return math.nan
    return ((alone - beside).abs().max() / alone.abs().max().clamp(min=1e-6)).item()


def tolerance(model: torch.nn.Module) -> float:
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return math.sqrt(torch.finfo(next(dtypes, torch.float32)).eps)


def two_lengths(rows) -> tuple[dict, dict] | None:
    """The shortest row, and the shortest of those that are longer; None where all are as long, or have no tokens."""
    if not hasattr(rows, "column_names"):
        ids = [row.get("input_ids") for row in rows if isinstance(row, Mapping)]
        lengths = [len(own) for own in ids if own is not None]
    elif "input_ids" in rows.column_names:
        batches = rows.with_format("arrow").iter(10_000)
        lengths = [n for batch in batches for n in pc.list_value_length(batch["input_ids"]).to_pylist()]
    else:
        return None
    longer = [length for length in lengths if length > min(lengths)]
    if not longer or len(lengths) < len(rows):
        return None
    pair = rows[lengths.index(min(lengths))], rows[lengths.index(min(longer))]
    return tuple({name: value for name, value in row.items() if value is not None} for row in pair)


def warn_of_padding(trainer, rows) -> None:
    """Say that padding changes what a Trainer's model computes of a row, where it does."""
    kept, collate = trainer._as_the_model_takes(rows)
    known = isinstance(rows, list) or (hasattr(rows, "column_names") and hasattr(rows, "__len__"))  # no stream
    pair = two_lengths(kept) if known else None
    error = math.nan if pair is None else padding_error(trainer.model, collate, *pair)
    if error > tolerance(trainer.model) and trainer.is_world_process_zero():
        name = type(base_model_of(trainer.model)).__name__
        logger.warning(
            f"what {name} computes of a row depends on the rows beside it: padding changes it by {error:.0%}. Give "
            "the tokenizer the other padding_side, or pad all rows to one length."
        )
