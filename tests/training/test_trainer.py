"""Does the retrain's Trainer predict and score exactly the rows that it is given?"""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.models import tiny_checkpoint, tiny_roberta


def evaluator(folder, **arguments):
    """A `FinalTrainer` for rows of ids, and its model."""
    settings = {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "report_to": [], **arguments}
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_checkpoint(folder / "tiny")))
    model = tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).eval()
    return FinalTrainer(model=model, args=TrainingArguments(**settings), data_collator=collator)


def rows_of_ids(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [(9, 3, 12, 5, 12, 3, 7, 4)[index % 8] for index in range(count)]
    ids = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in lengths]
    return Dataset.from_list([{"input_ids": row, "labels": index % 2} for index, row in enumerate(ids)])


@pytest.mark.parametrize(
    "arguments", [{"train_sampling_strategy": "group_by_length"}, {"dataloader_drop_last": True}], ids=str
)
def test_predictions_are_those_of_all_rows_in_their_order_whatever_training_takes(tmp_path, arguments):
    rows, trainer = rows_of_ids(35), evaluator(tmp_path, **arguments)  # in batches of 8
    predictions = torch.from_numpy(trainer.predict(rows).predictions)
    with torch.no_grad():
        expected = torch.cat([trainer.model(torch.tensor([row["input_ids"]])).logits for row in rows])
    torch.testing.assert_close(predictions, expected, rtol=1e-4, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor(rows["labels"][:])).item()
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert all(getattr(trainer.args, name) == value for name, value in arguments.items())  # training is as asked for


def test_persistent_workers_serve_the_rows_that_are_asked_for(tmp_path):
    trainer = evaluator(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    first, second = rows_of_ids(8), rows_of_ids(8, seed=1)
    loader = trainer.get_eval_dataloader(first)
    assert trainer.get_eval_dataloader(first) is loader  # as Trainer keeps it between the evaluations of a training
    for rows in (second, first):
        asked = [row["input_ids"] for row in rows]
        assert [row["input_ids"] for row in trainer.get_eval_dataloader(rows).dataset] == asked
