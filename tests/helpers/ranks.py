"""Ranks as a search leaves them."""

from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank


def learned(ranks, initial_rank=8):
    """{module: rank} with all that a search notes beside them."""
    return LearnedRanks(
        {name: ModuleRank(r, (0.5, 0.5)) for name, r in ranks.items()},
        "org/base",
        "abc",
        initial_rank,
        "softmax",
        "strength",
    )


def names(model, targets=("query", "value")):
    """Of the modules that end so, in the order of the model."""
    return [name for name, _ in model.named_modules() if name.endswith(targets)]


def of_ranks(ranks, **more):
    """{module: rank} and nothing beside them."""
    return LearnedRanks({name: ModuleRank(rank) for name, rank in ranks.items()}, **more)


def roberta(layers=12):
    """Rank i of query i, and 20 + i of value i, so that a misplaced cell shows."""
    name = "roberta.encoder.layer.{}.attention.self.{}"
    return of_ranks({name.format(i, p): i + 20 * (p == "value") for i in range(layers) for p in ("query", "value")})
