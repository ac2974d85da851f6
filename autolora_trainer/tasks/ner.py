"""Token classification (§5.4): JNLPBA (BioNLP-2004) and a user's own rows; IOB2 files, windows, strict entity scores.

A row is a sentence: `tokens`, its words, and `tags`, one IOB2 tag a word (`O`, `B-type`, `I-type`). Scores are about
words and the entities that they make: every word gets one prediction, however the tokenizer splits it and in however
many windows a long sentence is read.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict

from autolora_trainer.files import parse_json
from autolora_trainer.tasks.files import (
    QUOTED,
    DataError,
    load_from_hub,
    read_rows,
    read_text,
    shown_columns,
    shown_path,
    shown_value,
    split_lines,
)

logger = logging.getLogger(__name__)

OUTSIDE = "O"
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
MOST_LABEL_BYTES = 500_000  # a head has a row for each
IOB2_ENDINGS = (".iob2", ".conll", ".tsv")
ENDINGS = "Give a .jsonl, .json, .iob2, .conll or .tsv file."
MOST_KINDS = 1000  # of entities
IOB2_TAG = re.compile(r"O|[BI]-\S+")


@dataclass(frozen=True)
class Sentences:
    """Rows as they were read, before their tags are checked.

    Args:
        tokens, tags: one entry a sentence; `tags` is None where the source has no such column.
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
    task: str, *, train_file=None, validation_file=None, test_file=None, label_names=None, cache_dir=None, token=None
) -> tuple[DatasetDict, tuple[str, ...]]:
    """Load a task's rows: from files where any is given, else from the hub (jnlpba).

    Args:
        task: `jnlpba`, or `ner` for rows with labels of their own.
        train_file, validation_file, test_file: .jsonl or .json files with the columns tokens and tags (or ner_tags),
            or IOB2 files (see `read_iob2`). Tags are names, or ids: those of the labels.json beside the file, else
            jnlpba's. Only test rows may lack tags.
        label_names: the labels by id of `ner`; None: those of a labels.json that names the training rows' ids, else
            the names in the training rows, sorted, `O` first.
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
            logger.warning(
                f"{sentences.source}: the ids in ner_tags are read as those of {JNLPBA_HUB_ID} (3 is "
                f"{JNLPBA_LABELS[3]}); jnlpba/jnlpba numbers them otherwise. Write the tags as names, or put a "
                f"{LABELS_FILE} beside the file."
            )
        names = _names(sentences, split, id_names, label_names, owner)
        if label_names is None:  # of ner's training rows, which come first
            if split != "train":
                raise DataError(
                    f"{sentences.source}: ner takes its labels from the training rows, got none. Give --train_file."
                )
            used = {tag for tags in names for tag in tags}
            label_names = id_names if _is_numbered(sentences) else (OUTSIDE, *sorted(used - {OUTSIDE}))
            _check_count(sentences.source, label_names)
        _warn_of_stray_inside_tags(sentences, names)
        rows[split] = Dataset.from_dict({"tokens": sentences.tokens} | ({} if names is None else {"tags": names}))
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

    Columns are separated by a tab or by blanks; of four (as in CoNLL-2003) the first and the last count. Lines end in
    LF, CRLF or CR. Skipped are `-DOCSTART-` lines, JNLPBA's `###MEDLINE:…` lines, and lines before a sentence that
    start with `# ` and do not end in a tag, or have no tab where the others do (CoNLL-U's comments).

    Args:
        path: a file in UTF-8; a quote in it is an ordinary character.
        tags_optional: a file without any tag is read too; it is a file of one column.
    Raises:
        DataError: If the file cannot be read, a word has no tag, or lines have different numbers of columns; it names
            file and line.
    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "rows.iob2")
        >>> _ = path.write_text("###MEDLINE:95369245\\n\\nIL-2\\tB-DNA\\ngene\\tI-DNA\\n\\nthe O\\n")
        >>> sentences = read_iob2(path)
        >>> sentences.tokens, sentences.tags, sentences.place(0, 1)[-6:]
        ([['IL-2', 'gene'], ['the']], [['B-DNA', 'I-DNA'], ['O']], 'line 4')
    """
    source = shown_path(path)
    text = read_text(path, source)
    found, sentence = [], []  # a sentence: (line, fields) of its words
    for number, line in enumerate(split_lines(text), 1):
        line = re.sub(r"^\ufeff(?=\S)", "", line)  # where another file was put behind a first one
        fields = _fields(line)
        if not fields or fields[0] == "-DOCSTART-":
            found.append(sentence)
            sentence = []
        elif not _is_comment(fields, line, bool(sentence), "\t" in text):
            sentence.append((number, fields))
    found = [sentence for sentence in (*found, sentence) if sentence]
    if not found:
        raise DataError(f"{source} has no rows. Give a file with at least one row.")
    has_tags = not tags_optional or any(len(fields) > 1 for sentence in found for _, fields in sentence)
    _check_words([word for sentence in found for word in sentence], has_tags, source)
    return Sentences(
        tokens=[[fields[0] for _, fields in sentence] for sentence in found],
        tags=[[fields[-1] for _, fields in sentence] for sentence in found] if has_tags else None,
        source=source,
        lines=[[number for number, _ in sentence] for sentence in found],
    )


