"""A row that gives NaN or infinity ends evaluation and prediction before a score is made of it, and is named."""

import math

import pytest
import torch

from autolora_trainer.errors import NonFiniteError
from autolora_trainer.training.finite_rows import _finite_rows
from autolora_trainer.training.trainer import FinalTrainer, check_scores
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import searcher, short_training

POISON = 63  # a token that no row has by itself
BAD = 11  # the row, from 1, that is given it


def poisoned(model):
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = math.nan
    return model


def data(count=16):
    """Rows of which one holds the token."""
    columns = rows(count).to_dict()
    columns["input_ids"][BAD - 1][4] = POISON
    return rows(count).from_dict(columns)


def evaluator(folder, metrics=None, **changes):
    arguments = short_training(folder, per_device_eval_batch_size=4, max_steps=4, **changes)
    model = lora(poisoned(tiny_roberta()))
    return FinalTrainer(model, arguments, train_dataset=rows(16), eval_dataset=data(), compute_metrics=metrics)


def never(prediction):
    pytest.fail("scored")


def test_the_row_is_named_and_nothing_is_scored(tmp_path):
    trainer = evaluator(tmp_path, never)
    with pytest.raises(NonFiniteError, match=f"^evaluation row {BAD} gives NaN or infinity. No score was made of it"):
        trainer.evaluate()
    with pytest.raises(NonFiniteError, match=f"row {BAD} gives"):
        trainer.predict(data().remove_columns("labels"))
    assert trainer.compute_metrics is never
    trainer.compute_metrics = lambda prediction: {"rows": float(len(prediction.predictions))}
    assert trainer.evaluate(rows(16))["eval_rows"] == 16


def test_of_losses_alone_the_batch_is_named(tmp_path):
    with pytest.raises(NonFiniteError, match="^evaluation one of the rows 9 to 12 gives"):
        evaluator(tmp_path, prediction_loss_only=True).evaluate()


def test_evaluation_during_training_ends_it_and_earlier_checkpoints_stay(tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(NonFiniteError, match=f"^evaluation after step 3 of 4: row {BAD} gives"):
        evaluator(tmp_path, never, **changes).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    trainer = searcher(tmp_path / "search")
    trainer.model.get_input_embeddings().weight.data[POISON] = math.nan
    with pytest.raises(NonFiniteError, match="one of the rows 9 to 16 gives"):  # without scores there are only losses
        trainer.evaluate(data())


def test_what_a_model_rules_out_and_padding_count_for_nothing():
    ruled_out = torch.tensor([[0.0, -math.inf], [math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
    assert _finite_rows(ruled_out, 4, None).tolist() == [True, False, False, False]
    tokens = torch.zeros(2, 3, 5)
    tokens[:, 2] = math.nan
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert _finite_rows((tokens, "hidden"), 2, mask).tolist() == [True, False]
    assert _finite_rows(torch.tensor([1.0, math.nan]), 2, None).tolist() == [True, False]
    assert _finite_rows(torch.zeros(3), 2, None) is None and _finite_rows(None, 2, None) is None


def test_a_score_that_is_no_number_is_no_result():
    check_scores({"eval_f1": 0.5, "eval_spearmanr": None, "eval_samples": 3})
    with pytest.raises(NonFiniteError, match="^eval_spearmanr is nan, which is no result"):
        check_scores({"eval_f1": 0.5, "eval_spearmanr": math.nan})
