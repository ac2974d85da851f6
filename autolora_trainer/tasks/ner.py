"""Token classification (§5.4): JNLPBA (BioNLP-2004) and a user's own rows; IOB2 files, windows, strict entity scores.

A row is a sentence: `tokens`, its words, and `tags`, one IOB2 tag a word (`O`, `B-type`, `I-type`). Scores are about
words and the entities that they make: every word gets one prediction, however the tokenizer splits it and in however
many windows a long sentence is read.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from tokenizers.pre_tokenizers import ByteLevel

from autolora_trainer.tasks.files import DataError, read_rows, read_text, shown_columns, shown_path, shown_value
from autolora_trainer.tasks.hub_data import load_from_hub

logger = logging.getLogger(__name__)

OUTSIDE = "O"
IGNORED = -100  # cross entropy passes over this label
# The ids of `tner/bionlp2004`. `jnlpba/jnlpba` numbers the same labels otherwise: see `read_labels`.
JNLPBA_LABELS = (
    OUTSIDE,
    *("B-DNA", "I-DNA", "B-protein", "I-protein", "B-cell_type", "I-cell_type"),
    *("B-cell_line", "I-cell_line", "B-RNA", "I-RNA"),
)
JNLPBA_HUB_ID = "tner/bionlp2004"
# Its main branch holds a loading script, which datasets 5 does not run. This commit of refs/convert/parquet holds
# bionlp2004/{train,validation,test}/0000.parquet.
JNLPBA_HUB_REVISION = "644e163fb7a22aa1772609e7c6943c76de0b8fe2"
TASKS = ("jnlpba", "ner")

LABELS_FILE = "labels.json"
IOB2_ENDINGS = (".iob2", ".conll", ".tsv")
ENDINGS = "Give a .jsonl, .json, .iob2, .conll or .tsv file."
IOB2_TAG = re.compile(r"O|[BI]-\S+")
OVERLAP = 1 / 4  # share of a window that the next one repeats, for context


# ---- rows


@dataclass(frozen=True)
class Sentences:
    """Rows as they were read, before their tags are checked.

    Args:
        tokens, tags: one entry a sentence; `tags` is None where the source has no such column.
        source: what to call the source in a message.
        lines: the line of every word, where the source is an IOB2 file.
        tag_column: `tags`, or `ner_tags`.
    """

    tokens: list
    tags: list | None
    source: str
    lines: list[list[int]] | None = None
    tag_column: str = "tags"

    def place(self, row: int, word: int | None = None) -> str:
        """Where a sentence or one of its words stands, for a message."""
        if self.lines is None:
            return f"{self.source}, row {row + 1}"
        return f"{self.source}, line {self.lines[row][word or 0]}"


def load_task(
    task: str,
    *,
    train_file=None,
    validation_file=None,
    test_file=None,
    label_names: Sequence[str] | None = None,
    cache_dir=None,
    token=None,
) -> tuple[DatasetDict, tuple[str, ...]]:
    """Load a task's rows: from files where any is given, else from the hub (jnlpba).

    Args:
        task: `jnlpba`, or `ner` for rows with labels of their own.
        train_file, validation_file, test_file: .jsonl or .json files with the columns tokens and tags (or ner_tags),
            or IOB2 files (see `read_iob2`). Tags are names, or ids: those of the labels.json beside the file, else
            jnlpba's. Only test rows may lack tags.
        label_names: the labels by id of `ner`; None: those of a labels.json that names the training rows' ids, else
            the names in the training rows, sorted, `O` first.
        cache_dir, token: as in `datasets.load_dataset`.
    Returns:
        The splits train, validation and test, where there are such, with the columns tokens and tags (names; no tags
        where a test set has none), and the labels by id.
    Raises:
        DataError: On the first thing that is wrong with a file or a row, or if the hub does not give the data.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {split: path for split, path in files.items() if path is not None}
    if task == "jnlpba" and not files:
        splits = [(name, name) for name in ("train", "validation", "test")]
        hub = load_from_hub(
            JNLPBA_HUB_ID, None, splits, cache_dir=cache_dir, token=token, revision=JNLPBA_HUB_REVISION
        )
        read = {split: _sentences(rows, f"{JNLPBA_HUB_ID} ({split})") for split, rows in hub.items()}
    elif not files:
        raise DataError("The task ner is your own data. Give it with --train_file and --validation_file.")
    else:
        read = {split: read_sentences(path, split) for split, path in files.items()}
    numbered = {split: path for split, path in files.items() if _is_numbered(read[split])}
    beside = {split: read_labels(Path(path).parent) for split, path in numbered.items()}
    if task == "jnlpba":
        label_names, owner, ids = JNLPBA_LABELS, "jnlpba has", JNLPBA_LABELS
    else:
        ids, owner = beside.get("train"), "the training rows have"
    rows = {}
    for split, sentences in read.items():
        id_names = beside.get(split) or ids
        if task == "jnlpba" and split in numbered and sentences.tag_column == "ner_tags" and not beside[split]:
            _warn_of_other_ids(sentences)
        names = _names(sentences, split, id_names, label_names, owner)
        if label_names is None:  # of ner's training rows, which come first
            if split != "train":
                raise DataError(
                    f"{sentences.source}: ner takes its labels from the training rows, got none. Give --train_file."
                )
            used = {tag for tags in names for tag in tags}
            label_names = id_names if _is_numbered(sentences) else (OUTSIDE, *sorted(used - {OUTSIDE}))
        _warn_of_stray_inside_tags(sentences, names)
        columns = {"tokens": sentences.tokens, **({} if names is None else {"tags": names})}
        rows[split] = Dataset.from_dict(columns)
        check_split(rows[split], split, files.get(split))  # before other splits are held against its labels
    return DatasetDict(rows), tuple(label_names)


