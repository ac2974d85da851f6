"""The examples for sentence-transformers and SetFit, where these are installed: `pip install setfit
"sentence-transformers>=6"`. What they stand on is tested without them in `tests/training/test_own_loss.py`.
"""

import random

import pytest

from autolora_trainer import LearnedRanks
from tests.helpers.models import tiny_checkpoint
from tests.helpers.rows import WORDS, write_rows

pytest.importorskip("sentence_transformers")
pytest.importorskip("setfit")


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """An empty folder to be in, with a tiny encoder, pairs of texts, and texts with labels."""
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint("model")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=5)) for _ in range(48)]
    write_rows(tmp_path / "pairs.jsonl", [{"anchor": a, "positive": a + " and " + a} for a in texts])
    write_rows(tmp_path / "texts.jsonl", [{"text": text, "label": "good" in text} for text in texts])


def ranks_of(model) -> dict[str, int]:
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert all(layer.lora_B["default"].weight.abs().max() > 0 for layer in layers.values())
    return {name: layer.r["default"] for name, layer in layers.items()}


def test_ranks_of_a_sentence_transformer(encoder):
    from sentence_transformers import SentenceTransformer

    from examples import embeddings

    embeddings.main("--model model --data pairs.jsonl --output out --search_steps 6 --steps 2 --batch_size 4".split())
    loaded = SentenceTransformer("out/final").transformers_model
    assert ranks_of(loaded) == {n: rank for n, rank in LearnedRanks.load("out/ranks.json").ranks.items() if rank}


def test_ranks_of_setfit(encoder):
    from setfit import SetFitModel

    from examples import few_shot

    few_shot.main("--model model --data texts.jsonl --output out --search_steps 6 --steps 2 --batch_size 4".split())
    loaded = SetFitModel.from_pretrained("out/final")
    learned = LearnedRanks.load("out/ranks.json").ranks
    assert ranks_of(loaded.model_body.transformers_model) == {n: rank for n, rank in learned.items() if rank}
    assert len(loaded.predict(["the good film", "the bad film"])) == 2
