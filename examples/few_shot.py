"""Learned ranks for SetFit: the search as a mixin, on the transformers model inside, by SetFit's pairs and their loss.

    pip install setfit "sentence-transformers>=6"
    python examples/few_shot.py --model MODEL --data texts.jsonl --output outputs/few_shot

The rows have the columns `text` and `label`.
"""

import argparse
import os

from datasets import Dataset, load_dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from setfit import SetFitModel, Trainer, TrainingArguments
from setfit.sampler import ContrastiveDataset

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments


class PairSearch(AutoLoraTrainer):
    """The search by the loss of SetFit's first phase; `body` is the SentenceTransformer around its model."""

    body = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        features, labels = SentenceTransformerTrainer.collect_features(self, inputs)
        encoder = self.body[0]
        own, encoder.model = encoder.model, model  # as the Trainer has it: adapted, in its precision, in parallel
        try:
            loss = CosineSimilarityLoss(self.body)(features, labels)
        finally:
            encoder.model = own
        return (loss, {}) if return_outputs else loss


def pairs_of(rows, most: int) -> Dataset:
    """As SetFit makes them: like and unlike texts."""
    pairs = ContrastiveDataset(list(rows["text"]), list(rows["label"]), multilabel=False, max_pairs=most)
    return Dataset.from_list(list(pairs))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a SentenceTransformer or an encoder: Hub id or folder")
    parser.add_argument("--data", required=True, help="JSON lines")
    parser.add_argument("--output", default="outputs/few_shot")
    parser.add_argument("--search_steps", type=int, default=80)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args(argv)

    data = load_dataset("json", data_files=options.data, split="train")
    lora = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", lora_alpha=16)
    most = options.search_steps * options.batch_size
    halves = data.train_test_split(0.3, seed=0)  # texts, before they are paired: pairs of one text know each other

    body = SetFitModel.from_pretrained(options.model).model_body
    search = type("Search", (PairSearch,), {"body": body})(
        body.transformers_model,
        AutoLoraTrainingArguments(
            f"{options.output}/search",
            max_steps=options.search_steps,
            learning_rate=2e-4,
            per_device_train_batch_size=options.batch_size,
            remove_unused_columns=False,  # texts, not ids
            report_to="none",
        ),
        train_dataset=pairs_of(halves["train"], most),
        val_dataset=pairs_of(halves["test"], most),
        data_collator=SentenceTransformerDataCollator(body.preprocess),
        peft_config=lora,
    )
    search.train()
    print(search.learned_ranks)
    search.learned_ranks.save(f"{options.output}/ranks.json")

    model = SetFitModel.from_pretrained(options.model)
    model.model_body.add_adapter(search.learned_ranks.to_lora_config(lora))
    arguments = TrainingArguments(
        options.output,
        max_steps=options.steps,
        batch_size=options.batch_size,
        body_learning_rate=2e-4,
        report_to="none",
    )
    Trainer(model, arguments, train_dataset=data).train()
    model.save_pretrained(f"{options.output}/final")
    os.remove(f"{options.output}/final/config.json")  # beside an adapter SetFit 1.2 writes what it cannot read again
    print(f"adapter and head in {options.output}/final, which SetFitModel.from_pretrained loads")


if __name__ == "__main__":
    main()