def read_sentences(path, split: str = "train") -> Sentences:
    """Read a file of sentences; its tags are not checked yet.

    Raises:
        DataError: If the file cannot be read, or has no column tokens, or no tags in another split than test.
    """
    ending = Path(path).suffix.lower()
    if ending in IOB2_ENDINGS:
        return read_iob2(path, tags_optional=split == "test")
    if ending == ".csv":
        raise DataError(f"{shown_path(path)}: a CSV file cannot hold lists of words and tags. {ENDINGS}")
    if ending not in (".jsonl", ".json"):
        raise DataError(f"{shown_path(path)}: cannot tell the format from the ending {ending!r}. {ENDINGS}")
    return _sentences(read_rows(path), shown_path(path), tags_optional=split == "test")


def _sentences(rows: Dataset, source: str, tags_optional: bool = False) -> Sentences:
    column = "ner_tags" if "ner_tags" in rows.column_names and "tags" not in rows.column_names else "tags"
    for needed in ("tokens", *(() if tags_optional else (column,))):
        if needed not in rows.column_names:
            raise DataError(
                f"{source} has no column {needed!r}: the columns tokens and tags are needed, and those given are "
                f"{shown_columns(rows.column_names)}. Rename the columns."
            )
    tags = rows[column][:] if column in rows.column_names else None
    sentences = Sentences(rows["tokens"][:], tags, source, tag_column=column)
    for row, words in enumerate(sentences.tokens):
        place = sentences.place(row)
        if not isinstance(words, list):
            raise DataError(
                f"{place}: tokens is {shown_value(words)}, and a list of words is needed. Write it as "
                '["word", ...], or leave the row out.'
            )
        if not words:
            raise DataError(f"{place}: tokens is empty. Give at least one word, or leave the row out.")
        for number, word in enumerate(words, 1):
            if not isinstance(word, str) or not word:
                raise DataError(
                    f"{place}: word {number} is {shown_value(word)}, and text is needed. Write every word as a string "
                    "that is not empty, or leave the row out."
                )
    return sentences


