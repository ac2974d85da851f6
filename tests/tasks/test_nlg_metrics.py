"""Do the metrics of generated text give the numbers of the papers' scripts, and can they live without Java?"""

import importlib.util
import logging
import math
import random
import shutil
import sys
from contextlib import nullcontext

import psutil
import pytest

from autolora_trainer.tasks import coco, nlg_metrics
from autolora_trainer.tasks.files import DataError
from autolora_trainer.tasks.nlg_metrics import METRICS, bleu, copy_slots, nist, score
from autolora_trainer.tasks.ter import _edit_distance, ter

# Three rows with three, one and two references. Each value pinned on them is of the original scripts, run once: for
# E2E pymteval of e2e-metrics and pycocoevalcap 1.2 (the code in e2e-metrics); for WebNLG multi-bleu-detok.perl,
# meteor-1.5 on files (-l en -norm -r 3) and pyter3 0.3, on texts as LoRA's gpt2_decode.py --tokenize --lower has them.
PREDICTIONS = [
    "The Green Fig is a café by the river, where meals cost less than £20.",
    "Near the old mill there's a cheap pub called The Anchor; children are welcome.",
    "A pub (rated 3 out of 5) is in the city centre.",
]
REFERENCES = [
    [
        "The Green Fig, a café at the riverside, serves meals for less than £20.",
        "By the river is a cheap café called The Green Fig.",
        "The Green Fig is a café by the river; prices are below £20.",
    ],
    ["The Anchor is a cheap pub near the old mill, and children are welcome there."],
    [
        "There is a pub in the city centre with a rating of 3 out of 5.",
        "In the city centre you'll find a pub, rated 3 out of 5.",
    ],
]
SEEN = [True, False, True]
NEEDS_JAVA = {"meteor", "rougeL", "cider"}

needs_java = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="needs Java and pycocoevalcap",
)


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def java_processes():
    return [child for child in psutil.Process().children(recursive=True) if child.name() in ("java", "sleep")]


# ---- BLEU

# Papineni et al. (2002), section 2.1, examples 1 and 2
GUIDE = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]
CANDIDATE_1 = "It is a guide to action which ensures that the military always obeys the commands of the party"
CANDIDATE_2 = "It is to insure the troops forever hearing the activity guidebook that party direct"
THE = "the the the the the the the"
CAT = ["The cat is on the mat", "There is a cat on the mat"]


def test_bleu_has_the_modified_precisions_of_papineni():
    # unigrams 17/18, 8/14 and 2/7, bigrams 10/17, 1/13 and 0/6 are the paper's; n = 3 and 4 are counted by hand
    one = math.prod([17 / 18, 10 / 17, 7 / 16, 4 / 15]) ** (1 / 4)  # 18 words, as the second reference: no penalty
    assert bleu([CANDIDATE_1], [GUIDE]) == pytest.approx(100 * one)

    clipped = math.prod([19 / 25, 10 / 23, 7 / 21, 4 / 19]) ** (1 / 4)
    assert bleu([CANDIDATE_1, THE], [GUIDE, CAT]) == pytest.approx(100 * clipped)

    precisions = [(17 + 8 + 2) / 39, (10 + 1) / 36, 7 / 33, 4 / 30]
    shorter = math.exp(1 - (18 + 16 + 7) / 39)  # of 16, 18 and 16 words the closest to 14 is 16
    expected = 100 * shorter * math.prod(precisions) ** (1 / 4)
    assert bleu([CANDIDATE_1, CANDIDATE_2, THE], [GUIDE, GUIDE, CAT]) == pytest.approx(expected)


def test_bleu_is_sacrebleus_published_example():
    # README of sacrebleu: "BLEU = 48.53 82.4/50.0/45.5/37.5 (BP = 0.943 ratio = 0.944 hyp_len = 17 ref_len = 18)"
    system = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    assert bleu(system, references, lowercase=False) == pytest.approx(48.530827009929865)


def test_bleu_with_unequal_numbers_of_references_is_pymtevals():
    assert bleu(PREDICTIONS, REFERENCES) == pytest.approx(48.861128014678776)
    repeated = [[*row, *[row[0]] * (3 - len(row))] for row in REFERENCES]
    assert bleu(PREDICTIONS, repeated) == bleu(PREDICTIONS, REFERENCES)


