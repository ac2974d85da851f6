"""Translation edit rate (Snover et al. 2006), as pyter counts it."""

import math
from collections import Counter
from collections.abc import Sequence


def ter(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Translation edit rate (Snover et al., 2006) of tokens that blanks separate: the least over a row's references,
    the mean over rows.

        TER = (shifts + insertions + deletions + substitutions) / (words in the reference)

    The search for shifts is pyter's, the library of the WebNLG scripts, because it defines the published numbers
    (sacrebleu's TER shifts by tercom's rules, and is of the whole corpus). pyter itself is not used: it is no longer
    maintained and takes some twenty times as long (two to four minutes for WebNLG's test set) for the same numbers.

    Example:
        >>> ter(["b c d a"], [["a b c d", "x y"]])  # one shift, four words
        0.25
    """
    return mean(_row_ter(prediction, row) for prediction, row in zip(predictions, references))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def _row_ter(prediction: str, references: Sequence[str]) -> float:
    words = prediction.split()
    least = math.inf
    for reference in references:
        reference = reference.split()
        if not reference:
            least = min(least, 1.0)  # as in the WebNLG script
        elif _least_edits(words, reference) / len(reference) < least:
            least = min(least, _edits(words, reference) / len(reference))
    return least


def _least_edits(words, reference) -> int:
    # No shift changes which words there are: what the two do not share must be inserted, deleted or substituted.
    return max(len(words), len(reference)) - (Counter(words) & Counter(reference)).total()


def _edits(words, reference) -> int:
    """Shifts and edits that turn `words` into `reference`: the best shift is taken until none makes them fewer."""
    words, reference = tuple(words), tuple(reference)
    positions = {}
    for position, word in enumerate(reference):
        positions[word] = positions.get(word, 0) | 1 << position
    shifts, distance, least = 0, _edit_distance(words, positions, len(reference)), _least_edits(words, reference)
    while distance > least:
        shifted = set(_shifts(words, reference))
        # Of equal gains pyter takes the last in alphabetical order: an accident, and part of the published numbers.
        gain, words = max(
            ((distance - _edit_distance(option, positions, len(reference)), option) for option in shifted),
            default=(0, words),
        )
        if gain <= 0:
            break
        shifts, distance = shifts + 1, distance - gain
    return shifts + distance


def _shifts(words: tuple, reference: tuple):
    """Every text in which one run of words stands where the reference has that run (the longest from there on)."""
    for start, word in enumerate(words):
        for target, wanted in enumerate(reference):
            if word == wanted and start != target:
                run = 1
                while words[start + run : start + run + 1] == reference[target + run : target + run + 1] != ():
                    run += 1
                rest = words[:start] + words[start + run :]
                yield rest[:target] + words[start : start + run] + rest[target:]


def _edit_distance(words, positions: dict[str, int], length: int) -> int:
    """Levenshtein distance of `words` to a reference of `length` words, a whole column of the table at a time.

    Bit i of `positions[word]` says that word i of the reference is that word; `more` and `less` hold the differences
    of +1 and -1 between neighbours in a column (Myers, 1999, in Hyyrö's form of 2003).
    """
    full, last = (1 << length) - 1, 1 << (length - 1)
    more, less, distance = full, 0, length
    for word in words:
        match = positions.get(word, 0)
        zero = ((((match & more) + more) ^ more) | match | less) & full  # the diagonal's differences of 0
        up, down = less | ~(zero | more) & full, more & zero  # the row's differences of +1 and -1
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & full, (down << 1) & full
        more, less = down | ~(zero | up) & full, up & zero
    return distance
