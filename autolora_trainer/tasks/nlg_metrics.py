"""Metrics of generated text, as the scripts behind the papers' tables compute them: E2E's and WebNLG 2017's.

| metric | task | unit, best | definition |
|---|---|---|---|
| `bleu` | both | 0-100, 100 | Papineni et al. (2002), mteval-v13a's tokens, not smoothed |
| `nist` | e2e | from 0 up | Doddington (2002), the same tokens, n-grams up to 5 |
| `meteor` | both | 0-100, 100 | METEOR 1.5 (Denkowski and Lavie, 2014), English, of the whole corpus; needs Java |
| `rougeL` | e2e | 0-100, 100 | Lin (2004) with COCO's beta of 1.2, the mean over rows; needs Java |
| `cider` | e2e | 0-10, 10 | CIDEr-D (Vedantam et al., 2015), the mean over rows; needs Java |
| `ter` | webnlg | from 0 up, 0 | Snover et al. (2006) as pyter has it: the least over references, the mean over rows |

These are the units of the papers' tables: BLEU 68.2, NIST 8.62, METEOR 46.2, ROUGE-L 71.0, CIDEr 2.49, TER 0.46.
"""

import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

from autolora_trainer.tasks.coco import INSTALL, Unavailable, cider, meteor, ptb_tokens, rouge_l
from autolora_trainer.tasks.files import DataError, shown_value
from autolora_trainer.tasks.ter import _row_ter, mean

logger = logging.getLogger("autolora_trainer")

METRICS = {"e2e": ("bleu", "nist", "meteor", "rougeL", "cider"), "webnlg": ("bleu", "meteor", "ter")}
NIST_ORDER = 5  # mteval-v13a's default
NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2  # a text of 2/3 of the references' length loses half its score
WEBNLG_REFERENCES = 6  # `--ref_num 6` in LoRA's scripts: two of the 1862 test rows have more


