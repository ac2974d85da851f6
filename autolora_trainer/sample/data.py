"""The built-in task: does the main clause report an outcome that is good for its object, or a bad one?

    The committee rejected the plan.                                      unfavourable
    The committee did not fail to reject the plan.                        unfavourable
    The union denied that the committee had turned down the plan.         favourable
    Although the bank praised the nurse, the plan was not endorsed.       unfavourable

A label is a product of signs: the verb's (praise or condemn, in synonyms), whether the event happened (`managed to`,
`failed to`, not), and whether a report confirms or denies it. Passives, clefts, times, places and a clause about
something else, with its own verb and its own negation, change the words and not the label. Counting words does not
solve it.
"""

import random

from datasets import Dataset, DatasetDict

from autolora_trainer.sample import lexicon

SPLITS = {"train": (4000, 11), "validation": (1000, 12), "test": (1000, 13)}  # rows, seed
TEXT_SEED_OFFSET = 1_000_000  # text for pre-training never shares a seed with the task


class _Event:
    """One thing that somebody did, or did not do, to something."""

    def __init__(self, generator: random.Random, favourable: bool | None = None, signs: int | None = None):
        """Draw an event; `favourable` fixes its outcome, `signs` how many of the two further signs are expressed."""
        self.generator = generator
        choose = generator.choice
        good, bad, objects = choose(lexicon.VERBS)
        count = generator.choices((0, 1, 2), (5, 4, 1))[0] if signs is None else signs
        expressed = generator.sample(("modal", "report"), count)
        self.happened = generator.random() < 0.5 if "modal" in expressed else True
        self.confirmed = generator.random() < 0.5 if "report" in expressed else True
        favourable = choose((True, False)) if favourable is None else favourable
        self.favourable = favourable
        self.synonyms = (good, bad)
        self.verbs = good if favourable == (self.happened == self.confirmed) else bad
        self.verb = choose(self.verbs)
        modals = lexicon.HAPPENED if self.happened else lexicon.DID_NOT_HAPPEN
        self.modal = choose(modals) if "modal" in expressed else ""
        reports = lexicon.CONFIRMS if self.confirmed else lexicon.DENIES
        self.report = choose(reports) if "report" in expressed else ""
        self.agent = choose([choose(lexicon.ORGANISATIONS), choose(lexicon.JOBS), choose(lexicon.NAMES)])
        people = [person for person in lexicon.JOBS + lexicon.NAMES if person != self.agent]
        self.object = f"the {choose(objects)}" if objects else choose(people)
        reporters = [one for one in lexicon.ORGANISATIONS + lexicon.NAMES if one not in (self.agent, self.object)]
        self.reporter = choose(reporters)
        self.adjunct = choose(["", "", "", f" in {choose(lexicon.CITIES)}", f" {choose(lexicon.TIMES)}"])

    @property
    def phenomenon(self) -> str:
        return "+".join(["verb", *(["modal"] if self.modal else []), *(["report"] if self.report else [])])

    def clause(self) -> str:
        """The event as a finite clause."""
        base, past, participle = self.verb
        form = self.generator.random()
        if self.modal in ("", "did not") and form < 0.35:  # passive
            negation = " not" if self.modal else ""
            agent = f" by {self.agent}" if self.generator.random() < 0.6 else ""
            text = f"{self.object} was{negation} {participle}{agent}"
        else:
            action = f"{self.modal} {base}" if self.modal else past
            subject = f"it was {self.agent} who" if form > 0.85 else self.agent  # cleft, or plain
            text = f"{subject} {action} {self.object}"
        return text + self.adjunct

    def statement(self) -> str:
        """The event with its report, if it has one."""
        return f"{self.reporter} {self.report} {self.clause()}" if self.report else self.clause()

    def outcome(self) -> str:
        """What it comes to, in other words: for pre-training only."""
        *_, participle = self.generator.choice(self.verbs)
        negation = "" if self.happened == self.confirmed else " not"
        return f"{self.object} was{negation} {participle}"


def _sentence(generator: random.Random, event: _Event) -> str:
    text = event.statement()
    if generator.random() < 0.3:  # a clause about something else, with a sign of its own
        other = _Event(generator, signs=generator.choice((0, 1)))
        joined = f"{generator.choice(lexicon.SUBORDINATORS)} {other.statement()}"
        text = f"{joined}, {text}" if generator.random() < 0.5 else f"{text}, {joined}"
    text = text[0].upper() + text[1:] + "."
    filler = generator.random()
    if filler < 0.12:
        return f"{text} {generator.choice(lexicon.FILLERS)}"
    return f"{generator.choice(lexicon.FILLERS)} {text}" if filler > 0.88 else text


def generate(num_rows: int, seed: int) -> list[dict]:
    """Labelled rows, half of them favourable, no two alike.

    Args:
        seed: the same seed gives the same rows on every machine.
    Returns:
        Rows with `sentence`, `label` (1: favourable, 0: unfavourable), `idx` and `phenomenon` (which signs are
        expressed).
    Example:
        >>> [row["label"] for row in generate(4, seed=0)]
        [0, 1, 0, 1]
    """
    generator = random.Random(seed)
    rows, seen = [], set()
    while len(rows) < num_rows:
        event = _Event(generator, favourable=len(rows) % 2 == 1)
        sentence = _sentence(generator, event)
        if sentence not in seen:
            seen.add(sentence)
            row = {"sentence": sentence, "label": int(event.favourable), "idx": len(rows)}
            rows.append({**row, "phenomenon": event.phenomenon})
    return rows


def generate_text(num_lines: int, seed: int) -> list[str]:
    """Unlabelled lines for pre-training: sentences as in the task, half of them followed by what they come to
    (`The plan was not rejected.`), so that a masked language model has a use for the signs."""
    generator = random.Random(TEXT_SEED_OFFSET + seed)
    lines = []
    for _ in range(num_lines):
        event = _Event(generator)
        line = _sentence(generator, event)
        if generator.random() < 0.5:
            outcome = event.outcome()
            line += f" {outcome[0].upper()}{outcome[1:]}."
        lines.append(line)
    return lines


def load_sample() -> DatasetDict:
    """The task's splits: 4000 training, 1000 validation and 1000 test rows; no sentence occurs twice."""
    splits, seen = {}, set()
    for name, (count, seed) in SPLITS.items():
        rows = [row for row in generate(count + count // 4, seed) if row["sentence"] not in seen]
        even = [[row for row in rows if row["label"] == label][: count // 2] for label in (0, 1)]
        rows = [row for pair in zip(*even) for row in pair]
        seen.update(row["sentence"] for row in rows)
        splits[name] = Dataset.from_list([{**row, "idx": index} for index, row in enumerate(rows)])
    return DatasetDict(splits)
