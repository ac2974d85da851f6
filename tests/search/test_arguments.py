"""Is an argument out of range refused, and is the range named?"""

import dataclasses

import pytest

from tests.helpers.trainings import arguments


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"val_fraction": 1.0},
            r"val_fraction must be between 0 and 1 \(both splits need examples\), got 1.0. The paper uses 0.5",
        ),
        ({"initial_rank": 0}, "initial_rank must be at least 2, got 0"),
        ({"initial_rank": 1}, "with softmax a single component has α = 1, whatever is learned"),
        ({"optim": "adafactor"}, "virtual_step adamw reads the state of PyTorch's AdamW, got optim adafactor"),
        ({"save_only_model": True, "save_strategy": "steps"}, "save_only_model leaves out what a search needs"),
        ({"push_to_hub": True}, 'hub_strategy every_save pushes checkpoints .* Set hub_strategy="end"'),
        ({"constraint": "relu"}, "constraint must be one of softmax, sigmoid, none, got 'relu'"),
        ({"hypergradient": "magic"}, "hypergradient must be one of finite_difference, first_order, exact"),
        ({"virtual_step": "lion"}, "virtual_step must be one of sgd, adamw"),
        ({"rank_rule": "best"}, "rank_rule must be one of"),
        ({"hypergradient_interval": 0}, "hypergradient_interval must be at least 1"),
        ({"selection_learning_rate": 0.0}, "selection_learning_rate must be a positive number"),
        ({"inner_lr": -1.0}, "inner_lr must be zero or a positive number"),
        ({"threshold": 0.2}, "threshold belongs to rank_rule 'threshold', got rank_rule 'contributions'"),
        ({"min_rank": 2}, "min_rank must be 0 or 1"),
        ({"search_look_steps": -1}, "search_look_steps must be at least 0"),
        ({"tolerance": 1.0}, "tolerance must be at least 0 and below 1"),
        ({"max_lora_rank": 0}, "max_lora_rank must be at least 1"),
        ({"rank_rule": "adaptive"}, "The rank rule adaptive is gone: .* Type --rank_rule contributions"),
        ({"rank_rule": "threshold", "size": "auto"}, "size auto is found by contributions, and rank_rule threshold"),
        ({"size": "lora:2", "rank_budget": "lora:4"}, "rank_budget is the old name of size"),
        ({"fp16": True}, "fp16"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 500},
            "not for the search",
        ),
    ],
)
def test_argument_out_of_range_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_the_old_name_of_size_is_told_once(tmp_path, caplog):
    made = arguments(tmp_path, rank_budget="lora:2")
    assert (made.size, made.rank_budget) == ("lora:2", None)
    assert dataclasses.replace(made).size == "lora:2"
    assert [record.message for record in caplog.records] == ["rank_budget is the old name of size. Type size lora:2."]
