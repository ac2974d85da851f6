"""Is data put into words as LoRA's code does it: prompts, rows, tokens, batches?"""

import json
import re

import pandas
import pytest
from datasets import Dataset, DatasetDict

from autolora_trainer.tasks import nlg, nlg_prompts
from tests.helpers.measures import data_error
from tests.helpers.models import byte_tokenizer
from tests.helpers.rows import write

E2E, WEBNLG, OWN = (nlg.NLG_TASKS[name] for name in ("e2e", "webnlg", "nlg"))


# ---- prompts and rows


def test_e2e_prompt_is_that_of_loras_files():
    meaning = (
        "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], familyFriendly[no], "
        "near[Café Adriatic]"
    )
    assert nlg_prompts.prompt_of_meaning(meaning) == (
        "name : The Vaults | Type : pub | price : more than £30 | customer rating : 5 out of 5 | family friendly : no "
        "| near : Café Adriatic"
    )


@pytest.mark.parametrize(
    "meaning", ["", "name", "name[]", "name[ ]", "name[X", "name[X] near[Y]", "name[X],", "[X]", "a[b[c]]"]
)
def test_what_is_no_meaning_representation_is_refused(meaning):
    with pytest.raises(ValueError, match=r"written as name\[Blue Spice\], eatType\[pub\]"):
        nlg_prompts.prompt_of_meaning(meaning)


@pytest.mark.parametrize(
    "value",
    [
        ["A_B | leader | C", 'A_B | size | "1, 2"'],
        [["A_B", "leader", "C"], ["A_B", "size", '"1, 2"']],
        [
            {"subject": "A_B", "property": "leader", "object": "C"},
            {"object": '"1, 2"', "subject": "A_B", "property": "size"},
        ],
        'A_B | leader | C\nA_B|size|"1, 2"\n',
        'A_B | leader | C\rA_B|size|"1, 2"',
        json.dumps(["A_B | leader | C", 'A_B | size | "1, 2"']),
    ],
)
def test_triples_in_every_form_give_the_prompt_of_loras_code(value):
    assert nlg_prompts.prompt_of_triples(nlg_prompts.as_triples(value)) == 'A_B : leader : C | A_B : size : "1, 2"'


@pytest.mark.parametrize(
    "value", [None, 3, [], "", ["A | b"], ["A | b | c | d"], ["A |  | c"], [["A", "b"]], [{"subject": "A"}], [1]]
)
def test_what_is_no_set_of_triples_is_refused(value):
    with pytest.raises(ValueError, match=r"subject \| property \| object"):
        nlg_prompts.prompt_of_triples(nlg_prompts.as_triples(value))


def test_training_has_a_row_for_every_reference():
    rows = Dataset.from_list([{"input": "a", "references": ["x", " y "]}, {"input": "a", "references": ["z"]}])
    examples = nlg.to_examples(rows, OWN, "train")
    assert [(e["row"], e["prompt"], e["references"]) for e in examples] == [
        (1, "a", ["x"]),
        (1, "a", [" y "]),
        (2, "a", ["z"]),
    ]


def test_evaluation_has_a_row_for_every_input_in_order_of_first_appearance():
    meanings = ["name[B]", "name[A]", "name[B]", "name[A]", "name[C]"]
    rows = Dataset.from_dict({"meaning_representation": meanings, "human_reference": list("vwxyz")})
    for split in ("validation", "test"):
        examples = nlg.to_examples(rows, E2E, split)
        assert examples["prompt"][:] == ["name : B", "name : A", "name : C"] and examples["row"][:] == [1, 2, 5]
        assert examples["references"][:] == [["v", "x"], ["w", "y"], ["z"]]
        assert examples["rows"][:] == [[1, 3], [2, 4], [5]]
        assert examples["source"][:] == ["name[B]", "name[A]", "name[C]"] and examples["seen"][:] == [None] * 3


@pytest.mark.parametrize(
    "columns",
    [
        {"mr": ["name[B]"], "ref": ["x"]},
        {"meaning_representation": ["name[B]"], "human_references": [["x"]]},
        {"meaning_representation": ["name[B]"], "human_references": ['["x"]']},
        {"meaning_representation": ["name[B]"], "human_reference": [" x\n"]},
    ],
)
def test_references_in_every_form(columns):
    assert nlg.to_examples(Dataset.from_dict(columns), E2E, "validation")[0]["references"] == ["x"]


