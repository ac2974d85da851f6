"""Rows from a user's .jsonl, .json, .csv or .tsv file, kept verbatim, or from the Hub; one line for what is wrong."""

import csv
import difflib
import io
import json
import logging
import os
import re
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset

from autolora_trainer.errors import one_line, shown
from autolora_trainer.files import check_regular
from autolora_trainer.hub_client import hub_answers

logger = logging.getLogger(__name__)

MOST_COLUMNS = 1000
LINE_END = re.compile(r"\r*\n|\r")  # of every system; CR twice where a CRLF file was converted again
# a field as pandas writes one that holds a quote: quotes around it, and its own twice
QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')


class DataError(ValueError):
    """The user's data is missing or malformed. The message is one line: what was given, what is needed, what to do."""


def read_rows(path) -> Dataset:
    """Read a file of rows into memory; no cache is written and no text is changed.

    Args:
        path: a file that ends in .jsonl (one JSON object a line), .json (the same, or a JSON array of objects, or
            `{"data": [...]}`), .csv (header; fields with a comma, quote or line break in double quotes) or .tsv
            (header; a quote is an ordinary character, as in GLUE's own files, unless every quote of the file is that
            of a field quoted as in CSV, as pandas writes it). Lines end in LF, CRLF or CR.
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
    columns, places = read_columns(path)
    return Dataset.from_dict({column: _to_arrow(values, column, places, name) for column, values in columns.items()})


def read_columns(path, gaps: bool = False) -> tuple[dict[str, list], list[str]]:
    """({column: values}, the place of every row) of a file, as `read_rows` reads it.

    Args:
        gaps: whether a row may lack keys that others have; its values there are None.
    """
    name = shown_path(path)
    reader = READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise DataError(
            f"{name}: cannot tell the format from the ending {Path(path).suffix!r}. Give a .jsonl, .json, .csv or "
            ".tsv file."
        )
    columns, places = reader(read_text(path, name), name, gaps)
    if not places:
        raise DataError(f"{name} has no rows. Give a file with at least one row.")
    for column in columns:
        if "\0" in column or column.encode("utf-8", "ignore").decode("utf-8") != column:  # Arrow cannot hold the name
            raise DataError(f"{name}: {shown_value(column)} is no column name that can be stored. Rename the column.")
    return columns, places


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
    while data.startswith(b"\xef\xbb\xbf"):  # the byte order mark that spreadsheets write, some twice
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line}: byte {byte} (0x{data[error.start]:02x}) is not UTF-8. Save the file as UTF-8."
        ) from None
    if 1 / 4 < data.count(0) / max(1, len(data)) < 4 / 5:  # a letter and a zero, or three, are letters in UTF-8
        raise DataError(f"{name} is UTF-16 or UTF-32, by its zero bytes, not UTF-8. Save the file as UTF-8.")
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


def split_lines(text: str) -> list[str]:
    """The lines of a file; unlike `str.splitlines` it leaves U+2028 and its like, which a text may hold.

    Example:
        >>> split_lines("a\\rb\\r\\nc\\u2028d")
        ['a', 'b', 'c\\u2028d']
    """
    return LINE_END.split(text)


def _read_json_lines(text: str, name: str, gaps: bool):
    # a JSON string holds no bare line break
    lines = [(number, line) for number, line in enumerate(split_lines(text), 1) if line.strip()]
    rows = [_parse_json(line, name, number) for number, line in lines]
    return _columns(rows, [f"line {number}" for number, _ in lines], name, gaps)


def _read_json(text: str, name: str, gaps: bool):
    lines = [line for line in split_lines(text) if line.strip()]
    if not lines[0].lstrip().startswith("["):
        try:
            json.loads(lines[0])
            whole = len(lines) == 1
        except json.JSONDecodeError as error:  # an object that goes on in the next line, or a broken row
            whole = error.pos >= len(lines[0].rstrip())
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            return _read_json_lines(text, name, gaps)
    rows = _parse_json(text, name)
    if isinstance(rows, dict):
        rows = rows["data"] if isinstance(rows.get("data"), list) else [rows]
    if not isinstance(rows, list):
        raise DataError(f"{name} holds {shown_value(rows)}. Give a JSON array of objects, or one object a line.")
    return _columns(rows, [f"row {number}" for number in range(1, len(rows) + 1)], name, gaps)


def _columns(rows: list, places: list, name: str, gaps: bool):
    """Turn rows into columns; every row must be an object, with the keys of the first unless there may be gaps."""
    for row, place in zip(rows, places):
        if not isinstance(row, dict):
            raise DataError(
                f'{name}, {place}: {shown_value(row)} is no JSON object. Write every row as {{"column": value, ...}}.'
            )
        if not gaps and row.keys() != rows[0].keys():
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
    columns = dict.fromkeys(column for row in rows for column in row)
    check_columns(name, len(columns))
    return {column: [row.get(column) for row in rows] for column in columns}, places


def _read_csv(text: str, name: str, gaps: bool):
    try:
        return _table(_records(text, ","), name)
    except csv.Error as error:
        reason, line = error.args
        raise DataError(
            f"{name}, line {line}: broken CSV: {reason}. Put a field that holds a quote in double quotes and write "
            "the quote twice."
        ) from None


def _records(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line, fields) of every record of a text quoted as CSV; `csv.Error` of (reason, line) where it is broken."""
    # strict: an unpaired quote must not swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    records, start = [], 1
    limit = csv.field_size_limit(2**31 - 1)  # the default, 131072 characters, is less than a long document
    try:
        for record in reader:
            records.append((start, record))
            start = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(str(error), start) from None
    finally:
        csv.field_size_limit(limit)
    return records


