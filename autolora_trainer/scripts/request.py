"""What was asked for: a script's arguments, settled. Nothing after this changes what was typed."""

import copy
import logging
import os
from dataclasses import dataclass, field, fields

from autolora_trainer.clean import clean, say, without_secrets
from autolora_trainer.methods.base import Method
from autolora_trainer.methods.registry import METHODS
from autolora_trainer.values import check_choice

logger = logging.getLogger("autolora_trainer")
PLACES = ("output_dir", "logging_dir", "resume_from_checkpoint", "deepspeed")  # of a training: they stay as typed

# the final training's arguments for a trial: the same training, and no files of its own
NO_FILES = {
    "do_train": True,
    "do_eval": False,
    "do_predict": False,
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "resume_from_checkpoint": None,
    "report_to": [],
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Request:
    """One run of a script, as it was asked for.

    Attributes:
        task: `TaskKind`, what is particular to the script.
        model, data, settings, training: the four groups of arguments.
        method: of `--method`.
        push, hub_token: whether the result is pushed, with which token. `training` has neither: Trainer would push at
            every save, and write the token into training_args.bin.
        save_total_limit: of checkpoints; see `CheckpointManifest`.
    """

    task: object
    model: object
    data: object
    settings: object
    training: object
    method: Method
    push: bool = False
    hub_token: str | None = field(default=None, repr=False)
    save_total_limit: int | None = None

    @property
    def output_dir(self) -> str:
        return self.training.output_dir

    @property
    def hub_id(self) -> str | None:
        """The base model's Hub id; None for a folder, whose name means nothing elsewhere."""
        local = os.path.isdir(self.model.model_name_or_path)
        return self.model.base_model_id or (None if local else self.model.model_name_or_path)

    @property
    def inputs(self) -> dict[str, str | None]:
        """{argument: path, or Hub id} of what decides, beside the settings, what is learned."""
        read = {"train_file": self.data.train_file, "ranks": self.settings.ranks}
        return {**read, **{name: getattr(self.model, name) for name in ("model_name_or_path", "tokenizer_name")}}

    @property
    def is_main_process(self) -> bool:
        return self.training.process_index == 0

    def say(self, text: str) -> None:
        if self.is_main_process:
            say(text)

    def warn(self, text: str) -> None:
        if self.is_main_process:
            logger.warning(clean(text))


def settle(task, model, data, settings, training) -> Request:
    """Parsed arguments as a request: the task by its name, what to do where nothing was said, the output folder.

    What is given stays as it is.

    Raises:
        ValueError: for a task that the script has not got.
    """
    data, training = copy.copy(data), copy.copy(training)
    data.task_name = task_name(task, data)
    training.do_train, training.do_eval, training.do_predict = training.asked
    if not any(training.asked):
        training.do_train = training.do_eval = True
        training.do_predict = data.test_file is not None
    training.do_eval |= training.do_train and training.eval_strategy != "no"  # as TrainingArguments do
    if training.chose_output_dir:
        method = (settings.peft_type or settings.method).lower()
        training.output_dir = os.path.join("outputs", f"{data.task_name}-{method}")
    push, training.push_to_hub = training.push_to_hub, False
    token, training.hub_token = training.hub_token, None
    for name in (own.name for own in fields(training)):  # they go to training_args.bin and to trackers
        value = getattr(training, name)
        if isinstance(value, str) and name not in PLACES and (public := without_secrets(value)) != value:
            setattr(training, name, public)
    method = METHODS[settings.method]
    return Request(task, model, data, settings, training, method, push, token, training.save_total_limit)


def task_name(task, data) -> str:
    """The task's own name, of `--task_name`, of an alias, or for a user's own files."""
    name = data.task_name
    if name is None and any((data.train_file, data.validation_file, data.test_file)):
        name = task.own_task
    if name is None:
        raise ValueError(f"--task_name is missing. Give one of {', '.join(task.task_names)}.")
    name = task.task_aliases.get(name.lower(), name.lower())
    check_choice("task_name", name, task.task_names)
    return name
