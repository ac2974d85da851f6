"""Are GLUE's metrics those of scikit-learn and SciPy, without a file and without a socket?"""

import math
import socket
import warnings

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from autolora_trainer.tasks.metrics import Glue, compute_metrics


def test_metric_of_permuted_labels_is_the_tasks():
    logits = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    labels = np.array([1, 0, 0, 0])
    task_order = compute_metrics("mrpc")(EvalPrediction(predictions=logits, label_ids=labels))
    label2id = {"equivalent": 0, "not_equivalent": 1}
    model_order = compute_metrics("mrpc", label2id)(EvalPrediction(predictions=logits[:, ::-1], label_ids=1 - labels))
    assert model_order == task_order
    assert task_order["f1"] == pytest.approx(2 / 3)


def test_metrics_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
    references = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    scores = Glue("mrpc").compute(predictions=predictions, references=references)
    assert scores == pytest.approx({"accuracy": 0.7, "f1": 2 / 3, "combined_score": (0.7 + 2 / 3) / 2})
    scores = Glue("cola").compute(predictions=predictions, references=references)
    assert scores == pytest.approx({"matthews_correlation": (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)})
    scores = Glue("stsb").compute(predictions=[1.0, 2.0, 3.0], references=[1.0, 3.0, 2.0])
    assert scores == pytest.approx({"pearsonr": 0.5, "spearmanr": 0.5, "combined_score": 0.5})


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_scikit_learn_and_scipy(seed):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(2500, 2)), generator.integers(0, 2, 2500)
    predictions = logits.argmax(-1)
    assert compute_metrics("sst2")(EvalPrediction(logits, labels))["accuracy"] == accuracy_score(labels, predictions)
    assert compute_metrics("qqp")(EvalPrediction(logits, labels))["f1"] == f1_score(labels, predictions)
    matthews = compute_metrics("cola")(EvalPrediction(logits, labels))["matthews_correlation"]
    assert matthews == pytest.approx(matthews_corrcoef(labels, predictions))
    outputs, scores = generator.normal(size=(2500, 1)).astype(np.float32), generator.uniform(0, 5, 2500)
    computed = compute_metrics("stsb")(EvalPrediction(outputs, scores))
    assert computed["pearsonr"] == pytest.approx(pearsonr(outputs[:, 0], scores).statistic, abs=1e-6)
    assert computed["spearmanr"] == pytest.approx(spearmanr(outputs[:, 0], scores).statistic, abs=1e-12)


@pytest.mark.parametrize("rows", [1, 4])
def test_constant_predictions_score_zero_without_a_warning(rows):
    labels = np.arange(rows) % 2
    constant = np.tile([1.0, 0.0], (rows, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_metrics("cola")(EvalPrediction(constant, labels)) == {"matthews_correlation": 0.0}
        assert compute_metrics("mrpc")(EvalPrediction(constant, labels))["f1"] == 0.0
        computed = compute_metrics("stsb")(EvalPrediction(np.ones((rows, 1)), labels.astype(float)))
    assert computed == {"pearsonr": 0.0, "spearmanr": 0.0, "combined_score": 0.0}


@pytest.mark.parametrize("name", ["mrpc", "cola", "stsb"])
def test_metrics_open_no_socket_and_leave_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("a metric opened a socket"))
    for _ in range(2):
        Glue(name).compute(predictions=[0, 1, 1], references=[0, 1, 0])
    assert list(tmp_path.iterdir()) == []


def test_metric_of_several_processes_goes_through_files(tmp_path):
    metric = Glue("sst2", num_process=2, process_id=1, cache_dir=str(tmp_path))
    assert not metric.keep_in_memory and list(tmp_path.rglob("*"))
