"""The help of a script: its arguments in groups, this package's first, Trainer's hundred behind `--help_all`."""

import argparse
import inspect
import os
import re
import sys

from transformers import HfArgumentParser

from autolora_trainer.errors import UsageError
from autolora_trainer.methods.adapter import AdapterArguments
from autolora_trainer.methods.autolora import RetrainArguments
from autolora_trainer.methods.grid import GridArguments
from autolora_trainer.methods.lora import LoraArguments
from autolora_trainer.methods.peft_types import PeftTypeArguments
from autolora_trainer.scripts.arguments import (
    ChosenArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
    ScriptTrainingArguments,
)
from autolora_trainer.search.arguments import SearchArguments
from autolora_trainer.training.finite import NonFiniteArguments
from autolora_trainer.usage import Helpful, first_of_each

ROWS, MODEL, METHOD, SIZE, LORA = "rows", "model", "method", "how large", "LoRA"
SEARCH, RETRAIN, RIVALS, TRAINING = "the search", "the retrain", "other methods", "the training (of every method)"
RUN, MORE, TRAINERS = "the run and its output folder", "more", "Trainer's other arguments (transformers)"
# {title: names} of a group's first arguments, and of those that stand elsewhere than the rest of their dataclass
FIRST = {
    METHOD: "method preset",
    SIZE: "size tolerance max_lora_rank min_rank rank_budget",
    SEARCH: "search_learning_rate search_epochs search_max_steps search_look_steps initial_rank val_fraction",
    TRAINING: """
        learning_rate num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size
        gradient_accumulation_steps warmup_steps weight_decay bf16 seed
    """,
    RUN: """
        output_dir overwrite resume_from_checkpoint do_train do_eval do_predict eval_strategy save_strategy save_steps
        save_total_limit load_best_model_at_end logging_steps report_to disable_tqdm use_cpu push_to_hub hub_model_id
        hub_token
    """,
    MORE: "config help help_all",
}
REST = (  # of a dataclass's own arguments; the first that has a name says where it stands
    (DataArguments, ROWS),
    (ModelArguments, MODEL),
    (ChosenArguments, METHOD),
    (LoraArguments, LORA),
    (SearchArguments, SEARCH),
    (RetrainArguments, RETRAIN),
    (PeftTypeArguments, RIVALS),
    (AdapterArguments, RIVALS),
    (GridArguments, RIVALS),
    (MethodArguments, RUN),
    (NonFiniteArguments, TRAINING),
    (ScriptTrainingArguments, TRAINING),
)
IN_ORDER = (ROWS, MODEL, METHOD, SIZE, LORA, SEARCH, RETRAIN, RIVALS, TRAINING, RUN, TRAINERS, MORE)


class ScriptParser(Helpful, HfArgumentParser):
    """Whose complaints are one line, and whose help has the groups of this file.

    Args:
        dataclasses: of the arguments.
        about: the docstring of the script: what it does in the first paragraph, examples in indented lines.
        own_group: the title of what a script's `DataArguments` have of their own.
    """

    def __init__(self, dataclasses, about: str | None = None, own_group: str = ROWS):
        self.own_group, self.everything = own_group, False
        sentence, self.examples = described(about)
        program = self.examples[0].partition(" --")[0] if self.examples else os.path.basename(sys.argv[0])
        super().__init__(dataclasses, allow_abbrev=False, prog=program, description=sentence, add_help=False)
        self.add_argument("--config", help="A YAML file with any of these arguments; what is typed wins over it.")
        self.add_argument("-h", "--help", action="help", help="This text.")
        self.add_argument("--help_all", action=_Everything, help="The same with all arguments of Trainer.")

    def error(self, message):
        raise UsageError(f"{message}; --help lists the arguments")

    def groups(self) -> dict[str, list[argparse.Action]]:
        known = {action.dest: action for action in first_of_each(self._actions)}
        titles = {name: self._title_of(name) for name in known}
        order = [name for names in FIRST.values() for name in names.split() if name in known]
        found = {title: [] for title in self._titles()}
        for name in dict.fromkeys([*order, *known]):
            found[titles[name]].append(known[name])
        if not self.everything:
            del found[TRAINERS]
        return found

    def _titles(self) -> list[str]:
        titles = list(IN_ORDER)
        return titles if self.own_group in titles else [ROWS, self.own_group, *titles[1:]]

    def _title_of(self, name: str) -> str:
        """Of the one group that an argument stands in."""
        if (title := next((title for title, names in FIRST.items() if name in names.split()), None)) is not None:
            return title
        for kind, title in REST:
            if name in inspect.get_annotations(kind):
                return title
        return self.own_group if self._is_own(name) else TRAINERS

    def _is_own(self, name: str) -> bool:
        """Whether a script's own rows have an argument of this name."""
        return any(
            issubclass(kind, DataArguments) and name in kind.__dataclass_fields__ for kind in self.dataclass_types
        )


class _Everything(argparse.Action):
    """Shows the help with the arguments of Trainer, and ends the program as `--help` does."""

    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        parser.everything = True
        parser.print_help()
        parser.exit()


def described(about: str | None) -> tuple[str | None, tuple[str, ...]]:
    """What a script does and its examples, of its docstring; after a `pip install` in the words of `autolora run`.

    Example:
        >>> described("Learn.\\n\\n    python run_glue.py --seed 1\\n\\nMore.")
        ('Learn.', ('autolora run glue --seed 1',))
    """
    first, *others = (about or "").strip().split("\n\n")
    examples = [line.strip() for text in others for line in text.splitlines() if line.startswith("    ")]
    if not os.path.basename(sys.argv[0]).startswith("run_"):
        examples = [re.sub(r"\bpython run_(\w+)\.py", r"autolora run \1", line) for line in examples]
        examples = [re.sub(r"\blaunch run_(\w+)\.py", r"launch -m run_\1", line) for line in examples]
    return " ".join(first.split()) or None, tuple(examples)
