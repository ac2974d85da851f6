"""Rows from a user's .jsonl, .json, .csv or .tsv file, kept verbatim, or from the Hub; one line for what is wrong."""

import csv
import difflib
import io
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset

from autolora_trainer.errors import one_line, shown
from autolora_trainer.files import check_regular
from autolora_trainer.hub_client import hub_answers

MOST_COLUMNS = 1000


class DataError(ValueError):
    """The user's data is missing or malformed. The message is one line: what was given, what is needed, what to do."""


def read_rows(path) -> Dataset:
    """Read a file of rows into memory; no cache is written and no text is changed.

    Args:
        path: a file that ends in .jsonl (one JSON object a line), .json (the same, or a JSON array of objects, or
            `{"data": [...]}`), .csv (header; fields with a comma, quote or line break in double quotes) or .tsv
            (header; a quote is an ordinary character, as in GLUE's own files).
    Returns:
        A `Dataset`. Every value of a CSV or TSV file is a string; JSON keeps its types.
    Raises:
        DataError: If the file cannot be read, or a row differs in form from the first; it names file and line.
    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "rows.csv")
        >>> _ = path.write_text('sentence,label\\n"well, yes ",1\\n')
        >>> read_rows(path)[0]
        {'sentence': 'well, yes ', 'label': '1'}
    """
    name = shown_path(path)
    reader = READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise DataError(
            f"{name}: cannot tell the format from the ending {Path(path).suffix!r}. Give a .jsonl, .json, .csv or "
            ".tsv file."
        )
    columns, places = reader(read_text(path, name), name)
    if not places:
        raise DataError(f"{name} has no rows. Give a file with at least one row.")
    for column in columns:
        if "\0" in column or column.encode("utf-8", "ignore").decode("utf-8") != column:  # Arrow cannot hold the name
            raise DataError(f"{name}: {shown_value(column)} is no column name that can be stored. Rename the column.")
    return Dataset.from_dict({column: _to_arrow(values, column, places, name) for column, values in columns.items()})


def shown_path(path) -> str:
    """The last two components of a path, printable: enough to recognise a file by, and short in a message."""
    shown = os.path.join(*Path(path).parts[-2:]) if Path(path).parts else shown_value(str(path))
    return "".join(character if character.isprintable() else "?" for character in shown)


def shown_value(value) -> str:
    """A value as Python would write it, on one line and cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def read_text(path, name: str) -> str:
    path = Path(path)
    try:
        check_regular(path)
        data = path.read_bytes()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Check the path."
        raise DataError(f"There is no file {name}. {hint}") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a folder. Give one .jsonl, .json, .csv or .tsv file in it.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name} cannot be read: {reason}. Check the path and its permissions.") from error
    if data.startswith(b"\x1f\x8b"):
        raise DataError(f"{name} is compressed (gzip). Unpack it, and give what was in it.")
    data = data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that spreadsheets write
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line}: byte {byte} (0x{data[error.start]:02x}) is not UTF-8. Save the file as UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{name} is empty. Give a file with at least one row.")
    return text


def _unique_keys(pairs):
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(shown_value(key) for key in names if names.count(key) > 1)} appears twice")
    return row


def _parse_json(text: str, name: str, line: int | None = None):
    """Parse one line (whose number is known) or a whole file (of which only a syntax error has a position)."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        line, reason = (line or 1) + error.lineno - 1, f"{error.msg} (column {error.colno})"
    except (ValueError, RecursionError) as error:  # e.g. a number of thousands of digits, endless brackets
        reason = str(error).split("\n")[0]
    place = f", line {line}" if line else ""
    raise DataError(f"{name}{place}: broken JSON: {reason}. Correct it, or leave the row out.")


def _read_json_lines(text: str, name: str):
    # Split at "\n" only: str.splitlines would also cut at U+2028 and its like, which JSON strings may hold.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = [_parse_json(line, name, number) for number, line in lines]
    return _columns(rows, [f"line {number}" for number, _ in lines], name)


def _read_json(text: str, name: str):
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines[0].lstrip().startswith("["):
        try:
            json.loads(lines[0])
            whole = len(lines) == 1
        except json.JSONDecodeError as error:  # an object that goes on in the next line, or a broken row
            whole = error.pos >= len(lines[0].rstrip())
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            return _read_json_lines(text, name)
    rows = _parse_json(text, name)
    if isinstance(rows, dict):
        rows = rows["data"] if isinstance(rows.get("data"), list) else [rows]
    if not isinstance(rows, list):
        raise DataError(f"{name} holds {shown_value(rows)}. Give a JSON array of objects, or one object a line.")
    return _columns(rows, [f"row {number}" for number in range(1, len(rows) + 1)], name)