def test_bleu_is_not_smoothed():
    assert bleu(["a b c d e"], [["a b c x y"]]) == 0  # sacrebleu's default would give 22.6


def test_bleu_ignores_case_only_if_told_to():
    assert bleu(["THE CAT SAT ON A MAT"], [["the cat sat on a mat"]]) == pytest.approx(100)
    assert bleu(["THE CAT SAT ON A MAT"], [["the cat sat on a mat"]], lowercase=False) == 0


# ---- NIST


def test_nist_is_pymtevals():
    assert nist(PREDICTIONS, REFERENCES) == pytest.approx(5.061619856893064)


def test_nist_follows_from_its_formula():
    # info(a) = log2(4/2), info(b) = log2(4/1), info(a b) = log2(2/1); length 2 of 4
    penalty = 0.5 ** (math.log(2 / 4) ** 2 / math.log(2 / 3) ** 2)
    assert nist(["a b"], [["a b a c"]]) == pytest.approx(penalty * ((1 + 2) / 2 + 1))
    # a text of two thirds of the length keeps half its score (Doddington's β)
    assert nist(["a b"], [["a b c"]]) == pytest.approx(0.5 * math.log2(3))
    # information is of the references of all rows (two of six words are "a"); of the lengths, the mean in each row
    penalty = 0.5 ** (math.log(3 / (2 + 2)) ** 2 / math.log(2 / 3) ** 2)
    expected = penalty * (math.log2(6 / 2) + math.log2(6 / 1)) / 3
    assert nist(["a", "q r"], [["a b", "c d"], ["a q"]]) == pytest.approx(expected)


def test_nist_takes_a_prediction_without_ngrams_of_some_length():
    assert nist(["a", ""], [["a b"], ["c"]]) > 0
    assert nist(["", ""], [["a b"], ["c"]]) == 0
    assert nist(["x"], [["a b"]]) == 0


# ---- TER


def test_ter_is_snovers_published_example():
    # Snover et al. (2006), section 3: one shift, two substitutions, one insertion, 13 words; also pyter's own example
    reference = "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times"
    hypothesis = "THIS WEEK THE SAUDIS denied information published in the new york times"
    assert ter([hypothesis], [[reference]]) == pytest.approx(4 / 13)


def test_ter_searches_shifts_as_pyter():
    # Both need the order in which pyter tries shifts of equal gain: the other order gives 3 and 3 edits.
    assert ter(["f f a d b c a"], [["e d a b c a f"]]) == pytest.approx(4 / 7)
    assert ter(["a f b d"], [["b f d a"]]) == pytest.approx(2 / 4)


def test_ter_takes_the_least_over_references_and_the_mean_over_rows(no_java):
    assert ter(["a b c d", "x"], [["a b c", "a b c e", "q"], ["x"]]) == pytest.approx((1 / 4 + 0) / 2)
    scores = score("webnlg", PREDICTIONS, REFERENCES)
    assert scores["ter"] == pytest.approx((0.2777777777777778 + 0.47058823529411764 + 0.47058823529411764) / 3)


def test_ter_of_empty_long_and_repeated_texts_ends():
    assert ter([""], [["a b"]]) == 1
    assert ter(["a b c d e f"], [["a"]]) == 5
    assert ter([" ".join(["the"] * 64)], [["the cat and the dog of the house"]]) == pytest.approx(61 / 8)
    assert ter([" ".join(["the dog of"] * 21)], [["the cat and the dog of the house"]]) > 1


def test_edit_distance_is_levenshteins():
    def by_table(one, two):
        row = list(range(len(two) + 1))
        for i, a in enumerate(one, 1):
            above, row = row, [i]
            for j, b in enumerate(two, 1):
                row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
        return row[-1]

    generator = random.Random(0)
    for _ in range(300):
        one, two = ([generator.choice("abcd") for _ in range(generator.randint(1, 90))] for _ in range(2))
        positions = {word: sum(1 << i for i, other in enumerate(two) if other == word) for word in two}
        assert _edit_distance(one, positions, len(two)) == by_table(one, two)


# ---- COCO's metrics, METEOR


@needs_java
def test_rouge_and_cider_are_the_coco_scripts():
    predictions, references = coco.ptb_tokens(PREDICTIONS, REFERENCES)
    assert predictions[2] == "a pub -lrb- rated 3 out of 5 -rrb- is in the city centre"
    assert [len(row) for row in references] == [3, 1, 2]
    assert coco.rouge_l(predictions, references) == pytest.approx(59.18633235004916)
    assert coco.cider(predictions, references) == pytest.approx(4.246638629604589)


