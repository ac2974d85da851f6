"""A model card of a finished run."""

from huggingface_hub import ModelCard

from autolora_trainer.hub.card import Card, write_model_card
from autolora_trainer.methods.registry import METHODS
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank

RANKS = LearnedRanks(
    {f"roberta.encoder.layer.{i}.attention.self.{p}": ModuleRank(i) for i in range(3) for p in ("query", "value")},
    base_model="FacebookAI/roberta-base",
    rank_rule="threshold",
    constraint="softmax",
    threshold=0.125,
)
PHASE = {"wall_seconds": 61.0, "passes": 120, "examples": 1920, "peak_memory_mb": 512.0}


def write_card(folder, ranks=RANKS, **changes):
    settings = dict(
        base_model="FacebookAI/roberta-base",
        task_name="mrpc",
        dataset_id="nyu-mll/glue",
        dataset_name="GLUE MRPC",
        metrics={"eval_loss": 0.5, "eval_accuracy": 0.74, "eval_accuracy_mm": 0.7, "eval_runtime": 3.0, "epoch": 3.0},
        method="autolora",
        cost={"search": PHASE, "retrain": PHASE, "total": PHASE},
        command="python run_glue.py --task_name mrpc",
        adapter_params=73728,
        head_params=592130,
        seed=42,
    )
    settings |= changes
    name = settings.pop("method")
    card = METHODS[name].card(folder) if name in METHODS else Card(name, "{name}, for {base}, on {data}.")
    write_model_card(folder, ranks, card=card, **settings)
    text = (folder / "README.md").read_text(encoding="utf-8")
    return ModelCard.load(folder / "README.md"), text
