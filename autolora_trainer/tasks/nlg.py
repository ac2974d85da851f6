"""Data-to-text generation (§5.3): E2E, WebNLG 2017 and rows of one's own: columns, prompts, tokens, batches."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from datasets import Dataset, DatasetDict, Features, List, Value

from autolora_trainer.tasks.files import DataError, load_from_hub, read_rows, shown_columns, shown_path, shown_value
from autolora_trainer.tasks.nlg_prompts import as_text, as_triples, json_list, prompt_of_meaning, prompt_of_triples

logger = logging.getLogger(__name__)

IGNORED = -100  # the label of a token that the loss passes over


@dataclass(frozen=True)
class NlgTask:
    """What a task is, apart from its rows.

    Args:
        title: its name for people.
        input_columns, reference_columns: the names that a column may have; the first is the one to tell users.
        read: a cell of the input column as it is written beside a prediction, or a `ValueError` that says what it is.
        prompt: what `read` gives, as LoRA's code shows it to the model.
        dataset_id: the hub data set; `None` for rows of one's own.
        verbatim: inputs and texts keep the blanks around them, which mean nothing in LoRA's files.
    """

    name: str
    title: str
    input_columns: tuple
    reference_columns: tuple
    read: Callable
    prompt: Callable
    dataset_id: str | None = None
    verbatim: bool = False


NLG_TASKS = {
    task.name: task
    for task in (
        NlgTask(
            "e2e",
            "E2E",
            ("meaning_representation", "mr"),  # mr, ref: the official CSV files
            ("human_reference", "human_references", "references", "ref"),
            as_text,
            prompt_of_meaning,
            "tuetschek/e2e_nlg",
        ),
        NlgTask(
            "webnlg",
            "WebNLG 2017",
            ("triples",),
            ("references", "reference"),
            as_triples,
            prompt_of_triples,
            "webnlg-challenge/web_nlg",
        ),
        NlgTask("nlg", "data of one's own", ("input",), ("reference", "references"), as_text, str, verbatim=True),
    )
}

# The categories that WebNLG's training set has; the others of the test set are "unseen".
SEEN_CATEGORIES = """
    Airport Astronaut Building City ComicsCharacter Food Monument SportsTeam University WrittenWork
