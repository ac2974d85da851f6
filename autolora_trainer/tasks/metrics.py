"""GLUE's metrics as `evaluate` metrics that live in this package: no network, no script from the hub, no file."""

import os

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from autolora_trainer.tasks.glue import get_task


def _correlation(function, references, predictions) -> float:
    # One value for every row is no correlation: 0, as Matthews' coefficient has it; scipy would warn and give NaN.
    if np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return function(references, predictions).statistic


def _matthews(references, predictions) -> float:
    # 0 by definition where only one label occurs; scikit-learn gives 0 too, but with a warning about another function.
    if np.ptp(np.concatenate([references, predictions])) == 0:
        return 0.0
    return matthews_corrcoef(references, predictions)


METRICS = {
    "accuracy": accuracy_score,
    "f1": lambda references, predictions: f1_score(references, predictions, zero_division=0.0),
    "matthews_correlation": _matthews,
    "pearsonr": lambda references, predictions: _correlation(pearsonr, references, predictions),
    "spearmanr": lambda references, predictions: _correlation(spearmanr, references, predictions),
}


class Glue(evaluate.Metric):
    """The metrics of one GLUE task, and `combined_score`, their mean where there are several (as in run_glue).

    Args:
        keep_in_memory: collect predictions in memory (the default here) or, for several processes, in files.
    Example:
        >>> scores = Glue("mrpc").compute(predictions=[1, 1, 0, 0], references=[1, 0, 0, 0])
        >>> {name: round(score, 3) for name, score in scores.items()}
        {'accuracy': 0.75, 'f1': 0.667, 'combined_score': 0.708}
    """

    def __init__(self, config_name, keep_in_memory: bool | None = None, num_process: int = 1, **kwargs):
        self.task = get_task(config_name)
        keep_in_memory = num_process == 1 if keep_in_memory is None else keep_in_memory
        super().__init__(self.task.name, keep_in_memory=keep_in_memory, num_process=num_process, **kwargs)

    def _info(self):
        value = datasets.Value("float64" if self.task.is_regression else "int64")
        return evaluate.MetricInfo(
            description=f"GLUE ({self.task.name}): {', '.join(self.task.metrics)}.",
            citation="",
            inputs_description="predictions and references: label ids, or scores for stsb.",
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _build_data_dir(self):
        # evaluate 0.4.6 makes a folder in its cache even for a metric in memory, and so fails where that is read-only.
        if self.keep_in_memory:
            return os.path.join(self._data_dir_root, self.name, self.config_name)
        return super()._build_data_dir()

    def _compute(self, predictions, references):
        scores = {name: float(METRICS[name](references, predictions)) for name in self.task.metrics}
        if len(scores) > 1:
            scores["combined_score"] = float(np.mean(list(scores.values())))
        return scores


def all_rows(outputs) -> np.ndarray:
    """The outputs or labels of all rows, (rows, …), of what `Trainer` gives: an array, a tuple whose first it is, or a
    list of these, one a batch (`eval_do_concat_batches=False`).

    Example:
        >>> all_rows([(np.zeros((2, 3)), "hidden"), (np.ones((1, 3)), "hidden")]).shape
        (3, 3)
    """
    if isinstance(outputs, list):
        return np.concatenate([all_rows(batch) for batch in outputs])
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)


def compute_metrics(task, label2id: dict | None = None):
    """Make the `compute_metrics` of a `transformers.Trainer` for a task.

    Args:
        label2id: the model's ids by label name, from `align_labels`, if they differ from the task's: F1 depends on
            which label is the positive one.
    Returns:
        A function of an `EvalPrediction` that gives a dict of floats. It takes the largest logit, or the one number of
        a regression; see `all_rows`.
    Example:
        >>> from transformers import EvalPrediction
        >>> logits = np.array([[0.1, 0.9], [0.8, 0.2]])
        >>> compute_metrics("sst2")(EvalPrediction(predictions=logits, label_ids=np.array([1, 1])))
        {'accuracy': 0.5}
    """
    task = get_task(task)
    metric = Glue(task.name)
    to_task = None
    if label2id is not None and not task.is_regression:
        to_task = np.argsort([label2id[name] for name in task.label_names])  # the model's id -> the task's id

    def compute(prediction) -> dict[str, float]:
        outputs, references = all_rows(prediction.predictions), all_rows(prediction.label_ids).reshape(-1)
        if task.is_regression:
            predictions = np.asarray(outputs, dtype=np.float64).reshape(-1)
        else:
            predictions = np.argmax(outputs, axis=-1)
            if to_task is not None:
                predictions, references = to_task[predictions], to_task[references]
        return metric.compute(predictions=predictions, references=references)

    return compute
