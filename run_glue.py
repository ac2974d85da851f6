"""Fine-tune a model on GLUE (or on your own rows in the shape of a GLUE task) with learned LoRA ranks.

    python run_glue.py --method autolora --task_name mrpc
    python run_glue.py --task_name sst2 --train_file train.jsonl --validation_file dev.csv
    accelerate launch run_glue.py --task_name qnli --bf16

Search, ranks, retrain, evaluation and files are `autolora_trainer.scripts.pipeline`; here stands what is particular to
sequence classification. `--help` lists the arguments in groups, `--help_all` Trainer's as well; what a run writes is
described in docs/reference/files.md.
"""

import sys

from autolora_trainer.errors import guard_imports, run_guarded

if __name__ == "__main__":
    guard_imports("run_glue.py")  # the following take seconds, and may fail

import numpy as np
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from autolora_trainer.files import replacing
from autolora_trainer.sample import encoder_path, load_sample
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.job import Job
from autolora_trainer.scripts.pipeline import execute
from autolora_trainer.scripts.request import Request
from autolora_trainer.scripts.task_kind import TaskKind
from autolora_trainer.tasks import glue
from autolora_trainer.tasks.metrics import all_rows, compute_metrics


class Glue(TaskKind):
    """Sequence classification and regression as in GLUE (§5.2)."""

    task_type = "SEQ_CLS"
    task_names = list(glue.GLUE_TASKS)
    auto_class = AutoModelForSequenceClassification
    pads_either_side = True

    def load_rows(self, request: Request):
        data, model = request.data, request.model
        self.task = glue.GLUE_TASKS[data.task_name]
        files = {f"{split}_file": getattr(data, f"{split}_file") for split in ("train", "validation", "test")}
        if data.task_name == "sample" and not any(files.values()):
            return load_sample()
        return glue.load_task(self.task, **files, cache_dir=model.cache_dir, token=model.token)

    def check_rows(self, dataset, split: str, path: str | None) -> None:
        glue.check_split(dataset, self.task, split, path)

    def tokenize(self, request: Request, dataset, split: str):
        length, pad = request.data.max_seq_length, request.data.pad_to_max_length
        return glue.tokenize(dataset, self.tokenizer, self.task, length, pad, label2id=self.label2id)

    def links(self, dataset, inputs: list) -> list[tuple]:
        """The texts of a pair, too: QQP's questions and MNLI's premises stand in several rows."""
        return list(zip(inputs, *(dataset[column][:] for column in self.task.text_columns)))

    def make_collator(self, request: Request):
        return DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=self.padding_multiple(request))

    def load_config(self, request: Request):
        """The model's config with this task's labels, in the order that a base model trained on the task has them."""
        config = super().load_config(request)
        self.label2id = None
        if self.task.is_regression:
            config.num_labels, config.problem_type = 1, "regression"
        else:
            self.label2id, id2label = glue.align_labels(config, self.task)
            config.num_labels = self.task.num_labels
            config.label2id, config.id2label = self.label2id, id2label
            config.problem_type = "single_label_classification"  # a base model may say another
        return config

    def metric_names(self) -> tuple[str, ...]:
        several = ("combined_score",) if len(self.task.metrics) > 1 else ()
        return (*self.task.metrics, *several)

    def compute_metrics(self):
        return compute_metrics(self.task, self.label2id)

    def predict(self, job: Job, trainer) -> dict[str, float]:
        """Write predict_results_<task>.txt as transformers' run_glue does: index and label name, or score; of MNLI's
        mismatched rows predict_results_mnli-mm.txt."""
        for suffix, split in (("", "test"), ("-mm", "test_mm")):
            if split in job.rows.datasets:
                self._write_predictions(job, trainer, split, f"{job.request.data.task_name}{suffix}")
        return {}

    def _write_predictions(self, job: Job, trainer, split: str, name: str) -> None:
        dataset = job.rows.datasets[split].remove_columns("labels")  # unlabelled rows carry -1
        predictions = all_rows(trainer.predict(dataset, metric_key_prefix="predict").predictions)
        if trainer.is_world_process_zero():
            path = job.folder.file(f"predict_results_{name}.txt")
            with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.write("index\tprediction\n")
                for index, scores in enumerate(predictions):
                    if self.task.is_regression:
                        file.write(f"{index}\t{float(np.squeeze(scores)):.3f}\n")
                    else:
                        file.write(f"{index}\t{trainer.model.config.id2label[int(scores.argmax())]}\n")

    def card_details(self, request: Request) -> dict:
        name = request.data.task_name
        shown = "the built-in sample" if name == "sample" else f"GLUE {name.upper()}"
        return self.data_details(request, shown, self.task.hub_id)


# The built-in sample: its own small encoder, and rates for 2.5 million parameters instead of 125.
SAMPLE_DEFAULTS = {
    "model_name_or_path": encoder_path(),
    "attn_implementation": "eager",  # faster than sdpa at this size on a CPU
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "per_device_train_batch_size": 32,
    "num_train_epochs": 2,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "search_max_steps": 200,  # after 112 steps held-out rows do not yet see that this small encoder has learned
}


def main(argv: list[str] | None = None) -> dict:
    return execute(Glue(), *parse_arguments(argv, {"sample": SAMPLE_DEFAULTS}, about=__doc__))


if __name__ == "__main__":
    sys.exit(run_guarded(main, "run_glue.py"))