def _columns(rows: list, places: list, name: str):
    """Turn rows into columns; every row must be an object with the keys of the first."""
    for row, place in zip(rows, places):
        if not isinstance(row, dict):
            raise DataError(
                f'{name}, {place}: {shown_value(row)} is no JSON object. Write every row as {{"column": value, ...}}.'
            )
        if row.keys() != rows[0].keys():
            missing = [shown_value(key) for key in rows[0] if key not in row]
            extra = [shown_value(key) for key in row if key not in rows[0]]
            difference = f"lacks {missing[0]}" if missing else f"has the extra key {extra[0]}"
            raise DataError(
                f"{name}, {place}: the row {difference}; every row needs the keys of {places[0]}. Correct the row."
            )
    if rows and not all(rows[0]):
        raise DataError(f"{name}, {places[0]}: a key is empty. Give every column a name.")
    if rows and not rows[0]:
        raise DataError(f"{name}, {places[0]}: the object is empty. Give every row its columns.")
    check_columns(name, len(rows[0]) if rows else 0)
    return {column: [row[column] for row in rows] for column in (rows[0] if rows else ())}, places


def _read_csv(text: str, name: str):
    # strict: an unpaired quote must not swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records, start = [], 1
    limit = csv.field_size_limit(2**31 - 1)  # the default, 131072 characters, is less than a long document
    try:
        for record in reader:
            records.append((start, record))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {start}: broken CSV: {error}. Put a field that holds a quote in double quotes and write "
            "the quote twice."
        ) from None
    finally:
        csv.field_size_limit(limit)
    return _table(records, name)


def _read_tsv(text: str, name: str):
    # No quoting: GLUE's files hold unpaired quotes, and a reader that pairs them silently joins rows.
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return _table([(number, line.split("\t") if line else []) for number, line in enumerate(lines, 1)], name)


def _table(records: list, name: str):
    """Turn (line, fields) pairs, header first, into columns."""
    records = [(number, fields) for number, fields in records if fields]  # empty lines
    (header_line, header), rows = records[0], records[1:]
    check_columns(name, len(header))
    for position, column in enumerate(header, 1):
        if not column.strip():
            raise DataError(
                f"{name}, line {header_line}: column {position} of the header has no name. Name it, or leave the "
                "column out (with pandas: to_csv(..., index=False))."
            )
        if header.index(column) != position - 1:
            raise DataError(
                f"{name}, line {header_line}: the header names {shown_value(column)} twice. Rename one of the two."
            )
    for number, fields in rows:
        if len(fields) != len(header):
            raise DataError(
                f"{name}, line {number}: {len(fields)} fields, but the header names {len(header)} columns "
                f"({shown_columns(header)}). Correct the row or the header."
            )
    columns = {column: [fields[position] for _, fields in rows] for position, column in enumerate(header)}
    return columns, [f"line {number}" for number, _ in rows]


def check_columns(name: str, count: int) -> None:
    """Raise `DataError` for more columns than can be held in reasonable time: each is an object of its own."""
    if count > MOST_COLUMNS:
        raise DataError(
            f"{name} has {count:,} columns, and at most {MOST_COLUMNS:,} are read. Leave out what the task does not "
            "need."
        )


def shown_columns(names) -> str:
    """Column names for a message: the first few, each as short as a value."""
    names = [shown_value(name) if len(name) > 40 or not name.isprintable() else name for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _to_arrow(values: list, column: str, places: list, name: str):
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        good, bad = 0, len(values)  # the first `good` rows fit together, the first `bad` do not
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                pa.array(values[:middle])
                good = middle
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                bad = middle
        raise DataError(
            f"{name}, {places[good]}: {shown_value(values[good])} in {shown_columns([column])} does not go with the "
            "values above it. Give the column one type (all text, or all numbers), in valid Unicode."
        ) from None


READERS = {".jsonl": _read_json_lines, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_tsv}


def load_from_hub(hub_id: str, config: str | None, splits, *, cache_dir=None, token=None, **arguments) -> DatasetDict:
    """Load a data set of the hub, or its copy in the cache.

    Args:
        hub_id, config: e.g. "nyu-mll/glue", "mrpc"; "parquet" and its like with `data_files=` for raw files.
        splits: pairs (our name, the hub's name); those that the hub does not have are left out.
        cache_dir, token, **arguments: as in `datasets.load_dataset`.
    Raises:
        DataError: If the hub cannot be reached and the data is not in its cache, or loading fails.
    """
    source = f"{hub_id} ({config})" if config else hub_id
    advice = (
        "Give local files with --train_file and --validation_file, or connect to the network once so that the data is "
        "cached."
    )
    offline = datasets.config.HF_HUB_OFFLINE
    reachable = not offline and hub_answers()
    try:
        # load_dataset asks a silent hub six times, with ever longer pauses; offline it goes to its cache at once.
        datasets.config.HF_HUB_OFFLINE = not reachable
        loaded = load_dataset(hub_id, config, cache_dir=cache_dir, token=token, **arguments)
    except Exception as error:  # no connection, a full disk, a broken download: many libraries, many classes
        if not reachable or isinstance(error, (ConnectionError, FileNotFoundError)):
            raise DataError(f"Could not reach the Hugging Face Hub for the data set {source}. {advice}") from error
        reason = shown(one_line(error), 200)
        raise DataError(f"Could not load the data set {source} from the hub: {reason}. {advice}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return DatasetDict({ours: loaded[theirs] for ours, theirs in splits if theirs in loaded})