def _check_words(words: list[tuple[int, list[str]]], has_tags: bool, source: str) -> None:
    """Raise `DataError` for a line without a word or a tag, or with more columns than others: a word with a blank."""
    first_line, first = words[0]
    for number, fields in words:
        if not fields[0] or (has_tags and len(fields) == 1):
            what = f"{shown_value(fields[0])} has no tag" if fields[0] else "there is no word before the tag"
            raise DataError(
                f"{source}, line {number}: {what}. Write a word, a tab and its tag, or leave the line blank to "
                "end the sentence."
            )
        if len(fields) != len(first):
            raise DataError(
                f"{source}, line {number}: {len(fields)} columns, and line {first_line} has {len(first)}. Separate "
                "columns by one tab, also where a word holds a blank."
            )
    if quoted := [(number, fields[0]) for number, fields in words if QUOTED.fullmatch(fields[0])]:
        logger.warning(
            f"{source}: {len(quoted)} words look quoted as in CSV (the first is {shown_value(quoted[0][1])} in line "
            f"{quoted[0][0]}), and are taken as they are. With pandas: to_csv(..., quoting=csv.QUOTE_NONE)."
        )


def _fields(line: str) -> list[str]:
    line = line.rstrip(" \t")
    if "\t" in line:  # a word may hold a blank then
        return [field.strip(" ") for field in line.split("\t")]
    return re.findall("[^ ]+", line)  # str.split would also split at a no-break space, which may be a word


def _is_comment(fields: list[str], line: str, in_sentence: bool, tabbed: bool) -> bool:
    if tabbed and "\t" not in line and line.startswith("# ") and not in_sentence:
        return True  # "# text = vitamin O"
    if len(fields) > 1 and IOB2_TAG.fullmatch(fields[-1]):
        return False  # "#" is a word too
    return line.startswith("###") or (line.startswith("# ") and not in_sentence)


def read_labels(folder) -> tuple[str, ...] | None:
    """The labels by id of a labels.json in `folder`, `{"labels": ["O", "B-protein", …]}`; None: there is no such file.
    `DataError` if the file does not hold that."""
    path = Path(folder, LABELS_FILE)
    if not path.is_file():
        return None
    name = shown_path(path)
    if path.stat().st_size > MOST_LABEL_BYTES:
        raise DataError(f"{name} has more than {MOST_LABEL_BYTES:,} bytes, and a head a row a label. Remove it.")
    text = read_text(path, name)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"{name} is no JSON: {error}. Correct it, or remove it.") from None
    labels = content.get("labels") if isinstance(content, dict) else None
    names = labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else []
    if OUTSIDE not in names or len(set(names)) < len(names) or not all(map(IOB2_TAG.fullmatch, names)):
        raise DataError(
            f'{name} must hold {{"labels": [...]}}, different IOB2 tags with O among them, got '
            f"{shown_value(content if labels is None else labels)}. Correct it, or remove it and write the tags as "
            "names."
        )
    _check_count(name, names)
    return tuple(names)


def _check_count(source: str, names) -> None:
    """Raise `DataError` for more kinds of entities than anybody has: the head and the scores of each take time."""
    kinds = {name[2:] for name in names if name != OUTSIDE}
    if len(kinds) > MOST_KINDS:
        raise DataError(
            f"{source}: the tags name {len(kinds):,} kinds of entities, as {shown_columns(sorted(kinds)[:2])}; at "
            f"most {MOST_KINDS:,} are taken. Check the tags column."
        )


def _is_numbered(sentences: Sentences) -> bool:
    """Whether tags are ids; a column of a file has one type."""
    return any(isinstance(tag, int) for tags in sentences.tags or () if isinstance(tags, list) for tag in tags)


def _names(sentences: Sentences, split: str, id_names, label_names, owner: str) -> list[list[str]] | None:
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
        is_id, needed = isinstance(tag, int) and not isinstance(tag, bool), None
        name = id_names[tag] if is_id and tag in range(len(id_names)) else tag
        if is_id and name is tag:
            needed = f"the ids are 0 ({id_names[0]}) to {len(id_names) - 1} ({id_names[-1]})"
        elif not (isinstance(name, str) and IOB2_TAG.fullmatch(name)):
            needed = "IOB2 tags are O, B-type and I-type"
        elif label_names is not None and name not in label_names:
            needed = f"{owner} {shown_columns(label_names)}"
        if needed is not None:
            raise DataError(
                f"{sentences.place(row, word)}: the tag is {shown_value(tag)}, and {needed}. Correct the tag, or "
                "leave the row out."
            )
        names.append(name)
    return names


def _warn_of_stray_inside_tags(sentences: Sentences, names: list[list[str]] | None) -> None:
    stray = [
        (row, word)
        for row, tags in enumerate(names or ())
        for word, (before, tag) in enumerate(zip([OUTSIDE, *tags], tags))
        if tag[0] == "I" and before not in (tag, "B" + tag[1:])
    ]
    if stray:
        row, word = stray[0]
        place = sentences.place(row, word).rsplit(", ", 1)[-1]
        logger.warning(
            f"{sentences.source}: {len(stray)} I- tags continue no entity of their type (the first is "
            f"{names[row][word]} in {place}); strict IOB2 scores do not count them."
        )


def check_split(dataset: Dataset, split: str, path=None) -> None:
    """Raise `DataError` if no training row holds an entity, which a cut by `--max_train_samples` can take away."""
    if split == "train" and all(tag == OUTSIDE for tags in dataset["tags"][:] for tag in tags):
        source = shown_path(path) if path is not None else f"The {split} split"
        raise DataError(
            f"{source}: every tag of the {len(dataset)} rows is O, and there is no entity to learn. Add rows with "
            "entities, or check the tags column."
        )
