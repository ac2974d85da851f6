"""What users get wrong, one row each, and the one line that each mistake gets.

`tests/scripts/test_bad_input.py` runs them.

A row reads: what is wrong, with which script, what is changed in a command that would work, and what the line says,
with … for whatever may stand there: what was given, what is needed, what to type next. All of them end with status 2:
nothing has run yet. The files that a row needs are in it:

    File("rows.csv", "sentence,label\n…")    a file of this content
    Folder({"a.txt": ""})                      a folder with these files
    Model({"config.json": None})               a copy of the script's tiny model, with files changed or (None) gone
    Finished({"cost.json": "{"})               likewise of a finished run's output directory
    Ranks(initial_rank="8")                    a ranks.json that fits the model, but for these fields
"""

from tests.scripts.mistakes.arguments import ARGUMENTS
from tests.scripts.mistakes.cases import Bad
from tests.scripts.mistakes.commands import CLI
from tests.scripts.mistakes.configs import CONFIGS
from tests.scripts.mistakes.files import FILES
from tests.scripts.mistakes.library import LIBRARY
from tests.scripts.mistakes.models import MODELS
from tests.scripts.mistakes.numbers import (
    CHOICES,
    NUMBERS,
    NUMBERS_OF_ADAPTERS,
    NUMBERS_OF_GRIDS,
    NUMBERS_OF_TEXTS,
    of_numbers,
)
from tests.scripts.mistakes.ranks import RANKS
from tests.scripts.mistakes.rows import GLUE, NER, NLG
from tests.scripts.mistakes.runs import EVALUATE, OUTPUT, RESUME

TABLE = [
    *FILES,
    *GLUE,
    *NER,
    *NLG,
    *of_numbers(NUMBERS, "glue"),
    *of_numbers(NUMBERS_OF_ADAPTERS, "glue", method="adapter"),
    *of_numbers(NUMBERS_OF_GRIDS, "glue", method="grid"),
    *of_numbers(NUMBERS_OF_TEXTS, "nlg"),
    *(Bad(f"{name} {value}", "glue", {name: value}, f"{name}…{says}") for name, value, says in CHOICES),
    *ARGUMENTS,
    *CONFIGS,
    *RANKS,
    *MODELS,
    *OUTPUT,
    *RESUME,
    *EVALUATE,
    *CLI,
    *LIBRARY,
]
