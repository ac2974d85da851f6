"""Learned ranks for sentence-transformers: found on the transformers model inside, by the loss of the training.

    pip install "sentence-transformers>=6"
    python examples/embeddings.py --model MODEL --data pairs.jsonl --output outputs/embeddings

The rows have the columns `anchor` and `positive`: every anchor is to find its own among the positives of its batch.
"""

import argparse
import os

from datasets import load_dataset
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import Trainer, TrainingArguments

from autolora_trainer import RankSearch


def trainer_of(sentences: SentenceTransformer, loss) -> type[Trainer]:
    """A Trainer of the transformers model inside, by a loss of sentence-transformers."""
    encoder = sentences[0]

    class Inside(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            features, labels = SentenceTransformerTrainer.collect_features(self, inputs)
            own, encoder.model = encoder.model, model  # as the Trainer has it: adapted, in its precision, in parallel
            try:
                value = loss(features, labels)
            finally:
                encoder.model = own
            return (value, {}) if return_outputs else value

    return Inside


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a SentenceTransformer or an encoder: Hub id or folder")
    parser.add_argument("--data", required=True, help="JSON lines")
    parser.add_argument("--output", default="outputs/embeddings")
    parser.add_argument("--search_steps", type=int, help="default: until it has settled, 112 at most")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=32)
    options = parser.parse_args(argv)

    data = load_dataset("json", data_files=options.data, split="train").select_columns(["anchor", "positive"])
    sentences = SentenceTransformer(options.model)
    loss = MultipleNegativesRankingLoss(sentences)
    lora = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", lora_alpha=16)
    shared = {"learning_rate": 2e-4, "per_device_train_batch_size": options.batch_size, "report_to": "none"}

    search = RankSearch(
        sentences.transformers_model,
        data,
        lora,
        args=TrainingArguments(f"{options.output}/search", remove_unused_columns=False, **shared),  # texts, not ids
        trainer_class=trainer_of(sentences, loss),
        data_collator=SentenceTransformerDataCollator(sentences.preprocess),
        search_steps=options.search_steps,
    ).run()  # what `find_ranks` does; the model comes back as it was
    print(search.ranks)
    os.makedirs(options.output, exist_ok=True)
    search.ranks.save(f"{options.output}/ranks.json")

    sentences.add_adapter(search.config)
    arguments = SentenceTransformerTrainingArguments(options.output, max_steps=options.steps, **shared)
    SentenceTransformerTrainer(sentences, arguments, train_dataset=data, loss=loss).train()
    sentences.save_pretrained(f"{options.output}/final")
    print(f"adapter in {options.output}/final, which SentenceTransformer(...) loads")


if __name__ == "__main__":
    main()