@pytest.mark.parametrize(
    "text",
    ['["Paris", "Rome"]', '["Paris"]', "[]", "[1, 2]", '{"a": ["b"]}', "['a']", "[1] a", "    return 1", "a  b\t"],
)
def test_a_reference_is_taken_as_it_is(tmp_path, caplog, text):
    """As the target of a training, and as what a text is held against; in a CSV file too."""
    rows = {"input": ["  x", "y"], "reference": [text, text]}
    write(tmp_path / "a.jsonl", [dict(zip(rows, row)) for row in zip(*rows.values())])
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.jsonl", "a.csv"):
        caplog.clear()
        examples = nlg.load_examples(OWN, {split: tmp_path / name for split in ("train", "validation")})
        assert examples["train"]["references"][:] == examples["validation"]["references"][:] == [[text], [text]]
        assert examples["train"]["prompt"][:] == ["  x", "y"]
        assert ("is taken as it is" in caplog.text) == (nlg_prompts.json_list(text) is not None)


def test_several_references_are_a_list_and_in_a_csv_file_a_json_list(tmp_path, caplog):
    cells = ['["Paris", "Rome"]', "[1] Paris"]
    pandas.DataFrame({"input": ["x", "y"], "references": cells}).to_csv(tmp_path / "a.csv", index=False)
    examples = nlg.load_examples(OWN, {"train": tmp_path / "a.csv"})["train"]
    assert examples["references"][:] == [["Paris"], ["Rome"], ["[1] Paris"]]
    assert caplog.messages == [f"{tmp_path.name}/a.csv: 1 cells of references are read as JSON lists of references"]
    write(tmp_path / "a.jsonl", [{"input": "x", "references": cell} for cell in cells])
    assert nlg.load_examples(OWN, {"train": tmp_path / "a.jsonl"})["train"]["references"][:] == [[c] for c in cells]


def test_lines_that_are_joined_are_said(caplog):
    rows = Dataset.from_dict({"input": ["a", "b", "c"], "reference": ["def f():\n    return 1", "x\ry", "z\n"]})
    assert nlg.to_examples(rows, OWN, "train")["references"][:] == [["def f(): return 1"], ["x y"], ["z"]]
    assert "2 references of several lines are made one line each. Add --one_line false" in caplog.text
    caplog.clear()
    kept = nlg.to_examples(rows, OWN, "train", one_line=False)["references"][:]
    assert kept == [[text] for text in rows["reference"]] and not caplog.messages


def test_line_breaks_stay_where_texts_are_not_lines():
    rows = Dataset.from_dict({"input": ["a"], "reference": ["two \r\n  lines"]})
    assert nlg.to_examples(rows, OWN, "train")[0]["references"] == ["two lines"]
    assert nlg.to_examples(rows, OWN, "train", one_line=False)[0]["references"] == ["two \r\n  lines"]


def test_plain_prompts_are_the_rows_own():
    rows = Dataset.from_dict({"meaning_representation": ["name[B], area[C]"], "human_reference": ["x"]})
    assert nlg.to_examples(rows, E2E, "train", prompt_format="plain")[0]["prompt"] == "name[B], area[C]"
    rows = Dataset.from_dict({"triples": [["A | b | c", "A | d | e"]], "references": [["x"]]})
    assert nlg.to_examples(rows, WEBNLG, "train", prompt_format="plain")[0]["prompt"] == "A | b | c | A | d | e"


def test_prompts_of_words_have_no_underscores_and_quotes():
    rows = Dataset.from_list([{"triples": ['Al_Asad | city | "Ba\'gh , Iraq"'], "references": ["x"]}])
    example = nlg.to_examples(rows, WEBNLG, "train", prompt_format="words")[0]
    assert example["prompt"] == "Al Asad : city : Ba'gh , Iraq"
    rows = Dataset.from_list([{"meaning_representation": "name[B], area[C]", "human_reference": "x"}])
    lora, words = (nlg.to_examples(rows, E2E, "train", prompt_format=form)[0]["prompt"] for form in ("lora", "words"))
    assert words == lora