def score(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]], seen=None) -> dict[str, float]:
    """Score generated texts with the metrics of a task (units: see the module).

    What needs Java is left out, with one warning, where there is no `java` or it fails; the rest stands.

    Args:
        task: "webnlg", or "e2e"; any other name is data of one's own and gets E2E's metrics.
        predictions: one text a row. An empty text is allowed, and scores low.
        references: one list of texts a row, of any length but 0. A blank reference counts as none.
        seen: one bool a row: is it of a category that training has seen (WebNLG's test set)? Every metric is then
            given over all rows, and again over the rows of each kind that there is, as if they were the whole set.
    Returns:
        `METRICS[task]`, or those of them that could be computed; with `seen` also each name + `_seen`, `_unseen`.
    Raises:
        DataError: If there are no predictions, the lengths differ, or a row has no reference.
        ImportError: If sacrebleu is not installed.
    Example:
        >>> import unittest.mock
        >>> with unittest.mock.patch("shutil.which", return_value=None):  # METEOR takes its time
        ...     scores = score("webnlg", ["a b c d e", "f"], [["a b c d e"], ["g", "f g h"]], seen=[True, False])
        >>> {name: round(value, 2) for name, value in scores.items()}
        {'bleu': 100.0, 'bleu_seen': 100.0, 'bleu_unseen': 0.0, 'ter': 0.33, 'ter_seen': 0.0, 'ter_unseen': 0.67}
    """
    predictions, references = _checked(predictions, references, seen)
    groups = {"": range(len(predictions))}
    if seen is not None:
        groups["_seen"] = [row for row in groups[""] if seen[row]]
        groups["_unseen"] = [row for row in groups[""] if not seen[row]]
    groups = {suffix: rows for suffix, rows in groups.items() if rows}
    names = METRICS.get(task, METRICS["e2e"])
    scores: dict[str, dict[str, float]] = {}
    try:
        (_webnlg if task == "webnlg" else _e2e)(scores, predictions, references, groups)
    except Unavailable as reason:
        missing = [name for name in names if name not in scores]
        logger.warning("Left out %s: %s", ", ".join(missing), reason)
    return {name + suffix: float(value) for name in names if name in scores for suffix, value in scores[name].items()}


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool = True) -> float:
    """Corpus BLEU in points, by sacrebleu: mteval-v13a's tokens, n-grams up to 4, the closest reference's length.

    Not smoothed: without one common 4-gram it is 0, as in pymteval (e2e-metrics, `-p`) and multi-bleu-detok (WebNLG);
    sacrebleu's own default differs then, and only then.

    Args:
        lowercase: compare without regard to case, as e2e-metrics does.
    Example:
        >>> round(bleu(["The cat sat on the mat."], [["the cat sat on the mat.", "A cat sat there."]]), 1)
        100.0
    """
    metric = _sacrebleu().metrics.BLEU(
        lowercase=lowercase, tokenize="13a", smooth_method="none", force=True  # force: no advice about tokenized text
    )
    # sacrebleu takes the first references of all rows, then the second ones, and so on; None: this row has no more.
    # To repeat one would not change the score (largest count of an n-gram, closest length); an empty text could.
    return metric.corpus_score(list(predictions), list(zip_longest(*references))).score


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    r"""NIST (Doddington, 2002), as pymteval in e2e-metrics defines it; nltk's differs (4.63 for 5.06 in the test).

        NIST = exp(-β log² min(1, L / L_ref)) Σ_n (Σ_{matched n-grams w} info(w)) / (number of n-grams in predictions)
        info(w_1 … w_n) = log2(count(w_1 … w_{n-1}) / count(w_1 … w_n))

    n = 1 … 5, counts over all references of all rows, matches clipped as in BLEU, L_ref the sum of the rows' mean
    reference lengths, β = `NIST_BETA`. Tokens are mteval-v13a's, in lower case.

    A prediction of less than n tokens has no n-gram, as in mteval-v13a; pymteval counts it as a negative number.

    Example:
        >>> round(nist(["a b c"], [["a b c"]]), 3)  # each token has log2(3), every longer n-gram follows from it
        1.585
    """
    _sacrebleu()
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    counts, matches, totals = Counter(), Counter(), Counter()
    length = reference_length = 0
    for prediction, row in zip(predictions, references):
        tokens = tokenizer(prediction).lower().split()
        found, allowed = _ngrams(tokens), Counter()
        for reference in row:
            reference_tokens = tokenizer(reference).lower().split()
            ngrams = _ngrams(reference_tokens)
            allowed |= ngrams
            counts.update(ngrams)
            counts[()] += len(reference_tokens)
            reference_length += len(reference_tokens) / len(row)
        matches.update(found & allowed)
        length += len(tokens)
        for n in range(1, NIST_ORDER + 1):
            totals[n] += max(0, len(tokens) - n + 1)
    if length == 0 or reference_length == 0:
        return 0.0
    information = Counter()
    for ngram, count in matches.items():
        information[len(ngram)] += count * math.log2(counts[ngram[:-1]] / counts[ngram])
    brevity = math.exp(-NIST_BETA * math.log(min(1.0, length / reference_length)) ** 2)
    return brevity * sum(information[n] / totals[n] for n in totals if totals[n])


def copy_slots(meaning_representation: str | Sequence[str]) -> str:
    """The text that copies the input's values and adds nothing: what a model must beat to have learned anything.

    Args:
        meaning_representation: E2E's `name[X], eatType[Y]`, or WebNLG's `subject | property | object`: one triple, or
            a list of them. In triples, `_` becomes a blank, and quotes around an object go.
    Example:
        >>> copy_slots("name[The Vaults], eatType[pub], near[Café Adriatic]")
        'The Vaults pub Café Adriatic'
        >>> copy_slots(["Aarhus_Airport | city | Aarhus", 'Aarhus_Airport | runwayName | "10L/28R"'])
        'Aarhus Airport city Aarhus Aarhus Airport runwayName 10L/28R'
    """
    if not isinstance(meaning_representation, str):
        return " ".join(copy_slots(part) for part in meaning_representation)
    slots = re.findall(r"[^\[\],]+\[([^\]]*)\]", meaning_representation)
    if slots and "|" not in meaning_representation:
        return _one_line(" ".join(slots))
    parts = (part.strip().strip('"') for part in meaning_representation.split("|"))
    return _one_line(" ".join(parts).replace("_", " "))