def read_iob2(path, tags_optional: bool = False) -> Sentences:
    """Read an IOB2 file: a word a line, its tag in the last column, a blank line after every sentence.

    Columns are separated by a tab or by blanks; of four (as in CoNLL-2003) the first and the last count. Skipped are
    `-DOCSTART-` lines, JNLPBA's `###MEDLINE:…` lines, and lines before a sentence that start with `# ` and do not end
    in a tag (CoNLL-U's comments).

    Args:
        path: a file in UTF-8; a quote in it is an ordinary character.
        tags_optional: a file without any tag is read too; it is a file of one column.
    Raises:
        DataError: If the file cannot be read, or a word has no tag; it names file and line.
    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "rows.iob2")
        >>> _ = path.write_text("###MEDLINE:95369245\\n\\nIL-2\\tB-DNA\\ngene\\tI-DNA\\n\\nthe O\\n")
        >>> sentences = read_iob2(path)
        >>> sentences.tokens, sentences.tags, sentences.place(0, 1)[-6:]
        ([['IL-2', 'gene'], ['the']], [['B-DNA', 'I-DNA'], ['O']], 'line 4')
    """
    source = shown_path(path)
    found, sentence = [], []  # a sentence: (line, fields) of its words
    for number, line in enumerate(read_text(path, source).split("\n"), 1):
        fields = _fields(line)
        if not fields or fields[0] == "-DOCSTART-":
            found.append(sentence)
            sentence = []
        elif not _is_comment(fields, line, bool(sentence)):
            sentence.append((number, fields))
    found = [sentence for sentence in (*found, sentence) if sentence]
    if not found:
        raise DataError(f"{source} has no rows. Give a file with at least one row.")
    has_tags = not tags_optional or any(len(fields) > 1 for sentence in found for _, fields in sentence)
    for sentence in found:
        for number, fields in sentence:
            if not fields[0] or (has_tags and len(fields) == 1):
                what = f"{shown_value(fields[0])} has no tag" if fields[0] else "there is no word before the tag"
                raise DataError(
                    f"{source}, line {number}: {what}. Write a word, a tab and its tag, or leave the line blank to "
                    "end the sentence."
                )
    return Sentences(
        tokens=[[fields[0] for _, fields in sentence] for sentence in found],
        tags=[[fields[-1] for _, fields in sentence] for sentence in found] if has_tags else None,
        source=source,
        lines=[[number for number, _ in sentence] for sentence in found],
    )


def _fields(line: str) -> list[str]:
    line = line.rstrip(" \t\r")
    if "\t" in line:  # a word may hold a blank then
        return [field.strip(" ") for field in line.split("\t")]
    return re.findall("[^ ]+", line)  # str.split would also split at a no-break space, which may be a word


def _is_comment(fields: list[str], line: str, in_sentence: bool) -> bool:
    if len(fields) > 1 and IOB2_TAG.fullmatch(fields[-1]):
        return False  # "#" is a word too
    return line.startswith("###") or (line.startswith("# ") and not in_sentence)


def read_labels(folder) -> tuple[str, ...] | None:
    """The labels by id of a labels.json in `folder`, `{"labels": ["O", "B-protein", …]}`; None: there is no such file.

    Raises:
        DataError: If the file does not hold that.
    """
    path = Path(folder, LABELS_FILE)
    if not path.is_file():
        return None
    name = shown_path(path)
    try:
        content = json.loads(read_text(path, name))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} is no JSON: {' '.join(str(error).split())}. Correct it, or remove it.") from None
    labels = content.get("labels") if isinstance(content, dict) else None
    names = labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else []
    if OUTSIDE not in names or len(set(names)) < len(names) or not all(map(IOB2_TAG.fullmatch, names)):
        raise DataError(
            f'{name} must hold {{"labels": [...]}}, different IOB2 tags with O among them, got '
            f"{shown_value(content if labels is None else labels)}. Correct it, or remove it and write the tags as "
            "names."
        )
    return tuple(names)


def _is_numbered(sentences: Sentences) -> bool:
    """Whether tags are ids; a column of a file has one type."""
    return any(isinstance(tag, int) for tags in sentences.tags or () if isinstance(tags, list) for tag in tags)