@needs_java
def test_tokenizer_keeps_rows_apart_whatever_is_in_them():
    predictions = ["", "\ufffd", "a\nb\u2028c\x0bd\x85e", "…", "x \U0001f600 \ud800"]
    predictions, references = coco.ptb_tokens([nlg_metrics._one_line(text) for text in predictions], [["end"]])
    assert (predictions[:3], references) == (["", "", "a b c d e"], [["end"]])
    assert coco.cider([""], [[""]]) == 0  # of punctuation nothing is left


@needs_java
def test_all_metrics_are_those_of_the_scripts(monkeypatch):
    with coco.meteor_process() as ask:  # one start for all, as it takes 10 to 30 s
        monkeypatch.setattr(coco, "meteor_process", lambda: nullcontext(ask))
        e2e = score("e2e", PREDICTIONS, REFERENCES)
        webnlg = score("webnlg", PREDICTIONS, REFERENCES, seen=SEEN)
        empty = score("e2e", ["", ""], [["a pub."], ["a café", "the ||| café"]])
    assert e2e == pytest.approx(
        {
            "bleu": 48.861128014678776,
            "nist": 5.061619856893064,
            "meteor": 45.708631604101774,
            "rougeL": 59.18633235004916,
            "cider": 4.246638629604589,
        }
    )
    assert webnlg == pytest.approx(
        {
            "bleu": 48.40,
            "bleu_seen": 55.33,
            "bleu_unseen": 27.95,
            "meteor": 43.39684223995165,
            "meteor_seen": 43.143468311242,
            "meteor_unseen": 43.86910863053635,
            "ter": 0.40631808278867104,
            "ter_seen": (0.2777777777777778 + 0.47058823529411764) / 2,
            "ter_unseen": 0.47058823529411764,
        },
        abs=0.005,  # the Perl script prints two places
    )
    assert webnlg["meteor_seen"] == pytest.approx(43.143468311242)
    assert list(webnlg)[:3] == ["bleu", "bleu_seen", "bleu_unseen"]
    assert empty == dict.fromkeys(METRICS["e2e"], 0)
    assert java_processes() == []
    assert not any("spice" in name for name in sys.modules)


# ---- without Java


def test_without_java_one_line_says_so_and_the_rest_stands(no_java, caplog):
    pytest.importorskip("pycocoevalcap")
    scores = score("e2e", PREDICTIONS, REFERENCES)
    assert scores == pytest.approx({"bleu": 48.861128014678776, "nist": 5.061619856893064})
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("autolora_trainer", logging.WARNING)
    assert record.getMessage() == (
        "Left out meteor, rougeL, cider: there is no `java` on PATH. Install one, e.g. apt-get install "
        "default-jre-headless"
    )
    assert set(score("webnlg", PREDICTIONS, REFERENCES)) == {"bleu", "ter"}


def test_without_pycocoevalcap_one_line_says_what_to_type(monkeypatch, caplog):
    for name in ("pycocoevalcap", "pycocoevalcap.tokenizer.ptbtokenizer", "pycocoevalcap.meteor.meteor"):
        monkeypatch.setitem(sys.modules, name, None)
    assert set(score("e2e", PREDICTIONS, REFERENCES)) == {"bleu", "nist"}
    (record,) = caplog.records
    assert record.getMessage().endswith('pycocoevalcap is not installed. pip install ".[nlg]"')


@pytest.mark.parametrize("task", ["e2e", "webnlg"])
@pytest.mark.parametrize(
    "body, said",
    [
        ("echo 'Error: no such VM' >&2; exit 1", "failed: Error: no such VM. Does `java -version` work?"),
        ("exec sleep 60", "gave no answer in 0.5 s. Is the machine busy?"),
        ("echo nonsense", "failed"),
    ],
)
def test_java_that_fails_or_hangs_is_left_behind(task, body, said, monkeypatch, caplog, tmp_path):
    pytest.importorskip("pycocoevalcap")
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{body}\n")
    java.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(java))
    monkeypatch.setattr(coco, "JAVA_TIMEOUT", 0.5)
    assert set(score(task, PREDICTIONS, REFERENCES)) == set(METRICS[task]) - NEEDS_JAVA
    (record,) = caplog.records
    assert said in record.getMessage() and "\n" not in record.getMessage()
    assert java_processes() == []


