"""Fine-tune a model to find named entities with learned LoRA ranks: JNLPBA (BioNLP-2004, §5.4), or your own rows.

    python run_ner.py --method autolora --task_name jnlpba
    python run_ner.py --train_file train.iob2 --validation_file dev.iob2

Rows are `tokens` and `tags` in JSON lines, or IOB2 files. A sentence longer than `--max_seq_length` is read in
windows, and every word is scored once. Search, ranks, retrain, evaluation and files are
`autolora_trainer.scripts.pipeline`; here stands what is particular to token classification. `--help` lists the
arguments in groups, `--help_all` Trainer's as well.
"""

import os
import sys
from dataclasses import dataclass

from autolora_trainer.errors import guard_imports, run_guarded

if __name__ == "__main__":
    guard_imports("run_ner.py")  # the following take seconds, and may fail

from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from autolora_trainer.files import write_atomically, write_json
from autolora_trainer.scripts.arguments import DataArguments
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.job import Job
from autolora_trainer.scripts.pipeline import execute
from autolora_trainer.scripts.request import Request
from autolora_trainer.scripts.task_kind import TaskKind
from autolora_trainer.tasks import ner, ner_windows
from autolora_trainer.tasks.glue import Task, align_labels
from autolora_trainer.values import setting


@dataclass
class NerDataArguments(DataArguments):
    """Which rows to train and evaluate on."""

    train_file: str | None = setting(
        None, "Training rows: tokens and tags as JSON lines or JSON, or IOB2 (.iob2, .conll, .tsv)."
    )
    max_seq_length: int = setting(128, "A longer sentence is read in windows of this many tokens, which overlap.")


class Ner(TaskKind):
    """Token classification as in §5.4.

    Attributes:
        label_names: by id, as in the data; `label2id` and `id2label` are the model's.
        windows: {split: `ner_windows.Windows`}, the rows of `Rows.datasets` with the way back to sentences.
    """

    task_type = "TOKEN_CLS"
    task_names = list(ner.TASKS)
    task_aliases = {"bionlp": "jnlpba"}
    own_task = "ner"
    auto_class = AutoModelForTokenClassification

    def load_rows(self, request: Request):
        ner_windows.require_seqeval()
        self.windows = {}
        known = None
        if request.data.task_name == "ner" and not request.training.do_train:
            known = ner.read_labels(request.output_dir)  # those of the adapter
        files = {f"{split}_file": getattr(request.data, f"{split}_file") for split in ("train", "validation", "test")}
        rows, self.label_names = ner.load_task(
            request.data.task_name,
            **files,
            label_names=known,
            cache_dir=request.model.cache_dir,
            token=request.model.token,
        )
        return rows

    def check_rows(self, dataset, split: str, path: str | None) -> None:
        ner.check_split(dataset, split, path)

    def load_tokenizer(self, request: Request, **arguments):
        """A fast tokenizer: only that one tells which word a token belongs to."""
        tokenizer = super().load_tokenizer(request, **arguments)
        if not tokenizer.is_fast:
            raise ValueError(
                f"run_ner needs a fast tokenizer, which tells the word of a token, and {type(tokenizer).__name__} is "
                "none. Give another model, or another tokenizer with --tokenizer_name."
            )
        if ner_windows.lacks_prefix_space(tokenizer):
            tokenizer = super().load_tokenizer(request, **arguments, add_prefix_space=True)
            ner_windows.add_prefix_space(tokenizer)
        # places of words are counted from the left, and of a word that is cut the first token has the label
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return tokenizer

    def load_config(self, request: Request):
        """The model's config with the labels, in the order that a base model trained on them has them."""
        config = super().load_config(request)
        positions = getattr(config, "max_position_embeddings", None)
        self.length = ner_windows.window_length(self.tokenizer, request.data.max_seq_length, positions)
        self.label2id, self.id2label = align_labels(
            config, Task(request.data.task_name, ("tokens",), self.label_names)
        )
        config.num_labels = len(self.label_names)
        config.label2id, config.id2label = self.label2id, self.id2label
        return config

    def tokenize(self, request: Request, dataset, split: str):
        self.windows[split] = ner_windows.tokenize(dataset, self.tokenizer, self.label2id, self.length)
        return self.windows[split].rows

    def links(self, dataset, inputs: list) -> list[tuple]:
        """The sentence of every window: others may be of the same words, and a window of it may be one of theirs."""
        words = dataset["tokens"][:]
        return [(tuple(words[sentence]), own) for (sentence, _), own in zip(self.windows["train"].places, inputs)]

    def make_collator(self, request: Request):
        if request.data.pad_to_max_length:
            return DataCollatorForTokenClassification(self.tokenizer, padding="max_length", max_length=self.length)
        return DataCollatorForTokenClassification(self.tokenizer, pad_to_multiple_of=self.padding_multiple(request))

    def metric_names(self) -> tuple[str, ...]:
        kinds = sorted({name[2:] for name in self.label_names if name != ner.OUTSIDE})
        ratios = ("precision", "recall", "f1")
        return (*ratios, "accuracy", *(f"{ratio}_{kind}" for kind in kinds for ratio in ratios))

    def compute_metrics(self):
        windows = self.windows.get("validation")
        return ner_windows.compute_metrics(windows, self.id2label) if windows else None

    def predict(self, job: Job, trainer) -> dict[str, float]:
        """Write predict_results_<task>.txt as transformers' run_ner does: the tags of a sentence in each line."""
        windows = self.windows["test"]
        dataset = windows.rows.remove_columns("labels") if windows.tags else windows.rows
        # without labels Trainer does not score them: its compute_metrics knows the validation rows
        predictions = trainer.predict(dataset, metric_key_prefix="predict").predictions
        tags = windows.join(ner_windows.rows_of(predictions), self.id2label)
        if trainer.is_world_process_zero():
            path = job.folder.file(f"predict_results_{job.request.data.task_name}.txt")
            write_atomically(path, "".join(" ".join(sentence) + "\n" for sentence in tags))
        return ner_windows.entity_scores(windows.tags, tags) if windows.tags else {}

    def save(self, folder: str) -> None:
        """Write labels.json: an adapter does not name the labels of its head, and `--do_eval` alone needs them."""
        names = [self.id2label[index] for index in range(len(self.id2label))]
        write_json(os.path.join(folder, ner.LABELS_FILE), {"labels": names}, indent=4)

    def card_details(self, request: Request) -> dict:
        if request.data.task_name == "jnlpba":
            return self.data_details(request, "JNLPBA (BioNLP-2004)", ner.JNLPBA_HUB_ID)
        return self.data_details(request, "rows of named entities")


def main(argv: list[str] | None = None) -> dict:
    batch = {"per_device_train_batch_size": 32}  # §5.4
    arguments = parse_arguments(argv, data_arguments=NerDataArguments, preset_changes=batch, about=__doc__, **batch)
    return execute(Ner(), *arguments)


if __name__ == "__main__":
    sys.exit(run_guarded(main, "run_ner.py"))
