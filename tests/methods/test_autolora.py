"""Are the arguments of a search those of its run, and ranks that no cut can give refused?"""

import pytest

import run_glue
from autolora_trainer.errors import UsageError
from autolora_trainer.methods import search_phase
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.scripts.request import settle
from tests.helpers.commands import command


def test_search_ends_when_it_has_settled_unless_told_otherwise(place):
    for changes, steps, epochs in (
        ({"search_epochs": None}, 112, 1),
        ({"search_epochs": 3}, -1, 3),
        ({"search_epochs": None, "search_max_steps": 7}, 7, 1),
        ({"search_epochs": None, "rank_rule": "threshold"}, 112, 1),
    ):
        parsed = parse_arguments(command(place, place / "never", lr_scheduler_type="cosine", **changes))
        arguments = search_phase.search_arguments(settle(run_glue.Glue(), *parsed))
        assert (arguments.max_steps, arguments.num_train_epochs) == (steps, epochs)
        assert arguments.search_look_steps == (28 if changes == {"search_epochs": None} else 0)
        assert arguments.lr_scheduler_type == "constant_with_warmup"
    for typed, steps in (([], 200), (["--search_epochs", "2"], -1), (["--preset", "paper"], -1)):
        argv = ["--task_name", "sample", "--output_dir", str(place / "never"), "--use_cpu", *typed]
        parsed = parse_arguments(argv, {"sample": run_glue.SAMPLE_DEFAULTS})
        assert search_phase.search_arguments(settle(run_glue.Glue(), *parsed)).max_steps == steps


def test_a_search_is_no_longer_warmed_up_than_it_lasts(place):
    """A training's warm-up of 500 steps would keep a search of 112 below a quarter of its rate."""
    for given, changes, kept in (
        (500, {}, (28, "constant_with_warmup")),
        (9, {}, (9, "constant_with_warmup")),
        (0.019, {}, (3, "constant_with_warmup")),
        (0.5, {}, (28, "constant_with_warmup")),
        (0.5, {"search_epochs": 2}, (0.5, "constant_with_warmup")),
        (500, {"rank_rule": "threshold"}, (28, "constant_with_warmup")),
        (500, {"search_epochs": 2, "rank_rule": "threshold"}, (500, "cosine")),  # the paper's: the training's
    ):
        changes = {"search_epochs": None, "lr_scheduler_type": "cosine", "warmup_steps": given, **changes}
        parsed = parse_arguments(command(place, place / "never", **changes))
        arguments = search_phase.search_arguments(settle(run_glue.Glue(), *parsed))
        assert (arguments.warmup_steps, arguments.lr_scheduler_type) == kept


@pytest.mark.parametrize(
    "rank, more, changes, message",
    [
        (5, (), {}, "initial_rank 4 of --ranks in every module, and '.*0.attention.self.query' has rank 5. Drop"),
        (2, ["roberta.encoder.layer.0.output.dense"], {}, "adapts other ones: not '.*output.dense'. Give the --lora"),
        (2, (), {"lora_target_modules": "query"}, "adapts other ones: not '.*value'. Give the --lora_target_modules"),
    ],
)
def test_ranks_that_no_cut_can_give_are_refused_before_the_retrain(place, tmp_path, rank, more, changes, message):
    names = [f"roberta.encoder.layer.{b}.attention.self.{name}" for b in range(2) for name in ("query", "value")]
    ranks = LearnedRanks({name: ModuleRank(rank) for name in [*names, *more]}, initial_rank=4)
    ranks.save(tmp_path / "ranks.json")
    argv = command(place, tmp_path / "o", ranks=tmp_path / "ranks.json", retrain_cut=0.5, **changes)
    with pytest.raises(UsageError, match=message):
        run_glue.main(argv)
    assert not (tmp_path / "o").exists()