def _names(
    sentences: Sentences, split: str, id_names: Sequence[str] | None, label_names: Sequence[str] | None, owner: str
) -> list[list[str]] | None:
    """The tags as names, checked. None: test rows without tags."""
    if sentences.tags is None:
        return None
    lacking = [row for row, tags in enumerate(sentences.tags) if tags is None or tags == []]
    if lacking and split == "test":
        if len(lacking) < len(sentences.tags):
            logger.warning("%s: %d rows have no tags, so none are scored.", sentences.source, len(lacking))
        return None
    if lacking:
        raise DataError(
            f"{sentences.place(lacking[0])}: the row has no tags, and every row for {split} needs them. Give the "
            "tags, or leave the row out."
        )
    if _is_numbered(sentences) and id_names is None:
        raise DataError(
            f"{sentences.source}: the tags are numbers, and nothing names them. Write them as strings such as "
            f'B-protein, or put a {LABELS_FILE} with {{"labels": ["O", "B-protein", ...]}} beside the file.'
        )
    return [_row_names(sentences, row, id_names, label_names, owner) for row in range(len(sentences.tags))]


def _row_names(sentences, row, id_names, label_names, owner) -> list[str]:
    tags, words = sentences.tags[row], sentences.tokens[row]
    if not isinstance(tags, list):
        raise DataError(
            f"{sentences.place(row)}: {sentences.tag_column} is {shown_value(tags)}, and a list is needed. Write it "
            'as ["O", ...], or leave the row out.'
        )
    if len(tags) != len(words):
        raise DataError(
            f"{sentences.place(row)}: {len(words)} tokens, but {len(tags)} tags; every token needs one tag. Correct "
            "the row, or leave it out."
        )
    names = []
    for word, tag in enumerate(tags):
        name, needed = tag, None
        if isinstance(tag, int) and not isinstance(tag, bool):
            if tag in range(len(id_names)):
                name = id_names[tag]
            else:
                last = len(id_names) - 1
                needed = f"the ids are 0 ({id_names[0]}) to {last} ({id_names[last]})"
        if needed is None and not (isinstance(name, str) and IOB2_TAG.fullmatch(name)):
            needed = "IOB2 tags are O, B-type and I-type"
        if needed is None and label_names is not None and name not in label_names:
            needed = f"{owner} {shown_columns(label_names)}"
        if needed is not None:
            raise DataError(
                f"{sentences.place(row, word)}: the tag is {shown_value(tag)}, and {needed}. Correct the tag, or "
                "leave the row out."
            )
        names.append(name)
    return names


def _warn_of_other_ids(sentences: Sentences) -> None:
    logger.warning(
        "%s: the ids in ner_tags are read as those of %s (3 is %s); jnlpba/jnlpba numbers them otherwise. Write the "
        "tags as names, or put a %s beside the file.",
        sentences.source,
        JNLPBA_HUB_ID,
        JNLPBA_LABELS[3],
        LABELS_FILE,
    )


def _warn_of_stray_inside_tags(sentences: Sentences, names: list[list[str]] | None) -> None:
    stray = [
        (row, word)
        for row, tags in enumerate(names or ())
        for word, (before, tag) in enumerate(zip([OUTSIDE, *tags], tags))
        if tag[0] == "I" and before not in (tag, "B" + tag[1:])
    ]
    if stray:
        logger.warning(
            "%s: %d I- tags continue no entity of their type (the first is %s in %s); strict IOB2 scores do not count "
            "them.",
            sentences.source,
            len(stray),
            names[stray[0][0]][stray[0][1]],
            sentences.place(*stray[0]).rsplit(", ", 1)[-1],
        )


def check_split(dataset: Dataset, split: str, path=None) -> None:
    """Check what a cut by `--max_train_samples` can take from rows that `load_task` gave.

    Raises:
        DataError: If no training row holds an entity.
    """
    if split == "train" and all(tag == OUTSIDE for tags in dataset["tags"][:] for tag in tags):
        source = shown_path(path) if path is not None else f"The {split} split"
        raise DataError(
            f"{source}: every tag of the {len(dataset)} rows is O, and there is no entity to learn. Add rows with "
            "entities, or check the tags column."
        )