def _checked(predictions, references, seen):
    predictions, references = list(predictions), list(references)
    if not predictions:
        raise DataError("There are no predictions. Give at least one, with its references.")
    for given, what in ((references, "lists of references. Give one list"), (seen, "values of seen. Give one")):
        if given is not None and len(given) != len(predictions):
            raise DataError(f"{len(predictions)} predictions, but {len(given)} {what} for each prediction.")
    rows = []
    for number, (prediction, row) in enumerate(zip(predictions, references), 1):
        if not isinstance(prediction, str):
            raise DataError(f"Prediction {number} is {shown_value(prediction)}. Give a text; it may be empty.")
        if isinstance(row, str) or not all(isinstance(reference, str) for reference in row or ()):
            raise DataError(f"The references of row {number} are {shown_value(row)}. Give a list of texts.")
        rows.append([reference for reference in map(_one_line, row or ()) if reference])
        if not rows[-1]:
            raise DataError(
                f"Row {number} has no reference: {shown_value(row)}. Give it at least one text, or leave the row out."
            )
    return [_one_line(prediction) for prediction in predictions], rows


def _one_line(text: str) -> str:
    # One text, one line: the scripts read files of lines, and a line break would shift the tokenizer's answers.
    return " ".join(text.split())


def _ngrams(tokens) -> Counter:
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, NIST_ORDER + 1) for start in range(len(tokens) - n + 1)
    )


def _each(metric, predictions, references, groups) -> dict[str, float]:
    return {
        suffix: metric([predictions[row] for row in rows], [references[row] for row in rows])
        for suffix, rows in groups.items()
    }


def _e2e(scores, predictions, references, groups) -> None:
    """Put the scores by name and group into `scores`, those that need Java last."""
    scores["bleu"] = _each(bleu, predictions, references, groups)
    scores["nist"] = _each(nist, predictions, references, groups)
    predictions, references = ptb_tokens(predictions, references)
    scores["rougeL"] = _each(rouge_l, predictions, references, groups)
    scores["cider"] = _each(cider, predictions, references, groups)
    scores["meteor"] = meteor(predictions, references, groups)


def _webnlg(scores, predictions, references, groups) -> None:
    """As `_e2e`. The script's nltk.word_tokenize is left out: after this split it would only write " as `` (METEOR
    takes them for the same) and part a few words like "cannot" (none in WebNLG's references)."""
    predictions = [_split_at_nonwords(prediction) for prediction in predictions]
    references = [[_split_at_nonwords(reference) for reference in row[:WEBNLG_REFERENCES]] for row in references]
    edit_rates = [_row_ter(prediction, row) for prediction, row in zip(predictions, references)]
    cased = functools.partial(bleu, lowercase=False)  # they are in lower case
    scores["bleu"] = _each(cased, predictions, references, groups)
    scores["ter"] = {suffix: mean(edit_rates[row] for row in rows) for suffix, rows in groups.items()}
    scores["meteor"] = meteor(predictions, references, groups)


def _split_at_nonwords(text: str) -> str:
    """LoRA's `--tokenize --lower`: every character that is neither letter, digit nor `_` is a token of its own."""
    return _one_line(re.sub(r"(\W)", r" \1 ", text.lower()))


def _sacrebleu():
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError(f"sacrebleu is not installed; the metrics of generated text need it. {INSTALL}") from error
    return sacrebleu