""".split()


def load_examples(
    task: NlgTask, files: dict, *, prompt_format="lora", one_line=True, cache_dir=None, token=None
) -> DatasetDict:
    """Load a task's rows, from files where any is given, else from where the task's data lies.

    Args:
        files: {split: path or None}, .jsonl, .json, .csv or .tsv files with the hub's column names. With one of them
            every split comes from a file.
        prompt_format, one_line: see `to_examples`.
    Raises:
        DataError: on the first thing that is wrong, or if the network does not give the rows.
    """
    files = {split: path for split, path in files.items() if path is not None}
    if files:
        rows = {split: read_rows(path) for split, path in files.items()}
    elif task.dataset_id is None:
        raise DataError(f"The task {task.name} is for rows of your own. Give --train_file and --validation_file.")
    else:
        rows = SOURCES[task.name](cache_dir=cache_dir, token=token)
    for split, dataset in rows.items():
        rows[split] = to_examples(dataset, task, split, files.get(split), prompt_format, one_line)
    return DatasetDict(rows)


def _load_e2e(**arguments) -> DatasetDict:
    # The repository's own files are a script, which datasets no longer runs; the hub keeps a copy in Parquet.
    splits = [(split, split) for split in ("train", "validation", "test")]
    return load_from_hub(NLG_TASKS["e2e"].dataset_id, None, splits, revision="refs/convert/parquet", **arguments)


WEBNLG_FILES = (  # the very files of LoRA's experiments, at a fixed commit
    "https://raw.githubusercontent.com/microsoft/LoRA/c4593f060e6a368d7bb5af5273b8e42810cdef90/examples/NLG/data/"
    "webnlg_challenge_2017/{}.json"
)


def _load_webnlg(**arguments) -> DatasetDict:
    names = {"train": "train", "validation": "dev", "test": "test"}
    files = {split: WEBNLG_FILES.format(name) for split, name in names.items()}
    splits = [(split, split) for split in names]
    try:
        loaded = load_from_hub("text", None, splits, data_files=files, sample_by="document", **arguments)
    except DataError as error:
        raise DataError(str(error).replace("data set text", "data set WebNLG 2017 (raw.githubusercontent.com)"))
    return DatasetDict({split: webnlg_rows(dataset[0]["text"]) for split, dataset in loaded.items()})


SOURCES = {"e2e": _load_e2e, "webnlg": _load_webnlg}


def webnlg_rows(document: str) -> Dataset:
    """One JSON file of the WebNLG challenge as rows: category, triples and references.

    As in LoRA's code, the triples are the modified ones, and only texts marked "good" count: a set that has none is
    left out.
    """
    rows = []
    for entry in json.loads(document)["entries"]:
        for item in entry.values():
            references = [text["lex"] for text in item["lexicalisations"] if text["comment"] == "good"]
            if references:
                triples = as_triples(item["modifiedtripleset"])
                rows.append({"category": item["category"], "triples": triples, "references": references})
    return Dataset.from_list(rows)


def to_examples(
    dataset: Dataset, task: NlgTask, split: str, path=None, prompt_format: str = "lora", one_line: bool = True
) -> Dataset:
    """Check the rows of one split, and bring them into one form.

    Args:
        split: "train" makes one example of each reference; "validation" and "test" make one of each input, with the
            references of all its rows, in the order of first appearance. A test set may have no references at all.
        prompt_format: "lora"; "words": the same without what no text has in it, `_` between words and quotes around
            values; or "plain": the input as it is given.
        one_line: whether texts are lines: a line break in a reference then becomes a blank, and a warning says so.
    Returns:
        row (in the file, from 1), rows (all that are in the example), source (the input as given), prompt, references
        and seen (`None` where the rows do not say whether training has seen the category).
    Raises:
        DataError: on the first thing that is wrong.
    """
    name = shown_path(path) if path is not None else f"The {split} split"
    if len(dataset) == 0:
        raise DataError(f"{name} has no rows. Give at least one row for {split}.")
    column, inputs = _column(dataset, task.input_columns)
    references = _references(dataset, task, name, one_line)
    if inputs is None or (references is None and split != "test"):
        lacking = task.input_columns if inputs is None else task.reference_columns
        raise DataError(
            f"{name} has no column {lacking[0]!r}: {task.name} needs {task.input_columns[0]} and "
            f"{' or '.join(task.reference_columns[:2])}, and the columns given are "
            f"{shown_columns(dataset.column_names)}. Rename the columns, or choose another --task_name."
        )
    seen = _seen(dataset, task, name)
    examples: dict = {}
    for index, value in enumerate(inputs):
        place = f"{name}, row {index + 1}"
        source, prompt = _prompt(value, task, prompt_format, place, column)
        texts = [] if references is None else references[index]
        if not texts and split != "test":
            raise DataError(f"{place}: there is no reference, and every row for {split} needs one. Leave the row out.")
        example = {"row": index + 1, "source": source, "prompt": prompt, "seen": seen[index] if seen else None}
        if split == "train":
            for text in texts:
                examples[len(examples)] = {**example, "rows": [index + 1], "references": [text]}
        else:
            same = examples.setdefault(prompt, {**example, "rows": [], "references": []})
            same["rows"].append(index + 1)
            same["references"] += texts
    examples = list(examples.values())
    bare = [example["row"] for example in examples if not example["references"]]
    if 0 < len(bare) < len(examples):
        raise DataError(
            f"{name}, row {bare[0]}: there is no reference, and other rows have one. Give every row one, or none."
        )
    text = Value("string")
    features = {"row": Value("int64"), "source": List(text) if task.read is as_triples else text, "prompt": text}
    features |= {"rows": List(Value("int64")), "references": List(text), "seen": Value("bool")}
    return Dataset.from_dict({key: [e[key] for e in examples] for key in features}, Features(features))


def _column(dataset: Dataset, names) -> tuple:
    """(name, values) of the first of `names` that there is, else (None, None)."""
    name = next((name for name in names if name in dataset.column_names), None)
    return name, None if name is None else dataset[name][:]


def _prompt(value, task: NlgTask, prompt_format: str, place: str, column: str):
    try:
        source = task.read(value)
        prompt = task.prompt(source)  # also where it is not shown: a row that is none of the task's is a mistake
    except ValueError as error:
        raise DataError(
            f"{place}: {column} is {shown_value(value)}; {error}. Correct the row, or leave it out."
        ) from error
    if prompt_format == "plain":
        prompt = " | ".join(source) if isinstance(source, list) else source
    elif prompt_format == "words":
        prompt = " ".join(prompt.replace("_", " ").replace('"', " ").split())
    return source, prompt if task.verbatim else prompt.strip()


def _references(dataset: Dataset, task: NlgTask, name: str, one_line: bool) -> list[list[str]] | None:
    """The references of every row; None where there is no such column.

    A cell is a text or a list of texts. A CSV file has no lists, and a text may look like one: there a JSON list is a
    list where the column is called references, of which a cell may hold several.
    """
    column, cells = _column(dataset, task.reference_columns)
    if cells is None:
        return None
    listed = [json_list(cell) if isinstance(cell, str) else None for cell in cells]
    if column.endswith("s") and not name.lower().endswith((".json", ".jsonl")):
        cells = [cell if own is None else own for cell, own in zip(cells, listed)]
        if several := sum(own is not None for own in listed):
            logger.warning(f"{name}: {several} cells of {column} are read as JSON lists of references")
    elif None not in listed:
        logger.warning(
            f"{name}: every {column} is text that looks like a JSON list, and is taken as it is. For several "
            f"references to an input give JSON lists as such, or in a CSV file as {task.reference_columns[1]}."
        )
    texts = [_texts(cell, f"{name}, row {row}", task.verbatim) for row, cell in enumerate(cells, 1)]
    broken = sum(bool(re.search("[\r\n]", text.strip())) for own in texts for text in own)
    if one_line and broken:
        logger.warning(
            f"{name}: {broken} references of several lines are made one line each. Add --one_line false to keep line "
            "breaks and indentation."
        )
    return [[_joined(text) for text in own] for own in texts] if one_line else texts


def _texts(value, place: str, verbatim: bool) -> list[str]:
    """The references of one cell."""
    value = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{place}: the reference is {shown_value(value)}. Give a text, or a list of texts.")
    return [text if verbatim else text.strip() for text in value if text.strip()]


def _joined(text: str) -> str:
    """A text of several lines as one; a text of one line is left as it is."""
    return " ".join(text.split()) if "\n" in text or "\r" in text else text


def _seen(dataset: Dataset, task: NlgTask, name: str) -> list | None:
    """Whether training has seen the category of each row, where the rows say so."""
    if task.name != "webnlg":
        return None
    if "seen" not in dataset.column_names:
        _, categories = _column(dataset, ["category"])
        return categories and [category in SEEN_CATEGORIES for category in categories]
    values = {"true": True, "false": False, "1": True, "0": False}
    seen = [values.get(str(value).lower()) for value in dataset["seen"][:]]
    if None in seen:
        row = seen.index(None)
        raise DataError(
            f"{name}, row {row + 1}: seen is {shown_value(dataset['seen'][row])}. Write true or false, or leave the "
            "column out."
        )
    return seen


def encode_prompts(prompts: list[str], tokenizer) -> list[list[int]]:
    """What the model reads before it writes: the prompt, and the mark after which the text starts.

    As in LoRA's code the mark is the start-of-text token (GPT-2 has one token for start and end). What a tokenizer
    itself puts before every text (Llama's `<s>`) stays there.
    """
    mark = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    start = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
    distinct = list(dict.fromkeys(prompts))
    tokens = dict(zip(distinct, _tokens(distinct, tokenizer)))
    return [[*start, *tokens[prompt], mark] for prompt in prompts]


def _tokens(texts: list[str], tokenizer) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def check_lengths(prompts: list[list[int]], rows: list[int], limit: int, name: str, advice: str) -> None:
    """Raise `DataError`, which names its row, for the first prompt that leaves no room for text: none is cut."""
    for prompt, row in zip(prompts, rows):
        if len(prompt) >= limit:
            raise DataError(
                f"{name}, row {row}: the prompt has {len(prompt)} tokens, and with a limit of {limit} none is left "
                f"for the text. {advice}"
            )


def encode_pairs(
    prompts: list[list[int]], references: list[list[str]], tokenizer, max_seq_length: int
) -> tuple[Dataset, int]:
    """Prompt, a blank and text of every reference in one row, with the loss on the text only.

    Prompt and text are tokenized apart, so that decoding starts from the very tokens of training. A text is cut where
    both exceed `max_seq_length`, and then does not end with the end token.

    Returns:
        (input_ids and labels, how many texts were cut).
    """
    pairs = [(prompt, text) for prompt, texts in zip(prompts, references) for text in texts]
    texts = _tokens([f" {text}" for _, text in pairs], tokenizer)
    columns: dict[str, list] = {"input_ids": [], "labels": []}
    cut = 0
    for (prompt, _), text in zip(pairs, texts):
        target = [*text, tokenizer.eos_token_id]
        room = max_seq_length - len(prompt)
        cut += len(target) > room
        columns["input_ids"].append(prompt + target[:room])
        columns["labels"].append([IGNORED] * len(prompt) + target[:room])
    return Dataset.from_dict(columns, Features({name: List(Value("int64")) for name in columns})), cut


@dataclass
class PairCollator:
    """Rows of `encode_pairs` as one batch, padded on the right.

    Args:
        pad_token_id: fills `input_ids`; there `attention_mask` is 0 and the label `IGNORED`.
        multiple: make the length a multiple of this.
        longest: and at most this long.
        pad_to_longest: make every batch that long.
    Example:
        >>> rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
        >>> PairCollator(pad_token_id=0)(rows)["labels"]
        tensor([[-100,    2,    3],
                [   4, -100, -100]])
    """

    pad_token_id: int
    multiple: int = 1
    longest: int | None = None
    pad_to_longest: bool = False

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_longest:
            length = max(length, self.longest)
        padded = -(-length // self.multiple) * self.multiple
        length = padded if self.longest is None else max(length, min(padded, self.longest))

        def filled(values, value):
            return torch.tensor([[*given, *[value] * (length - len(given))] for given in values])

        return {
            "input_ids": filled([row["input_ids"] for row in rows], self.pad_token_id),
            "attention_mask": filled([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": filled([row["labels"] for row in rows], IGNORED),
        }
