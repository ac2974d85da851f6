"""Does the search find what was planted, move what it should, and refuse what cannot be searched?"""

import os
from types import SimpleNamespace

import pytest
import torch
import transformers.trainer
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainingArguments

from autolora_trainer import AutoLoraTrainer, LearnedRanks
from autolora_trainer.compat import CHECKPOINTING
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import ModuleRank
from tests.helpers.models import tiny_gpt2, tiny_roberta
from tests.helpers.planted import Planted, planted_data, planted_search
from tests.helpers.rows import rows
from tests.helpers.trainings import LORA, Watch, arguments, searcher, trained_state

# ---- what a search does


@pytest.mark.parametrize("hypergradient", ["finite_difference", "first_order", "exact"])
def test_search_finds_planted_ranks(tmp_path, hypergradient):
    model = Planted()
    data = planted_data(model)
    args = arguments(
        tmp_path,
        max_steps=500,
        initial_rank=8,
        per_device_train_batch_size=32,
        hypergradient=hypergradient,
        tolerance=0.001,
        hypergradient_interval=1 if hypergradient == "finite_difference" else 4,
        selection_learning_rate=0.05,
        learning_rate=2e-2,
    )
    trainer = AutoLoraTrainer(
        model, args, train_dataset=data, peft_config=LoraConfig(target_modules=r"layers\.\d", lora_alpha=8)
    )
    trainer.train()
    assert list(trainer.learned_ranks.ranks.values()) == list(Planted.ranks)