def test_seen_comes_from_the_rows_or_from_the_category():
    rows = {"triples": [["A | b | c"], ["D | e | f"]], "references": [["x"], ["y"]], "category": ["Airport", "Artist"]}
    assert nlg.to_examples(Dataset.from_dict(rows), WEBNLG, "test")["seen"][:] == [True, False]
    rows["seen"] = ["false", "True"]  # a CSV file's
    assert nlg.to_examples(Dataset.from_dict(rows), WEBNLG, "test")["seen"][:] == [False, True]


def test_a_test_set_may_have_no_references_but_not_for_some_rows_only():
    rows = {"input": ["a", "b", "a"]}
    assert nlg.to_examples(Dataset.from_dict(rows), OWN, "test")["references"][:] == [[], []]
    rows["reference"] = ["x", "", None]
    text = data_error(nlg.to_examples, Dataset.from_dict(rows), OWN, "test", "folder/t.jsonl")
    assert (
        text == "folder/t.jsonl, row 2: there is no reference, and other rows have one. Give every row one, or none."
    )
    rows["reference"] = ["x", "y", None]
    assert nlg.to_examples(Dataset.from_dict(rows), OWN, "test")["references"][:] == [["x"], ["y"]]


BAD_ROWS = [
    (
        E2E,
        {"meaning_representation": ["name[B]"]},
        "has no column 'human_reference': e2e needs meaning_representation and",
    ),
    (
        E2E,
        {"text": ["name[B]"], "human_reference": ["x"]},
        "has no column 'meaning_representation'.*given are text, human",
    ),
    (
        E2E,
        {"mr": ["name[B]", "name B"], "ref": ["x", "y"]},
        "row 2: mr is 'name B'; a meaning representation is written as",
    ),
    (E2E, {"mr": [3], "ref": ["x"]}, "row 1: mr is 3; text is needed. Correct the row"),
    (
        WEBNLG,
        {"triples": [["A | b"]], "references": [["x"]]},
        r"row 1: triples is .*; the triple 'A \| b' is not written as",
    ),
    (
        WEBNLG,
        {"triples": [["A | b | c"]], "references": [[]]},
        "row 1: there is no reference, and every row for train",
    ),
    (
        WEBNLG,
        {"triples": [["A | b | c"]], "references": [["x"]], "seen": [7]},
        "row 1: seen is 7. Write true or false",
    ),
    (OWN, {"input": ["a", None], "reference": ["x", "y"]}, "row 2: input is None; text is needed"),
    (OWN, {"input": ["a", "b"], "reference": ["x", "  "]}, "row 2: there is no reference"),
    (
        OWN,
        {"input": ["a"], "references": [[1, 2]]},
        r"row 1: the reference is \[1, 2\]. Give a text, or a list of texts",
    ),
    (OWN, {"input": [], "reference": []}, "has no rows. Give at least one row for train"),
]


@pytest.mark.parametrize("task, rows, expected", BAD_ROWS, ids=[expected for _, _, expected in BAD_ROWS])
def test_bad_rows_are_named(task, rows, expected):
    assert re.search(
        expected, data_error(nlg.to_examples, Dataset.from_dict(rows), task, "train", "folder/rows.jsonl")
    )


# ---- where the rows of E2E and WebNLG lie


def test_webnlg_file_of_the_challenge_gives_the_good_texts_of_every_set():
    def entry(number, *texts):
        triples = [{"subject": "A", "property": "b", "object": f"c{number}"}]
        lexes = [{"comment": comment, "lex": lex, "lang": "", "xml_id": "Id1"} for comment, lex in texts]
        return {
            str(number): {"category": "Airport", "lexicalisations": lexes, "modifiedtripleset": triples, "size": "1"}
        }

    entries = [
        entry(1, ("good", "x"), ("toFix", "y"), ("good", "z")),
        entry(2, ("toFix", "y")),
        entry(3, ("good", "w")),
    ]
    rows = nlg.webnlg_rows(json.dumps({"entries": entries}))
    assert rows.to_list() == [
        {"category": "Airport", "triples": ["A | b | c1"], "references": ["x", "z"]},
        {"category": "Airport", "triples": ["A | b | c3"], "references": ["w"]},
    ]


