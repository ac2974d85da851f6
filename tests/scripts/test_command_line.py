"""Are arguments read as they are typed: presets, YAML, hyphens?"""

import pytest

import run_glue
from autolora_trainer.clean import hide_secrets
from autolora_trainer.errors import UsageError
from autolora_trainer.scripts.arguments import PRESETS
from autolora_trainer.scripts.command_line import parse_arguments


@pytest.mark.parametrize(
    "typed, warm",
    [
        ([], True),
        (["--retrain_init", "scratch"], False),
        (["--retrain_cut", "0.5"], False),
        (["--ranks", "ranks.json"], False),  # there is no search to begin from
        (["--preset", "paper"], False),
        (["--preset", "paper", "--retrain_init", "search"], True),
    ],
)
def test_retrain_begins_where_the_search_ended_if_there_is_one(typed, warm):
    assert parse_arguments(["--task_name", "mrpc", *typed])[2].warm_start is warm


def test_preset_paper_is_section_4_and_5_1(place):
    """Every setting that §4, §5.1 and §5.2 state, one by one; what is typed still wins."""
    _, _, method, training = parse_arguments(["--task_name", "mrpc", "--preset", "paper"])
    assert method.initial_rank == 8  # §5.1: k_l = 8
    assert method.constraint == "softmax"  # Eq. 3
    assert (method.rank_rule, method.threshold, method.min_rank) == (
        "threshold",
        None,
        1,
    )  # §4.4: λ = 1/k_l, at least one
    assert method.val_fraction == 0.5  # §5.2: ratio 1:1
    assert method.search_learning_rate == 1e-4 and method.selection_learning_rate == 1e-3  # §5.1
    assert (method.hypergradient, method.hypergradient_interval) == ("finite_difference", 1)  # §4.3: every iteration
    assert (method.virtual_step, method.inner_lr) == ("sgd", None)  # Eq. 4, η = the weights' rate
    assert method.retrain_init == "scratch" and method.ranks is None  # §4.5
    assert method.search_look_steps == 0 and method.size is None
    assert (
        training.optim == "adamw_torch"
        and training.learning_rate == 1e-4
        and training.per_device_train_batch_size == 16
    )
    assert (method.scaling, method.lora_alpha, method.lora_dropout) == ("paper", 16, 0.1)
    assert parse_arguments(["--preset", "paper", "--initial_rank", "4"])[2].initial_rank == 4
    assert parse_arguments(["--initial_rank", "4", "--preset=paper"])[2].initial_rank == 4


def test_typed_wins_over_yaml_and_yaml_over_preset(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "preset: paper\nselection_learning_rate: 0.5\nlora_alpha: 7\nlora_target_modules: [q, v]\nbf16: false\n"
    )
    _, _, method, _ = parse_arguments(["--config", str(config), "--lora_alpha", "9"])
    assert (method.lora_alpha, method.selection_learning_rate, method.initial_rank) == (9, 0.5, 8)
    assert method.scaling == PRESETS["paper"]["scaling"] and method.lora_target_modules == ["q", "v"]
    assert parse_arguments([str(config)])[2].lora_alpha == 7


def test_yaml_cannot_smuggle_an_argument_in(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("cache_dir: --trust_remote_code\n")
    assert parse_arguments(["--config", str(config)])[0].trust_remote_code is False
    config.write_text("lora_target_modules: [q, --trust_remote_code]\n")
    with pytest.raises(UsageError, match="the list lora_target_modules holds '--trust_remote_code', an argument"):
        parse_arguments(["--config", str(config)])


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rte: 1", "sets 'learning_rte', which is no argument. Did you mean learning_rate"),
        ("a: [", "is not YAML"),
        ("- a", "must hold 'name: value' lines, got list"),
        ("trust_remote_code: true", "Type --trust_remote_code yourself"),
    ],
)
def test_bad_config_file_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        parse_arguments(["--config", str(tmp_path / "c.yaml")])


def test_hyphens_and_capitals_mean_the_same(place):
    argv = ["--task-name", "SAMPLE", "--output-dir", "o", "--resume-from-checkpoint", "--use-cpu"]
    _, data, method, training = parse_arguments(argv, {"sample": run_glue.SAMPLE_DEFAULTS})
    assert (data.task_name, method.lora_alpha, training.resume_from_checkpoint) == ("SAMPLE", 32, "True")
    assert hide_secrets(["--hub-token", "hf_a", "--hub-token=hf_a"]) == ["--hub-token", "***", "--hub-token=***"]


def test_numbers_of_yaml_are_numbers(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-3\nlr_scheduler_kwargs: {min_lr: 1e-6, steps: 5}\n")
    *_, training = parse_arguments(["--config", str(tmp_path / "run.yaml"), "--output_dir", "o", "--use_cpu"])
    assert training.learning_rate == 1e-3 and training.lr_scheduler_kwargs == {"min_lr": 1e-6, "steps": 5}