def test_every_lora_and_selection_parameter_moves_and_the_base_does_not(tmp_path):
    trainer = searcher(tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == parameter.requires_grad, f"{name} changed: {changed}"
    assert (trainer.gates.logits != 0).all()


def test_learned_ranks_follow_from_the_final_selection(tmp_path):
    trainer = searcher(tmp_path, rank_rule="threshold")
    trainer.train()
    ranks = trainer.learned_ranks
    assert isinstance(ranks, LearnedRanks) and ranks.threshold == 1 / 4 and ranks.initial_rank == 4
    for (name, module), alpha in zip(ranks.modules.items(), trainer.gates.selection):
        assert module.selection == tuple(alpha.tolist())
        assert module.rank == int((alpha >= 1 / 4).sum())
        assert name.startswith("roberta.encoder.layer.")


@pytest.mark.parametrize("gate_scaling", ["plain", "paper"])
def test_a_saved_model_is_the_one_that_was_searched(tmp_path, gate_scaling):
    trainer = searcher(tmp_path, gate_scaling=gate_scaling)
    trainer.train()
    before = trained_state(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert all(torch.equal(value, before[name]) for name, value in trained_state(trainer).items())
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(tiny_roberta(), tmp_path / "saved").eval()
    ids = torch.arange(3, 15).view(1, 12)
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_saving", [True, False])
def test_a_pushed_model_is_the_one_that_was_searched(tmp_path, monkeypatch, by_saving):
    pushed = {}

    def upload_folder(folder_path, **kwargs):
        pushed.update(load_file(os.path.join(folder_path, "adapter_model.safetensors")))

    hub = SimpleNamespace(
        create_repo=lambda name, **kwargs: SimpleNamespace(repo_id=f"me/{name}"), upload_folder=upload_folder
    )
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda *args, **kwargs: hub)
    trainer = searcher(tmp_path / "model", push_to_hub=by_saving, hub_strategy="end")
    monkeypatch.setattr(trainer, "create_model_card", lambda **kwargs: None)
    trainer.train()
    before = trained_state(trainer)
    with trainer.gates.folded():
        folded = get_peft_model_state_dict(trainer.model)
        folded = {name: value.clone() for name, value in folded.items()}
    trainer.save_model() if by_saving else trainer.push_to_hub()
    assert pushed.keys() == folded.keys() and all(torch.equal(pushed[name], folded[name]) for name in folded)
    assert all(torch.equal(value, before[name]) for name, value in trained_state(trainer).items())
    with trainer.gates.apart():
        assert not all(torch.equal(pushed[n], v) for n, v in get_peft_model_state_dict(trainer.model).items())


def test_gates_are_applied_once(tmp_path):
    trainer = searcher(tmp_path)
    with pytest.raises(ValueError, match="has the gates of an earlier search. Call gates.remove"):
        AutoLoraTrainer(trainer.model, arguments(tmp_path), train_dataset=rows())
    trainer.gates.remove()
    with pytest.raises(ValueError, match="The adapter has rank 4"):
        AutoLoraTrainer(trainer.model, arguments(tmp_path, initial_rank=8), train_dataset=rows())
    again = AutoLoraTrainer(trainer.model, arguments(tmp_path), train_dataset=rows())
    again.train()
    ranks = LearnedRanks({name: ModuleRank(4) for name in again.gates.names}, initial_rank=4)
    again.gates.bake()
    with pytest.raises(ValueError, match="Call start_retrain before it"):
        again.start_retrain(build_adapter(tiny_roberta(), ranks, LORA))


def test_rows_in_a_list_may_have_columns_that_the_model_does_not_take(tmp_path):
    data = [{**row, "idx": i, "sentence": "as a Trainer drops them"} for i, row in enumerate(rows())]
    searcher(tmp_path, data=data, max_steps=4).train()


def test_eval_dataset_takes_no_part_and_the_splits_are_disjoint(tmp_path):
    data = rows(41)
    trainer = searcher(tmp_path, data=data, val_fraction=0.25)
    assert len(trainer.train_dataset) == 31 and len(trainer.val_dataset) == 10
    own = AutoLoraTrainer(
        tiny_roberta(),
        arguments(tmp_path, initial_rank=8),
        train_dataset=data,
        val_dataset=rows(7, seed=9),
        peft_config=LORA,
    )
    assert len(own.train_dataset) == 41 and len(own.val_dataset) == 7


def test_interval_sets_how_often_a_selection_step_is_taken(tmp_path):
    for interval, steps in ((1, 12), (5, 3)):
        trainer = searcher(tmp_path, hypergradient_interval=interval)
        trainer.train()
        assert trainer.selection_passes == 3 * steps


def test_search_stops_when_its_order_has_settled(tmp_path):
    trainer = planted_search(tmp_path, max_steps=400, search_look_steps=20)
    trainer.train()
    assert trainer.rank_selection.settled and trainer.state.global_step in (40, 60, 80)
    trainer.train()  # a second training searches again
    assert trainer.rank_selection.settled and trainer.learned_ranks


def test_search_that_learns_nothing_goes_on_to_its_limit_and_is_undecided(tmp_path, caplog):
    data = rows(64)
    data = data.map(lambda row, i: {"labels": (i * 7919) % 2}, with_indices=True)  # chance
    trainer = searcher(tmp_path, data=data, max_steps=24, search_look_steps=4, learning_rate=1e-5)
    trainer.train()
    assert trainer.state.global_step == 24 and not trainer.rank_selection.settled
    ranks = trainer.learned_ranks
    assert set(ranks.ranks.values()) == {4} and ranks.curve.decided is False
    assert "undecided:" in caplog.text and "after 24 steps are no more than chance" in caplog.text


def test_what_alpha_alone_says_gives_other_ranks(tmp_path):
    """The same weights: contributions are those of the update with α folded in."""
    trainer = planted_search(tmp_path, size=3 * 24)
    trainer.train()
    learned = trainer.learned_ranks.ranks
    trainer.gates.selection[-1] *= 1e-3  # the module of rank 6
    assert trainer.find().ranks != learned
    assert trainer.find().ranks["layers.3"] < learned["layers.3"]


def test_a_given_size_is_spread_over_blocks_beside_a_fresh_head_alone(tmp_path):
    spread_over = []
    for model, kind, target in ((tiny_roberta(), "SEQ_CLS", "query"), (tiny_gpt2(), "CAUSAL_LM", "attn.c_proj")):
        lora = LoraConfig(task_type=kind, target_modules=[target])
        args = arguments(tmp_path, size=2 * (16 + 16))
        trainer = AutoLoraTrainer(model, args, train_dataset=rows(), peft_config=lora)
        lower, upper = trainer.gates.names
        values = {lower: torch.full((4,), 0.1), upper: torch.tensor([4.0, 3.0, 2.0, 1.0])}
        trainer.contributions = values.copy
        spread_over.append(sum(rank > 0 for rank in trainer.find().ranks.values()))
    assert spread_over == [2, 1]


def test_alpha_has_moved_in_every_module_that_learned(tmp_path):
    trainer = planted_search(tmp_path, size="lora:2")
    trainer.train()
    assert ((trainer.gates.selection[1:] - 1 / 8).abs() > 1e-4).all()  # the first has nothing to learn


@pytest.mark.parametrize("rule", ["contributions", "threshold"])
def test_callback_alone_yields_the_rank_pattern(tmp_path, rule):
    trainer = planted_search(tmp_path, rank_rule=rule)
    trainer.train()
    ranks = trainer.rank_selection.learned_ranks
    pattern = ranks.to_lora_config(LoraConfig(lora_alpha=8)).rank_pattern
    assert pattern == {f"^layers\\.{i}": ranks.ranks[f"layers.{i}"] for i in range(4) if ranks.ranks[f"layers.{i}"]}
    assert (list(ranks.ranks.values()) == list(Planted.ranks)) == (rule == "contributions")
    kinds = {len(module.contributions) for module in ranks.modules.values()}
    assert kinds == ({8} if rule == "contributions" else {0})


def test_no_module_may_exceed_the_cap_of_a_server(tmp_path):
    trainer = planted_search(tmp_path, max_lora_rank=3)
    trainer.train()
    assert list(trainer.learned_ranks.ranks.values()) == [0, 1, 2, 3]


def test_rows_that_judge_the_size_move_nothing(tmp_path):
    """Other rows to judge by, and the weights, α and contributions stay the same to the bit."""
    found = []
    for start in (0, 8):
        held_out = rows(32, seed=5)
        torch.manual_seed(0)
        trainer = AutoLoraTrainer(
            tiny_roberta(),
            arguments(tmp_path),
            train_dataset=rows(),
            val_dataset=held_out.select(range(16)),
            size_dataset=held_out.select(range(16 + start, 24 + start)),
            peft_config=LORA,
        )
        trainer.train()
        found.append((trained_state(trainer), trainer.learned_ranks))
    (state, ranks), (other, others) = found
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    assert [m.contributions for m in ranks.modules.values()] == [m.contributions for m in others.modules.values()]
    assert ranks.curve.points[0].loss != others.curve.points[0].loss


def test_where_a_row_has_one_target_more_rows_judge_the_size(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=4)
    trainer = AutoLoraTrainer(
        tiny_roberta(), args, train_dataset=rows(), val_dataset=rows(64), size_dataset=rows(300), peft_config=LORA
    )
    drawn = lambda targets: sum(len(b["labels"]) for b in trainer._held_out_batches(rows(300), 8, targets))
    assert (drawn(0), drawn(256), drawn(10**6)) == (32, 256, 300)


def test_measuring_leaves_heads_and_weights_as_they_were(tmp_path):
    trainer = searcher(tmp_path, max_steps=6)
    trainer.train()
    before, passes = trained_state(trainer), trainer.measured_passes
    trainer.find()
    assert all(torch.equal(value, before[name]) for name, value in trained_state(trainer).items())
    assert trainer.measured_passes > passes
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_stream_with_rows_held_out_can_be_searched(tmp_path):
    data, held_out = rows().train_test_split(0.5, seed=0).values()
    args = arguments(tmp_path, max_steps=4)
    trainer = AutoLoraTrainer(
        tiny_roberta(), args, train_dataset=data.to_iterable_dataset(), val_dataset=held_out, peft_config=LORA
    )
    trainer.train()
    assert trainer.learned_ranks


@pytest.mark.parametrize(
    "setting",
    ["inner_lr", "virtual_step", "finite_difference_radius", "constraint", "selection_learning_rate", "seed"],
)
def test_every_setting_has_an_effect(tmp_path, setting):
    value = {
        "inner_lr": 0.3,
        "virtual_step": "sgd",
        "finite_difference_radius": 1.0,
        "constraint": "sigmoid",
        "selection_learning_rate": 0.1,
        "seed": 3,
    }[setting]
    plain, changed = searcher(tmp_path), searcher(tmp_path, **{setting: value})
    plain.train()
    changed.train()
    assert not torch.equal(plain.gates.logits, changed.gates.logits)


def test_a_search_in_which_alpha_never_moved_stops(tmp_path):
    trainer = searcher(tmp_path, max_steps=6, hypergradient="first_order", learning_rate=0.0)  # lora_B stays zero
    with pytest.raises(RuntimeError, match="ended after 6 steps and no selection variable ever moved"):
        trainer.train()
    assert trainer.learned_ranks is None


# ---- the weight step is Trainer's own


def test_selection_step_leaves_the_weight_gradient_as_trainer_computed_it(tmp_path):
    """Same data, dropout 0: the gradients of a search with frozen selection are those of a Trainer on the gated
    model."""
    watches = []
    for interval in (1, 1000):
        watch = Watch()
        trainer = searcher(
            tmp_path,
            dropout=0.0,
            callbacks=[watch],
            hypergradient_interval=interval,
            max_steps=1,
            gradient_accumulation_steps=2,
        )
        trainer.train()
        watches.append(watch.gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*watches))