def test_both_tasks_load_without_a_script(monkeypatch):
    asked = []

    def hub(hub_id, config, splits, **arguments):
        asked.append((hub_id, config, arguments))
        entry = {"category": "City", "lexicalisations": [{"comment": "good", "lex": "x"}]}
        entry["modifiedtripleset"] = [{"subject": "A", "property": "b", "object": "c"}]
        row = {
            "meaning_representation": "name[B]",
            "human_reference": "x",
            "text": json.dumps({"entries": [{"1": entry}]}),
        }
        return DatasetDict({split: Dataset.from_list([row]) for split, _ in splits})

    monkeypatch.setattr(nlg, "load_from_hub", hub)
    for task, prompt in ((E2E, "name : B"), (WEBNLG, "A : b : c")):
        examples = nlg.load_examples(task, {}, cache_dir="there")
        assert list(examples) == ["train", "validation", "test"]
        assert all(
            dataset[0]["prompt"] == prompt and dataset[0]["references"] == ["x"] for dataset in examples.values()
        )
    assert asked[0] == (
        "tuetschek/e2e_nlg",
        None,
        {"revision": "refs/convert/parquet", "cache_dir": "there", "token": None},
    )
    assert asked[1][0] == "text" and all(
        re.search(r"/[0-9a-f]{40}/", url) for url in asked[1][2]["data_files"].values()
    )


def test_without_a_network_the_message_names_the_data_set():
    text = data_error(nlg.load_examples, WEBNLG, {})
    assert "Could not reach the Hugging Face Hub for the data set WebNLG 2017" in text and "--train_file" in text
    assert "data set tuetschek/e2e_nlg" in data_error(nlg.load_examples, E2E, {})
    assert "is for rows of your own. Give --train_file" in data_error(nlg.load_examples, OWN, {})


# ---- tokens


@pytest.mark.parametrize("llama", [False, True])
def test_prompt_ends_with_the_start_token_and_the_loss_is_on_blank_text_and_end(llama):
    tokenizer = byte_tokenizer(llama)
    prompts = nlg.encode_prompts(["é", "ab", "é"], tokenizer)
    start, end = (256, 257) if llama else (256, 256)
    letter = tokenizer.convert_tokens_to_ids
    assert prompts[0] == prompts[2] == ([start] if llama else []) + [letter("Ã"), letter("©"), start]
    pairs, cut = nlg.encode_pairs(prompts[1:2], [["c d", "e"]], tokenizer, max_seq_length=99)
    target = [letter("Ġ"), letter("c"), letter("Ġ"), letter("d"), end]
    assert cut == 0 and pairs[0] == {"input_ids": prompts[1] + target, "labels": [-100] * len(prompts[1]) + target}
    assert pairs[1]["labels"] == [-100] * len(prompts[1]) + [letter("Ġ"), letter("e"), end]


def test_long_texts_are_cut_and_counted_and_lose_their_end():
    tokenizer = byte_tokenizer()
    prompts = nlg.encode_prompts(["abc", "abc"], tokenizer)
    pairs, cut = nlg.encode_pairs(prompts, [["12345"], ["1"]], tokenizer, max_seq_length=7)
    assert cut == 1 and [len(row) for row in pairs["input_ids"]] == [7, 7]
    assert pairs[0]["labels"][-1] != 256 and pairs[1]["labels"][-1] == 256
    nlg.check_lengths(prompts, [1, 2], 5, "f", "")
    text = data_error(nlg.check_lengths, prompts, [3, 8], 4, "d/f.csv", "Shorten it.")
    assert (
        text == "d/f.csv, row 3: the prompt has 4 tokens, and with a limit of 4 none is left for the text. Shorten it."
    )


def test_batches_are_padded_on_the_right():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = nlg.PairCollator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]] and batch["attention_mask"].tolist() == [
        [1, 1, 1],
        [1, 0, 0],
    ]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert nlg.PairCollator(9, multiple=8)(rows)["labels"].shape == (2, 8)
    assert nlg.PairCollator(9, multiple=8, longest=5)(rows)["labels"].shape == (
        2,
        5,
    )  # the model has no more positions
    assert nlg.PairCollator(9, longest=5, pad_to_longest=True)(rows)["labels"].shape == (2, 5)
