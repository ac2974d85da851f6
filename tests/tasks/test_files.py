"""Do rows arrive as they were written, and is a malformed file named with its line?"""

import csv
import json

import pandas
import pytest

from autolora_trainer.tasks.files import read_rows
from tests.helpers.measures import data_error
from tests.helpers.rows import pair_rows, write


@pytest.mark.parametrize(
    "name, content",
    [
        ("rows.jsonl", '{"text": "a ", "label": 0}\n\n{"text": "b", "label": 1}'),
        ("rows.json", '{"text": "a ", "label": 0}\n{"text": "b", "label": 1}\n'),
        ("rows.json", '[{"text": "a ", "label": 0},\n {"text": "b", "label": 1}]'),
        ("rows.json", '{"data": [\n{"text": "a ", "label": 0}, {"text": "b", "label": 1}]}'),
        ("rows.JSON", '{\n"version": 1, "data": [{"text": "a ", "label": 0}, {"text": "b", "label": 1}]\n}'),
        ("rows.csv", "text,label\na ,0\n\nb,1\n"),
        ("rows.csv", b'\xef\xbb\xbftext,label\r\na ,0\r\n"b",1\r\n'),
        ("rows.tsv", "text\tlabel\r\na \t0\r\nb\t1"),
        ("rows.tsv", "text\tlabel\ra \t0\rb\t1\r"),
        ("rows.tsv", "text\tlabel\r\r\na \t0\r\r\nb\t1\r\r\n"),
        ("rows.csv", b'\xef\xbb\xbf\xef\xbb\xbftext,label\ra ,0\r"b",1'),
        ("rows.jsonl", b'\xef\xbb\xbf{"text": "a ", "label": 0}\r{"text": "b", "label": 1}\r'),
        ("rows.json", '{"text": "a ", "label": 0}\r{"text": "b", "label": 1}'),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    dataset = read_rows(write(tmp_path / name, content))
    assert dataset.column_names == ["text", "label"]
    assert [(row["text"], int(row["label"])) for row in dataset] == [("a ", 0), ("b", 1)]
    assert [path.name for path in tmp_path.iterdir()] == [name] and not dataset.cache_files


@pytest.mark.parametrize(
    "text",
    [
        *("blank at the end ", 'one " quote', "a\u2028b\x85c\x0bd", "tab\tand\nbreak", "NA", "x" * 200_000),
        *('["a", "b"]', "2020-01-01", "007", "True", "  indented", "a\0b", "two \r ends", "\ufeffmark", '"whole"'),
    ],
)
def test_texts_are_verbatim(tmp_path, text):
    assert read_rows(write(tmp_path / "a.jsonl", [{"text": text}]))[0]["text"] == text
    assert read_rows(write(tmp_path / "a.json", json.dumps([{"text": text}])))[0]["text"] == text
    quoted = text.replace('"', '""')
    assert read_rows(write(tmp_path / "a.csv", f'text\n"{quoted}"\n'))[0]["text"] == text
    pandas.DataFrame({"text": [text], "label": [1]}).to_csv(tmp_path / "b.tsv", sep="\t", index=False)
    assert read_rows(tmp_path / "b.tsv")[0]["text"] == text
    if "\t" not in text:
        assert read_rows(write(tmp_path / "a.tsv", f"text\tlabel\n{text}\t1\n"))[0]["text"] == text


def test_quotes_of_a_tsv_are_pandas_where_all_of_them_are(tmp_path, caplog):
    """Those of GLUE's own files belong to the text; where both kinds are met, all are left, and it is said."""
    texts = ['he said "bad"', '"quoted" all', "tab\there", "line\nbreak", "plain", ""]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        pandas.DataFrame({"text": texts}).to_csv(tmp_path / "a.tsv", sep="\t", index=False, quoting=quoting)
        assert read_rows(tmp_path / "a.tsv")["text"][:] == texts and "read without the quotes" in caplog.text
        caplog.clear()
    glue = ['"quoted" all', 'one " quote', '"whole"', '""']
    rows = read_rows(write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\t1\n" for text in glue)))
    assert rows["text"][:] == glue and not caplog.messages
    both = ['"he said ""bad"""', 'one " quote']
    rows = read_rows(write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\t1\n" for text in both)))
    assert rows["text"][:] == both and "1 fields look quoted as in CSV" in caplog.text and "in line 2" in caplog.text


def test_a_blank_line_is_no_text_and_it_is_said_where_it_could_be_one(tmp_path, caplog):
    assert read_rows(write(tmp_path / "a.csv", 'text\na\n\n""\nb\n\n'))["text"][:] == ["a", "", "b"]
    assert "1 blank lines (the first is line 3) are no rows" in caplog.text
    caplog.clear()
    read_rows(write(tmp_path / "a.csv", "text,label\na,0\n\nb,1\n\n"))
    assert not caplog.messages


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_utf_16_without_its_mark_is_named(tmp_path, name):
    path = write(tmp_path / name, '{"text": "a"}\n'.encode("utf-16-le"))
    assert "is UTF-16 or UTF-32, by its zero bytes, not UTF-8. Save" in data_error(read_rows, path)


def test_csv_field_limit_of_the_process_is_left_alone(tmp_path):
    before = csv.field_size_limit()
    read_rows(write(tmp_path / "a.csv", "text\n" + "x" * 200_000))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "name, content, expected",
    [
        (
            "a.txt",
            "x",
            "a.txt: cannot tell the format from the ending '.txt'. Give a .jsonl, .json, .csv or .tsv file.",
        ),
        ("a.jsonl", "", "a.jsonl is empty. Give a file with at least one row."),
        ("a.csv", "\n \n", "a.csv is empty. Give a file with at least one row."),
        ("a.csv", "text,label\n", "a.csv has no rows. Give a file with at least one row."),
        ("a.json", "[]", "a.json has no rows. Give a file with at least one row."),
        ("a.json", '{"data": []}', "a.json has no rows. Give a file with at least one row."),
        ("a.json", "3", "a.json holds 3. Give a JSON array of objects, or one object a line."),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}\n',
            "a.jsonl, line 2: byte 11 (0xe9) is not UTF-8. Save the file as UTF-8.",
        ),
        ("a.csv", "text\na\n".encode("utf-16"), "a.csv, line 1: byte 1 (0xff) is not UTF-8. Save the file as UTF-8."),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": "b"\n',
            "a.jsonl, line 3: broken JSON: Expecting ',' delimiter (column 13). Correct it, or leave the row out.",
        ),
        (
            "a.json",
            '[{"text": "a"},\n{"text": b}]',
            "a.json, line 2: broken JSON: Expecting value (column 10). Correct it, or leave the row out.",
        ),
        (
            "a.json",
            '{"text": a}\n{"text": "b"}\n',
            "a.json, line 1: broken JSON: Expecting value (column 10). Correct it, or leave the row out.",
        ),
        (
            "a.jsonl",
            '{"label": 0, "label": 1}\n',
            "a.jsonl, line 1: broken JSON: the key 'label' appears twice. Correct it, or leave the row out.",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n["b"]\n',
            "a.jsonl, line 2: ['b'] is no JSON object. Write every row as {\"column\": value, ...}.",
        ),
        (
            "a.json",
            '[{"text": "a"}, 5]',
            'a.json, row 2: 5 is no JSON object. Write every row as {"column": value, ...}.',
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": "b"}\n',
            "a.jsonl, line 2: the row lacks 'label'; every row needs the keys of line 1. Correct the row.",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b", "label": 0}\n',
            "a.jsonl, line 2: the row has the extra key 'label'; every row needs the keys of line 1. Correct the row.",
        ),
        ("a.jsonl", "{}\n", "a.jsonl, line 1: the object is empty. Give every row its columns."),
        ("a.tsv", "te\0xt\na\n", "a.tsv: 'te\\x00xt' is no column name that can be stored. Rename the column."),
        ("a.jsonl", '{"": 1}\n', "a.jsonl, line 1: a key is empty. Give every column a name."),
        (
            "a.jsonl",
            '{"label": 0}\n{"label": 1}\n{"label": "one"}\n',
            "a.jsonl, line 3: 'one' in label does not go with the values above it. Give the column one type (all "
            "text, or all "
            "numbers), in valid Unicode.",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "\\ud800"}\n',
            "a.jsonl, line 2: '\\ud800' in text does not go with the values above it. Give the column one type (all "
            "text, or "
            "all numbers), in valid Unicode.",
        ),
        (
            "a.csv",
            'text,label\n"a\nb",0\nc\n',
            "a.csv, line 4: 1 fields, but the header names 2 columns (text, label). Correct the row or the header.",
        ),
        (
            "a.tsv",
            "text\tlabel\na\t0\nb\tc\t1\n",
            "a.tsv, line 3: 3 fields, but the header names 2 columns (text, label). Correct the row or the header.",
        ),
        ("a.csv", "text,text\na,b\n", "a.csv, line 1: the header names 'text' twice. Rename one of the two."),
        (
            "a.csv",
            ",text\n0,a\n",
            "a.csv, line 1: column 1 of the header has no name. Name it, or leave the column out (with pandas: "
            "to_csv(..., "
            "index=False)).",
        ),
        (
            "a.csv",
            'text,label\na,0\n"b,1\nc,0\n',
            "a.csv, line 3: broken CSV: unexpected end of data. Put a field that holds a quote in double quotes and "
            "write the "
            "quote twice.",
        ),
    ],
)
def test_malformed_file_is_named_with_its_line(tmp_path, name, content, expected):
    path = write(tmp_path / name, content)
    assert data_error(read_rows, path) == f"{tmp_path.name}/{expected}"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": 1}}', "\0"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_hostile_json_is_one_line(tmp_path, name, content):
    assert "a.json" in data_error(read_rows, write(tmp_path / name, content))


def test_missing_file_and_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", pair_rows(0, 1))
    (tmp_path / "folder.csv").mkdir()
    assert data_error(read_rows, "trian.jsonl") == "There is no file trian.jsonl. Did you mean 'train.jsonl'?"
    assert data_error(read_rows, "data/x/dev.csv") == "There is no file x/dev.csv. Check the path."
    assert (
        data_error(read_rows, "folder.csv")
        == "folder.csv is a folder. Give one .jsonl, .json, .csv or .tsv file in it."
    )
