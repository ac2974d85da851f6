"""Are held-out rows held out in every script, and is it said how many belong together?"""

import pytest

import run_glue
import run_ner
import run_nlg
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.pipeline import prepare
from autolora_trainer.scripts.request import settle
from tests.helpers.commands import as_argv
from tests.helpers.models import byte_gpt2, byte_tokenizer, tiny_checkpoint
from tests.helpers.rows import WORDS, write_rows


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint(folder / "roberta", num_labels=2)
    byte_gpt2().save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    return folder


def parts(script, model, task, rows, folder):
    """(a sentence about groups, the rows of the input file on each of the three sides of a search)."""
    files = {f"{split}_file": write_rows(folder / f"{split}.jsonl", rows) for split in ("train", "validation")}
    kind, groups = {"glue": (run_glue, {}), "ner": (run_ner, {"data_arguments": run_ner.NerDataArguments}),
                    "nlg": (run_nlg, {"data_arguments": run_nlg.NlgArguments})}[script]  # fmt: skip
    settings = {"task_name": task, "model_name_or_path": model, "output_dir": folder / "o", "max_seq_length": 12}
    settings |= {"decode": False, "max_seq_length": 64} if script == "nlg" else {}
    task = {"glue": run_glue.Glue, "ner": run_ner.Ner, "nlg": run_nlg.Nlg}[script]()
    job = prepare(settle(task, *parse_arguments(as_argv({**settings, **files, "use_cpu": True}), **groups)))
    places = job.rows.datasets["train"]
    job.rows.datasets["train"] = places.add_column("place", range(len(places)))
    return task, job.rows.sharing, [side["place"][:] for side in job.split_three(0.5)]


def sentence(number):
    return f"the {WORDS[number % 6]} {WORDS[6 + number // 6 % 4]} was {WORDS[number // 24 % 6]}"


TEXTS = [sentence(number) for number in range(48)]
TASKS = {
    "copies": ("sst2", [{"sentence": TEXTS[i % 20], "label": i * i % 3 % 2} for i in range(80)], 80),
    "texts that the tokenizer cuts to one": (
        "sst2", [{"sentence": f"{TEXTS[i % 20]} {TEXTS[i % 20]} and good film plot {WORDS[i % 16]}", "label": i % 2}
                 for i in range(40)], 40),
    "questions in several pairs": (
        "qqp", [{"question1": TEXTS[i], "question2": TEXTS[i + (-1) ** (i % 4 // 2)], "label": i % 2}
                for i in range(44)], 44),
    "premises": ("mnli", [{"premise": TEXTS[i % 16], "hypothesis": f"{TEXTS[i]} film", "label": i % 3}
                          for i in range(48)], 48),
}  # fmt: skip


@pytest.mark.parametrize("case", TASKS)
def test_rows_that_share_a_text_are_on_one_side(models, tmp_path, case):
    name, rows, sharing = TASKS[case]
    task, said, sides = parts("glue", models / "roberta", name, rows, tmp_path)
    texts = [{row[column] for row in map(rows.__getitem__, side) for column in task.task.text_columns}
             for side in sides]  # fmt: skip
    if "cuts" in case:
        texts = [{text.rsplit(" ", 4)[0] for text in side} for side in texts]
    assert said.startswith(f"{sharing} of {len(rows)} rows share an input with others")
    assert sum(map(len, texts)) == len(set.union(*texts)) and sum(map(len, sides)) == len(rows)
    assert 0.4 * len(rows) <= len(sides[0]) <= 0.6 * len(rows)


def test_windows_of_a_sentence_and_its_copies_are_on_one_side(models, tmp_path):
    words = [" ".join(TEXTS[start : start + 3]).split() for start in 2 * list(range(0, 36, 3))]
    rows = [{"tokens": own, "tags": ["B-x", *["O"] * (len(own) - 1)]} for own in words]
    task, said, sides = parts("ner", models / "roberta", None, rows, tmp_path)
    places = [sentence for sentence, _ in task.windows["train"].places]
    assert len(places) == 48 and said.startswith("48 of 48 rows share")
    texts = [{tuple(words[places[row]]) for row in side} for side in sides]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 12


def test_texts_of_one_input_are_on_one_side(models, tmp_path):
    rows = [{"input": TEXTS[i % 12], "reference": f"{i}"} for i in range(36)]
    _, said, sides = parts("nlg", models / "gpt2", None, rows, tmp_path)
    texts = [{rows[row]["input"] for row in side} for side in sides]
    assert said.startswith("36 of 36 rows share an input")
    assert sum(map(len, texts)) == len(set.union(*texts)) == 12


def test_rows_that_differ_are_not_said_to_share(models, tmp_path):
    rows = [{"sentence": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    assert parts("glue", models / "roberta", "sst2", rows, tmp_path)[1] == ""