# ---- sub-tokens and windows


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
        tokenizer: a fast tokenizer.
        max_seq_length: as the user wants it.
        positions: `max_position_embeddings` of the model's config; it counts where the tokenizer has no limit.
    Raises:
        DataError: If that leaves no room for a word.
    """
    longest = tokenizer.model_max_length
    if longest > 10**9 and positions:  # transformers' mark for "not set"
        longest = positions - 2  # RoBERTa's first two positions are padding's
    if max_seq_length > longest:
        logger.warning("max_seq_length %d is more than the model takes; using %d.", max_seq_length, longest)
    special = tokenizer.num_special_tokens_to_add()
    if min(max_seq_length, longest) <= special:
        raise DataError(
            f"max_seq_length={min(max_seq_length, longest)} leaves no room for words: the tokenizer adds {special} "
            f"special tokens. Give --max_seq_length {special + 1} or more."
        )
    return min(max_seq_length, longest)


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
        words: words of every sentence.
        tags: tags of every sentence, names; None where they have none.
    """

    rows: Dataset
    places: list[tuple[int, list[tuple[int, int]]]]
    words: list[int]
    tags: list[list[str]] | None

    def join(self, outputs: Iterable, label_names: Sequence[str]) -> list[list[str]]:
        """Predicted tags of whole sentences; a word without sub-tokens is `O`.

        Args:
            outputs: logits, shape (rows, tokens, labels), in the order of `rows`; tokens are padded on the right.
            label_names: by id.
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
        label2id: the model's ids by label name.
        length: of `window_length`.
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


def _chunks(items: list, size: int = 1000) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _word_ids(tokenizer, texts: list[list[str]]) -> Iterator[list[int]]:
    """For every sentence the number of the word that each of its sub-tokens belongs to."""
    for chunk in _chunks(texts):
        encoded = tokenizer(chunk, is_split_into_words=True, add_special_tokens=False, verbose=False)
        yield from (encoded.word_ids(index) for index in range(len(chunk)))


# ---- scores


def require_seqeval() -> None:
    """Raise `DataError` where seqeval, which is not in the base set of packages, is missing."""
    try:
        import seqeval  # noqa: F401
    except ImportError:
        raise DataError(
            "The scores of named entities need seqeval, which is not installed. Type: pip install "
            "'autolora_trainer[ner]'"
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
        return precision_recall_fscore_support(
            references,
            predictions,
            average=average,
            scheme=IOB2,
            zero_division=0,
            entities_true=true,
            entities_pred=predicted,
        )[:3]

    names = ("precision", "recall", "f1")
    scores = {name: float(value) for name, value in zip(names, strict("micro"))}
    pairs = [pair for sentence in zip(references, predictions) for pair in zip(*sentence)]
    scores["accuracy"] = sum(reference == prediction for reference, prediction in pairs) / len(pairs)
    for kind, *values in zip(sorted(true.unique_tags | predicted.unique_tags), *strict(None)):
        scores.update({f"{name}_{kind}": float(value) for name, value in zip(names, values)})
    return scores


def compute_metrics(windows: Windows, label_names: Sequence[str]):
    """Make the `compute_metrics` of a `transformers.Trainer` that evaluates `windows.rows`, all of them, in order.

    Args:
        windows: of `tokenize`, with tags.
        label_names: by id.
    Returns:
        A function of an `EvalPrediction` that gives `entity_scores` of the joined sentences.
    """

    def compute(prediction) -> dict[str, float]:
        return entity_scores(windows.tags, windows.join(rows_of(prediction.predictions), label_names))

    return compute


def rows_of(predictions) -> Iterable:
    """The logits of every row, of what `Trainer` gives: an array, a tuple whose first it is, or one a batch."""
    predictions = predictions[0] if isinstance(predictions, tuple) else predictions
    if isinstance(predictions, list):  # eval_do_concat_batches=False
        return (row for batch in predictions for row in rows_of(batch))
    return predictions
