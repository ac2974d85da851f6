"""Batched greedy and beam decoding with a causal language model, as LoRA's code decodes, by `model.generate`.

prompts -> sorted by length -> batches, padded on the left -> generate -> cut at the end -> texts, in order again
"""

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from autolora_trainer.errors import NonFiniteError
from autolora_trainer.lora.parts import base_model_of


class NoRepeatInText(LogitsProcessor):
    """Forbids the token that would repeat an n-gram of the generated text.

    `no_repeat_ngram_size` of transformers also forbids what stands in the prompt, and with a causal model that is the
    data to put into words: a name of four tokens could not be written. In LoRA's code only generated tokens count.

    Args:
        size: n; 0 forbids nothing.
        prompt_length: tokens before the generated ones, padding included.
    """

    def __init__(self, size: int, prompt_length: int):
        self.size = size
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        text = input_ids[:, self.prompt_length :]  # (rows, t)
        if self.size == 0 or text.shape[1] < self.size:
            return scores
        ngrams = text.unfold(1, self.size, 1)  # (rows, t - n + 1, n)
        last = text[:, text.shape[1] - self.size + 1 :]  # (rows, n - 1)
        repeats = (ngrams[..., :-1] == last[:, None]).all(dim=-1)
        # a sum, because a token may end several n-grams; and no index by a mask, which would wait for the device
        banned = torch.zeros_like(scores).scatter_add_(1, ngrams[..., -1], repeats.to(scores.dtype))
        return scores.masked_fill(banned > 0, -torch.inf)


class NoNumbers(LogitsProcessor):
    """Notes for which sequences the model has given no number: a search goes on with NaN, and ends in some text."""

    found: torch.BoolTensor | None = None  # (sequences,)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        bad = ~torch.isfinite(scores.amax(-1))
        self.found = bad if self.found is None else self.found | bad
        return scores


class StopAtTokens(StoppingCriteria):
    """A row is done when its last token is one of `tokens`. Unlike more `eos_token_id`s it widens no beam search."""

    def __init__(self, tokens: torch.LongTensor):
        self.tokens = tokens

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        return torch.isin(input_ids[:, -1], self.tokens)


def line_break_tokens(tokenizer) -> list[int]:
    """The tokens with a line break in their text (GPT-2's 198 and 628, Llama's byte token), in order."""
    # "Ċ" is how byte-level vocabularies write one, "<0x0A>" how SentencePiece's do
    candidates = [
        index for token, index in tokenizer.get_vocab().items() if "Ċ" in token or "\n" in token or token == "<0x0A>"
    ]
    return sorted(index for index in candidates if "\n" in tokenizer.decode([index]))