def _read_tsv(text: str, name: str, gaps: bool):
    # No quoting: GLUE's files hold unpaired quotes, and a reader that pairs them silently joins rows.
    if (records := _quoted_records(text)) is not None:
        logger.warning(f"{name}: its fields are quoted as in CSV (pandas writes so), and are read without the quotes")
        return _table(records, name)
    lines = LINE_END.split(text)
    if "\n" in text and any(line and line.count("\t") != lines[0].count("\t") for line in lines):  # a CR in a text
        lines = re.split(r"\r*\n", text)
    records = [(number, line.split("\t") if line else []) for number, line in enumerate(lines, 1)]
    if quoted := [(line, field) for line, fields in records for field in fields if QUOTED.fullmatch(field)]:
        logger.warning(
            f"{name}: {len(quoted)} fields look quoted as in CSV (the first is {shown_value(quoted[0][1])} in line "
            f"{quoted[0][0]}), others hold quotes that are not: all are taken as they are"
        )
    return _table(records, name)


def _quoted_records(text: str) -> list | None:
    """(line, fields) of a table that is what a CSV writer makes of them, with tabs, quotes included; None of another:
    there some quote is an ordinary character."""
    if '"' not in text:
        return None
    try:
        records = _records(text, "\t")
    except csv.Error:
        return None
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        written = io.StringIO(newline="")
        csv.writer(written, delimiter="\t", quoting=quoting).writerows(fields for _, fields in records)
        if LINE_END.sub("\n", written.getvalue()).strip("\n") == LINE_END.sub("\n", text).strip("\n"):
            return records
    return None


def _table(records: list, name: str):
    """Turn (line, fields) pairs, header first, into columns."""
    blank = [number for number, fields in records if not fields]
    records = [(number, fields) for number, fields in records if fields]  # empty lines
    if len(records[0][1]) == 1 and (within := [number for number in blank if number < records[-1][0]]):
        logger.warning(
            f"{name}: {len(within)} blank lines (the first is line {within[0]}) are no rows; an empty text is written "
            'as "" in a CSV file'
        )
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