def test_module_loads_without_the_extra_and_says_what_to_install(monkeypatch):
    for name in ("sacrebleu", "pycocoevalcap", "nltk", "pyter"):
        monkeypatch.setitem(sys.modules, name, None)  # any import of them fails
    spec = importlib.util.spec_from_file_location("fresh_nlg_metrics", nlg_metrics.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    for metric in (fresh.bleu, fresh.nist):
        with pytest.raises(ImportError, match=r'sacrebleu is not installed.* pip install "\.\[nlg\]"'):
            metric(PREDICTIONS, REFERENCES)


# ---- rows


def test_seen_and_unseen_rows_are_scored_as_sets_of_their_own(no_java):
    scores = score("webnlg", PREDICTIONS, REFERENCES, seen=SEEN)
    assert set(scores) == {"bleu", "bleu_seen", "bleu_unseen", "ter", "ter_seen", "ter_unseen"}
    seen = score("webnlg", PREDICTIONS[::2], REFERENCES[::2])
    unseen = score("webnlg", PREDICTIONS[1:2], REFERENCES[1:2])
    assert (scores["bleu_seen"], scores["ter_seen"]) == (seen["bleu"], seen["ter"])
    assert (scores["bleu_unseen"], scores["ter_unseen"]) == (unseen["bleu"], unseen["ter"])
    assert set(score("webnlg", PREDICTIONS, REFERENCES, seen=[True] * 3)) == {"bleu", "bleu_seen", "ter", "ter_seen"}


def test_webnlg_reads_six_references_and_any_other_name_has_the_metrics_of_e2e(no_java):
    row = [f"{letter} b c d e" for letter in "qrstuv"]
    assert score("webnlg", ["a b c d e"], [[*row, "a b c d e"]])["ter"] == pytest.approx(1 / 5)
    assert set(score("my_data", ["a b c d e"], [row])) == {"bleu", "nist"}


def test_blank_references_count_as_none_and_line_breaks_as_blanks(no_java):
    assert score("e2e", ["a b\nc d"], [["", "a b c\td", " "]]) == score("e2e", ["a b c d"], [["a b c d"]])


def test_empty_predictions_score_low(no_java):
    for task, expected in (("e2e", {"bleu": 0, "nist": 0}), ("webnlg", {"bleu": 0, "ter": 1})):
        assert score(task, ["", " "], [["a pub."], ["a café", "the café"]]) == expected


@pytest.mark.parametrize(
    "predictions, references, seen, message",
    [
        ([], [], None, "There are no predictions. Give at least one, with its references."),
        (["a", "b"], [["a"]], None, "2 predictions, but 1 lists of references. Give one list for each prediction."),
        (["a", "b"], [["a"], []], None, r"Row 2 has no reference: \[\]. Give it at least one text, or leave"),
        (["a"], [["", " "]], None, r"Row 1 has no reference: \['', ' '\]"),
        (["a"], [None], None, "Row 1 has no reference: None"),
        (["a"], ["a"], None, "The references of row 1 are 'a'. Give a list of texts."),
        (["a"], [["a", 3]], None, r"The references of row 1 are \['a', 3\]. Give a list of texts."),
        ([None], [["a"]], None, "Prediction 1 is None. Give a text; it may be empty."),
        (["a"], [["a"]], [True, False], "1 predictions, but 2 values of seen. Give one for each prediction."),
    ],
)
def test_rows_that_cannot_be_scored_are_named_in_one_line(predictions, references, seen, message):
    for task in METRICS:
        with pytest.raises(DataError, match=message) as error:
            score(task, predictions, references, seen)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, copied",
    [
        ("name[The Vaults], eatType[pub], priceRange[more than £30]", "The Vaults pub more than £30"),
        ("name[Zizzi, Soho], area[riverside], familyFriendly[yes]", "Zizzi, Soho riverside yes"),
        ("Abilene,_Texas | isPartOf | Texas", "Abilene, Texas isPartOf Texas"),
        (['A_B | p | "25.0"', "A_B | q | C_(D)"], "A B p 25.0 A B q C (D)"),
        ("", ""),
    ],
)
def test_copied_slots_are_the_values_and_nothing_else(given, copied):
    assert copy_slots(given) == copied