def batches_by_length(
    lengths: Sequence[int], groups: Sequence[int], batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[list[int]]:
    """Indices in batches, longest first: little padding, and a batch that does not fit the memory shows at once.

    Args:
        groups: of each prompt; a batch holds prompts of one group.
        rank, world: of this process; each takes every `world`-th prompt in the order of length.
    Example:
        >>> list(batches_by_length([3, 9, 4, 8], [5, 1, 5, 5], batch_size=2))
        [[1], [3, 2], [0]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index])[rank::world]:
        if batch and (len(batch) == batch_size or groups[index] != groups[batch[0]]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _ready_to_decode(model):
    """Inside, `model` is in evaluation mode, and has no generation settings of its own: a checkpoint's may sample."""
    base = base_model_of(model)
    settings, modes = base.generation_config, {module: module.training for module in model.modules()}
    base.generation_config = GenerationConfig()
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Position ids are not supported")  # PEFT; unpadded rows need none
            yield
    finally:
        base.generation_config = settings
        for module, mode in modes.items():
            module.training = mode


def generate_texts(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int = 10,
    length_penalty: float = 0.8,
    no_repeat_ngram_size: int = 4,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    one_line: bool = True,
    verbatim: bool = False,
    progress: bool = True,
) -> list[str]:
    """Continue every prompt, the same way whatever the batches and the processes.

    In a process group each process decodes its share, and all return all texts.

    Args:
        model: a causal language model, under an adapter or not, the same in every process.
        tokenizer: a text ends at its `eos_token_id`.
        prompts: token ids of each prompt.
        num_beams: 1 decodes greedily.
        length_penalty: a finished beam scores its log probability over length ** length_penalty.
        no_repeat_ngram_size: see `NoRepeatInText`.
        max_new_tokens: a text is cut there, or earlier where the model's positions end.
        batch_size: prompts in a batch; times `num_beams`, the sequences in memory.
        one_line: end a text at its first line break, too.
        verbatim: keep the blanks around a text, but for the one that training puts before it.
        progress: show a bar, on the first process.
    Returns:
        The texts in the order of `prompts`, without blanks around them unless `verbatim`.
    Raises:
        ValueError: if a prompt fills all of the model's positions, or is empty.
        NonFiniteError: if the model gives no number for a text; in every process.
    """
    peft_config = getattr(model, "active_peft_config", None)  # prompt tuning and its like put tokens before a prompt
    virtual = peft_config.num_virtual_tokens if getattr(peft_config, "is_prompt_learning", False) else 0
    positions = (getattr(model.config, "max_position_embeddings", None) or sys.maxsize) - virtual
    budgets = [min(max_new_tokens, positions - len(prompt)) for prompt in prompts]
    for prompt, budget in zip(prompts, budgets):
        if budget < 1 or not prompt:
            raise ValueError(f"A prompt needs between 1 and {positions - 1} tokens, got {len(prompt)}.")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    lengths = [len(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    line_breaks = torch.tensor(line_break_tokens(tokenizer) if one_line else [], dtype=torch.long, device=device)
    settings = _settings(tokenizer, num_beams, length_penalty)
    texts: dict[int, str | None] = {}
    with _ready_to_decode(model):
        # a batch has one budget; and no padding where it counts: with virtual tokens PEFT ignores position ids
        alike = lengths if virtual or _reads_padding(model, tokenizer, prompts, settings) else budgets
    batches = list(batches_by_length(lengths, alike, batch_size, rank, world))
    bar = tqdm(total=sum(map(len, batches)), desc="Decoding", unit="text", disable=not progress or rank > 0)
    with _ready_to_decode(model), bar:
        for batch in batches:
            rows, mask = _pad_left([prompts[index] for index in batch], tokenizer.pad_token_id, device)
            no_numbers = NoNumbers()
            generated = model.generate(
                input_ids=rows,
                attention_mask=mask,
                generation_config=GenerationConfig(max_new_tokens=budgets[batch[0]], **settings),
                logits_processor=[no_numbers, NoRepeatInText(no_repeat_ngram_size, rows.shape[1])],
                stopping_criteria=[StopAtTokens(line_breaks)],
            )
            for index, tokens in zip(batch, generated[:, rows.shape[1] :].tolist()):
                texts[index] = _text(tokens, tokenizer, one_line, verbatim)
            for index, bad in zip(batch, no_numbers.found.view(len(batch), -1).any(1).tolist()):
                texts[index] = None if bad else texts[index]
            bar.update(len(batch))
    if distributed:
        shares: list = [None] * world
        torch.distributed.all_gather_object(shares, texts)
        texts = {index: text for share in shares for index, text in share.items()}
    if bad := sorted(index for index, text in texts.items() if text is None):
        raise NonFiniteError(
            f"The model gives NaN or infinity for the text of input {bad[0] + 1}, and {len(bad)} of {len(prompts)} in "
            "all. No text was scored. Lower --learning_rate, or look at that input."
        )
    return [texts[index] for index in range(len(prompts))]


def _settings(tokenizer, num_beams: int, length_penalty: float) -> dict:
    """Of `GenerationConfig`, but for the length."""
    return {
        "num_beams": num_beams,
        # LoRA's code goes on to max_new_tokens; this stops where no running beam scores as high as the finished ones:
        # the same texts, a third sooner (16 of 16, a trained model, 10 beams)
        "early_stopping": False,
        "do_sample": False,
        "length_penalty": length_penalty if num_beams > 1 else None,
        "renormalize_logits": num_beams > 1,  # LoRA's code forbids tokens before it takes the softmax
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
    }


def _reads_padding(model, tokenizer, prompts, settings: dict) -> bool:
    """Whether padding on the left changes what a model says next: code that comes with one may count positions from
    the first column, whatever the mask says."""
    by_length = {len(prompt): prompt for prompt in prompts}
    if len(by_length) < 2:
        return False
    pair, said = [by_length[length] for length in sorted(by_length)[:2]], []
    for own in (pair[:1], pair):
        rows, mask = _pad_left(own, tokenizer.pad_token_id, next(model.parameters()).device)
        config = GenerationConfig(
            max_new_tokens=1, output_logits=True, return_dict_in_generate=True, **{**settings, "num_beams": 1}
        )
        said.append(model.generate(input_ids=rows, attention_mask=mask, generation_config=config).logits[0][0].float())
    return bool((said[0] - said[1]).abs().max() > math.sqrt(torch.finfo(model.dtype).eps) * said[0].abs().max())


def _pad_left(prompts, pad_token_id: int, device) -> tuple[torch.LongTensor, torch.LongTensor]:
    """(token ids, attention mask), both (prompts, longest): the next token of every row comes right after its last."""
    longest = max(map(len, prompts))
    rows = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


def _text(tokens: list[int], tokenizer, one_line: bool, verbatim: bool) -> str:
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = text.split("\n")[0] if one_line else text
    return text.removeprefix(" ") if verbatim else text.strip()