@pytest.mark.parametrize("max_grad_norm", [1.0, 1e-3])
def test_accumulation_equals_one_large_batch(tmp_path, max_grad_norm):
    states = []
    for batch, accumulation in ((16, 1), (4, 4)):
        trainer = searcher(
            tmp_path,
            dropout=0.0,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=8,
            optim="adamw_torch",
            max_grad_norm=max_grad_norm,
            hypergradient_interval=1,
            adam_epsilon=1e-4,
        )
        trainer.train()
        states.append(trained_state(trainer))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=2e-6, msg=lambda text: f"{name}: {text}")
    assert (states[0]["logits"] != 0).all()


def test_activation_checkpointing_changes_nothing(tmp_path):
    states = []
    for on in (False, True):
        trainer = searcher(tmp_path, max_steps=6, **{CHECKPOINTING: on})
        trainer.train()
        states.append(trained_state(trainer))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)


# ---- what is refused


def test_wrong_construction_is_refused(tmp_path):
    with pytest.raises(ValueError, match="args must be AutoLoraTrainingArguments, got TrainingArguments"):
        AutoLoraTrainer(
            tiny_roberta(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=rows(), peft_config=LORA
        )
    with pytest.raises(ValueError, match="needs a LoRA adapter, got a plain RobertaForSequenceClassification"):
        AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), train_dataset=rows())
    with pytest.raises(ValueError, match="needs train_dataset, got none"):
        AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), peft_config=LORA)
    with pytest.raises(ValueError, match="The adapter has rank 2, and the search asks for initial_rank=4"):
        model = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
        AutoLoraTrainer(model, arguments(tmp_path), train_dataset=rows())


@pytest.mark.parametrize("base", [tiny_roberta, tiny_gpt2])
@pytest.mark.parametrize("name, what", [("rank_pattern", "rank k"), ("alpha_pattern", "scale")])
def test_patterns_before_a_search_are_refused(tmp_path, base, name, what):
    config = LoraConfig(**{name: {"layer.0": 2}}, target_modules=["query"] if base is tiny_roberta else None)
    with pytest.raises(ValueError, match=f"the same {what} in every LoRA layer, got a {name} in peft_config. Drop"):
        AutoLoraTrainer(base(), arguments(tmp_path), train_dataset=rows(), peft_config=config)
