"""Sentences in windows of sub-tokens, and from windows back to sentences and their entity scores."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from tokenizers.pre_tokenizers import ByteLevel

from autolora_trainer.tasks.files import DataError
from autolora_trainer.tasks.ner import OUTSIDE, logger

IGNORED = -100  # cross entropy passes over this label
OVERLAP = 1 / 4  # share of a window that the next one repeats, for context


def lacks_prefix_space(tokenizer) -> bool:
    """Whether a byte-level tokenizer takes words in a list for continuations of the word before them.

    RoBERTa's and GPT-2's vocabularies know `Ġgene`, the word after a blank; without `add_prefix_space=True` they see
    `g`, `ene` instead, and say nothing (transformers 5.23 no longer refuses).
    """
    state = tokenizer.backend_tokenizer.pre_tokenizer
    state = json.loads(state.__getstate__()) if state is not None else {}
    steps = state.get("pretokenizers", [state])
    return any(step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps)


def add_prefix_space(tokenizer) -> None:
    """Make a byte-level tokenizer start every word with a blank, where its argument `add_prefix_space` did not do it.

    RoBERTa's and GPT-2's classes read that argument; a tokenizer without a class of its own (ModernBERT's) keeps what
    its tokenizer.json says. One that splits words by an expression first (Llama 3's) would put a blank before every
    part of a word: it is left as it is, and `tokenize` writes the blank.
    """
    step = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(step, ByteLevel):
        step.add_prefix_space = True


def window_length(tokenizer, max_seq_length: int, positions: int | None = None) -> int:
    """Tokens of a window, special tokens included: `max_seq_length`, or less where the model takes less.

    Args:
        positions: `max_position_embeddings` of the model's config; it counts where the tokenizer has no limit.
    Raises:
        DataError: If that leaves no room for a word.
    """
    longest = tokenizer.model_max_length
    if longest > 10**9 and positions:  # transformers' mark for "not set"
        longest = positions - 2  # RoBERTa's first two positions are padding's
    if max_seq_length > longest:
        logger.warning("max_seq_length %d is more than the model takes; using %d.", max_seq_length, longest)
        max_seq_length = longest
    special = tokenizer.num_special_tokens_to_add()
    if max_seq_length <= special:
        raise DataError(
            f"max_seq_length={max_seq_length} leaves no room for words: the tokenizer adds {special} special tokens. "
            f"Give --max_seq_length {special + 1} or more."
        )
    return max_seq_length


def plan_windows(pieces: Sequence[int], room: int) -> list[tuple[int, int, list[int]]]:
    """Cut a sentence into windows so that every word is scored once, where it has most context.

    A window is as long as fits, and the next repeats the last quarter of it. A word that stands in several is scored
    in the one that shows more sub-tokens on the shorter side of it; an end of the sentence is no short side.

    Args:
        pieces: sub-tokens of each word; a word without any is scored nowhere, and one with more than `room` counts
            as `room`.
        room: sub-tokens in a window.
    Returns:
        (first word, word after the last, words that are scored there) of every window in which any is.
    Example:
        >>> plan_windows([1, 1, 1, 1, 1, 1], room=4)
        [(0, 4, [0, 1, 2]), (2, 6, [3, 4, 5])]
    """
    pieces = [min(count, room) for count in pieces]
    spans, start = [], 0
    while True:
        end, size = start, 0
        while end < len(pieces) and size + pieces[end] <= room:
            size += pieces[end]
            end += 1
        if end == len(pieces):
            break
        spans.append((start, end))
        start, repeated = end, 0
        while start - 1 > spans[-1][0]:
            repeated += pieces[start - 1]
            if repeated > OVERLAP * room or repeated + pieces[end] > room:
                break
            start -= 1
    while start > 0 and size + pieces[start - 1] <= room:  # the last one may have room for more context
        start -= 1
        size += pieces[start]
    spans.append((start, end))

    best = {}  # word -> (context, window)
    for window, (start, end) in enumerate(spans):
        before, after = 0, sum(pieces[start:end])
        for word in range(start, end):
            after -= pieces[word]
            context = min(before if start > 0 else room, after if end < len(pieces) else room)
            before += pieces[word]
            if pieces[word] and context > best.get(word, (-1,))[0]:
                best[word] = (context, window)
    scored = [[] for _ in spans]
    for word in sorted(best):
        scored[best[word][1]].append(word)
    return [(*span, words) for span, words in zip(spans, scored) if words]


@dataclass(frozen=True)
class Windows:
    """Sentences as a model takes them, and the way back.

    Args:
        rows: a row a window: input_ids, attention_mask (token_type_ids where the tokenizer makes them) and, for
            labelled sentences, labels: the id of a word's tag at its first sub-token, -100 elsewhere.
        places: for every row its sentence, and [(word, position of its first sub-token)] of the words scored there.
        words, tags: how many words every sentence has, and its tags, names; None where it has none.
    """

    rows: Dataset
    places: list[tuple[int, list[tuple[int, int]]]]
    words: list[int]
    tags: list[list[str]] | None

    def join(self, outputs: Iterable, label_names: Sequence[str]) -> list[list[str]]:
        """Predicted tags of whole sentences; a word without sub-tokens is `O`.

        Args:
            outputs: logits, shape (rows, tokens, labels), in the order of `rows`; tokens are padded on the right.
        """
        joined = [[OUTSIDE] * count for count in self.words]
        for (sentence, places), logits in zip(self.places, outputs, strict=True):
            best = np.asarray(logits).argmax(-1)  # (tokens,)
            for word, position in places:
                joined[sentence][word] = label_names[best[position]]
        return joined


def tokenize(dataset: Dataset, tokenizer, label2id: dict[str, int], length: int) -> Windows:
    """Turn sentences into windows of at most `length` tokens.

    Args:
        dataset: rows with tokens and, where they have any, tags, as `load_task` gives them.
        tokenizer: a fast tokenizer that pads on the right.
    Raises:
        DataError: If no word gives a sub-token.
    """
    room = length - tokenizer.num_special_tokens_to_add()
    sentences = dataset["tokens"][:]
    tags = dataset["tags"][:] if "tags" in dataset.column_names else None
    space = " " if lacks_prefix_space(tokenizer) else ""
    windows = []  # (sentence, its words in the window, [(word, its number in the window)])
    texts = [[space + word for word in words] for words in sentences]
    for sentence, word_ids in enumerate(_word_ids(tokenizer, texts)):
        pieces = np.bincount(word_ids, minlength=len(texts[sentence])).tolist()
        for start, end, scored in plan_windows(pieces, room):
            windows.append((sentence, texts[sentence][start:end], [(word, word - start) for word in scored]))
    if not windows:
        raise DataError("No word of these rows gives a token of this model. Check the text, or give another model.")
    columns, places = {}, []
    for chunk in _chunks(windows):
        # only a word that alone is longer than a window is cut here, and its first sub-token stays
        encoded = tokenizer(
            [words for _, words, _ in chunk], is_split_into_words=True, truncation=True, max_length=length
        )
        for index, (sentence, _, scored) in enumerate(chunk):
            first = {}
            for position, number in enumerate(encoded.word_ids(index)):
                first.setdefault(number, position)
            places.append((sentence, [(word, first[number]) for word, number in scored]))
            if tags is not None:
                labels = [IGNORED] * len(encoded["input_ids"][index])
                for word, position in places[-1][1]:
                    labels[position] = label2id[tags[sentence][word]]
                columns.setdefault("labels", []).append(labels)
        for name, values in encoded.items():
            columns.setdefault(name, []).extend(values)
    return Windows(Dataset.from_dict(columns), places, [len(words) for words in sentences], tags)


def _chunks(items: list) -> Iterator[list]:
    return (items[start : start + 1000] for start in range(0, len(items), 1000))


def _word_ids(tokenizer, texts: list[list[str]]) -> Iterator[list[int]]:
    """For every sentence the number of the word that each of its sub-tokens belongs to."""
    for chunk in _chunks(texts):
        encoded = tokenizer(chunk, is_split_into_words=True, add_special_tokens=False, verbose=False)
        yield from (encoded.word_ids(index) for index in range(len(chunk)))


def require_seqeval() -> None:
    """Raise `DataError` where seqeval, which is not in the base set of packages, is missing."""
    try:
        import seqeval  # noqa: F401
    except ImportError:
        raise DataError(
            'The scores of named entities need seqeval, which is not installed. Type: pip install ".[ner]"'
        ) from None


def entity_scores(references: list[list[str]], predictions: list[list[str]]) -> dict[str, float]:
    """Strict scores of entities in IOB2: type, first and last word must all be right (seqeval).

    Args:
        references, predictions: tags of every sentence, of equal lengths.
    Returns:
        precision, recall and f1 over all entities (micro), accuracy of the tags, and precision_<type>, recall_<type>
        and f1_<type> of every type in references or predictions. A ratio without a denominator is 0.
    Example:
        >>> gold = [["B-DNA", "I-DNA", "O", "B-protein"], ["O", "B-DNA"]]
        >>> guess = [["B-DNA", "O", "O", "B-protein"], ["O", "B-DNA"]]
        >>> {name: round(score, 2) for name, score in entity_scores(gold, guess).items()}
        {'precision': 0.67, 'recall': 0.67, 'f1': 0.67, 'accuracy': 0.83, 'precision_DNA': 0.5, 'recall_DNA': 0.5,
         'f1_DNA': 0.5, 'precision_protein': 1.0, 'recall_protein': 1.0, 'f1_protein': 1.0}
    """
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2, Entities

    true, predicted = Entities(references, IOB2), Entities(predictions, IOB2)

    def strict(average):
        options = {"scheme": IOB2, "zero_division": 0, "entities_true": true, "entities_pred": predicted}
        return precision_recall_fscore_support(references, predictions, average=average, **options)[:3]

    names = ("precision", "recall", "f1")
    scores = {name: float(value) for name, value in zip(names, strict("micro"))}
    pairs = [pair for sentence in zip(references, predictions) for pair in zip(*sentence)]
    scores["accuracy"] = sum(reference == prediction for reference, prediction in pairs) / len(pairs)
    for kind, *values in zip(sorted(true.unique_tags | predicted.unique_tags), *strict(None)):
        scores.update({f"{name}_{kind}": float(value) for name, value in zip(names, values)})
    return scores


def compute_metrics(windows: Windows, label_names: Sequence[str]):
    """Make the `compute_metrics` of a `transformers.Trainer` that evaluates `windows.rows`, all of them, in order: the
    `entity_scores` of the joined sentences."""

    def compute(prediction) -> dict[str, float]:
        return entity_scores(windows.tags, windows.join(rows_of(prediction.predictions), label_names))

    return compute


def rows_of(predictions) -> Iterable:
    """The logits of every row, of what `Trainer` gives: an array, a tuple whose first it is, or one a batch."""
    predictions = predictions[0] if isinstance(predictions, tuple) else predictions
    if isinstance(predictions, list):  # eval_do_concat_batches=False
        return (row for batch in predictions for row in rows_of(batch))
    return predictions
