"""A search over the experts of a mixture, and what plain PEFT makes of it."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from autolora_trainer import AutoLoraTrainer, LearnedRanks, ModuleRank, build_adapter, compress, find_ranks
from autolora_trainer.commands.export import export_adapter
from autolora_trainer.find.rank_search import RankSearch
from autolora_trainer.lora.parts import lora_parts
from tests.helpers.experts import MIXTURES, adapted_experts, ids, logits, mixture
from tests.helpers.models import tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import StopAt, arguments, short_training, trained_state

ALL = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=8)
QUICK = {"max_steps": 4, "initial_rank": 2, "hypergradient": "first_order", "logging_steps": 100}


def texts(count=24):
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids(count, 8, 1).tolist()])


def ranks_of(model):
    return {name: part.rank for name, part in lora_parts(model).items()}


@pytest.mark.parametrize("kind", MIXTURES)
def test_from_search_to_a_plain_adapter(tmp_path, kind):
    args = arguments(tmp_path / "search", **QUICK, size="lora:1", learning_rate=2e-2)
    search = AutoLoraTrainer(mixture(kind), args, train_dataset=texts(), peft_config=ALL)
    search.train()
    searched, parts = logits(search.model.eval()), search.gates.parts
    search.save_model(tmp_path / "searched")  # gates folded in
    assert torch.allclose(logits(PeftModel.from_pretrained(mixture(kind), tmp_path / "searched")), searched, atol=1e-5)
    whole = LearnedRanks({name: ModuleRank(2, experts=part.experts) for name, part in parts.items()}, initial_rank=2)
    adapted = build_adapter(mixture(kind), whole, ALL)
    search.start_retrain(adapted)
    assert torch.allclose(logits(adapted.eval()), searched, atol=1e-5)

    search.learned_ranks.save(tmp_path / "ranks.json")
    learned = LearnedRanks.load(tmp_path / "ranks.json")
    kept = {name: rank for name, rank in learned.ranks.items() if rank}
    assert any("experts" in name for name in kept) and not any(name.endswith((".gate", "router")) for name in kept)
    assert ranks_of(get_peft_model(mixture(kind), learned.to_lora_config(ALL))) == kept
    adapted = build_adapter(mixture(kind), learned, ALL)
    search.start_retrain(adapted)
    for parameter in adapted.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter) * parameter.requires_grad
    trained = logits(adapted.eval())
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(mixture(kind), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), trained) and ranks_of(again) == kept
    read = LearnedRanks.from_pretrained(tmp_path / "adapter")
    assert read.ranks == kept and set(read.parameters) == set(learned.parameters) & kept.keys()
    assert torch.allclose(logits(again.merge_and_unload()), trained, atol=2e-5)


def test_a_search_of_experts_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    def search(folder, **changes):
        settings = {**QUICK, "size": "lora:1", "save_strategy": "steps", "save_steps": 2, **changes}
        torch.manual_seed(0)
        return AutoLoraTrainer(mixture(), arguments(folder, **settings), train_dataset=texts(), peft_config=ALL)

    whole, part = search(tmp_path / "whole"), search(tmp_path / "part")
    whole.train()
    part.add_callback(StopAt(2))
    part.train()
    again = search(tmp_path / "part")
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    state, other = trained_state(whole), trained_state(again)
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    assert whole.learned_ranks == again.learned_ranks


class Taught(nn.Module):
    """A mixture whose targets are another's logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, labels=None):
        out = self.model(input_ids=input_ids).logits
        return {"loss": (out - labels).square().mean(), "logits": out}


def test_a_planted_expert_is_found(tmp_path):
    """An update of rank 2 in one expert of four."""
    base, teacher = (mixture(num_hidden_layers=1) for _ in range(2))
    torch.manual_seed(3)
    update = 0.15 * torch.randn(16, 2) @ torch.randn(2, 24)
    teacher.model.layers[0].mlp.experts.down_proj.data[2] += update
    tokens = ids(144, 8, 1)
    data = {"input_ids": tokens.tolist(), "labels": logits(teacher, tokens).tolist()}
    settings = {**QUICK, "max_steps": 30, "initial_rank": 3, "per_device_train_batch_size": 24}
    search = AutoLoraTrainer(
        Taught(base), arguments(tmp_path, **settings, learning_rate=2e-2, tolerance=0.01),
        train_dataset=Dataset.from_dict(data).with_format("torch"),
        peft_config=LoraConfig(
            target_modules=["q_proj", "v_proj"], target_parameters=["gate_up_proj", "down_proj"], lora_alpha=4
        ),
    )  # fmt: skip
    search.train()
    found = {name.rpartition(".")[2]: rank for name, rank in search.learned_ranks.ranks.items()}
    assert found == {"q_proj": 0, "v_proj": 0, "gate_up_proj": 0, "down_proj": 2}
    part = search.gates.parts["model.model.layers.0.mlp.experts.down_proj"]
    with search.gates.folded():
        learned = part.scaling * part.lora_B[2] @ part.lora_A[2]
    assert (learned - update).norm() < 0.5 * update.norm()


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_one_call_gives_a_plain_config_and_an_adapter_to_go_on_from(tmp_path, kind):
    model = mixture(kind)
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    args = short_training(tmp_path, learning_rate=2e-2)
    search = RankSearch(model, texts(), ALL, args=args, search_steps=6, size="lora:1", initial_rank=2).run()
    assert type(search.config) is LoraConfig and list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.state_dict().items())
    kept = {name: rank for name, rank in search.ranks.ranks.items() if rank}
    search.save_adapter(tmp_path / "start")
    start = PeftModel.from_pretrained(mixture(kind), tmp_path / "start")
    assert ranks_of(start) == kept == ranks_of(get_peft_model(model, search.config))
    for name, part in lora_parts(start).items():
        assert part.lora_A.norm() > 0 and torch.isfinite(part.lora_B).all(), name
    assert not torch.allclose(logits(start.eval()), logits(mixture(kind)), atol=1e-3)


def test_a_trained_bias_beside_an_adapted_weight_is_handed_over(tmp_path):
    """Of a linear layer whose weight is adapted as a parameter, as those beside experts are."""
    given = LoraConfig(
        task_type="SEQ_CLS", target_modules=["value"], target_parameters=["query.weight"], bias="all"
    )  # fmt: skip
    model, args = tiny_roberta(), short_training(tmp_path, learning_rate=2e-2)
    search = RankSearch(model, rows(24), given, args=args, search_steps=6, size="lora:2", initial_rank=3).run()
    search.save_adapter(tmp_path / "start")
    start = PeftModel.from_pretrained(model, tmp_path / "start")
    assert any(name.endswith("query.weight") for name in ranks_of(start))
    held = {
        name: value for name, value in search.start.items() if name.endswith(("query.base_layer.bias", "query.bias"))
    }
    now = start.state_dict()
    assert len(held) == 2 and all(value.any() and torch.equal(now[name], value) for name, value in held.items())


def test_an_adapter_of_experts_is_compressed(tmp_path):
    """Also to fewer parameters of a module, whose wrappers in the file are then others."""
    model = adapted_experts("mixtral")
    given = logits(model)
    small = compress(model, rank=3)
    assert torch.allclose(logits(small.load(mixture()).eval()), given, atol=2e-6)
    lost = adapted_experts("mixtral")
    for name, part in lora_parts(lost).items():
        if "down_proj" in name or "q_proj" in name:
            part.set_lora_B(torch.zeros_like(part.lora_B))
    small, given = compress(lost, rank=0.9999), logits(lost)
    assert small.config.target_parameters == [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(2)]
    small.save_pretrained(tmp_path)
    assert torch.allclose(logits(PeftModel.from_pretrained(mixture(), tmp_path).eval()), given, atol=1e-2)
    assert set(LearnedRanks.load(tmp_path / "ranks.json").parameters) > set(small.config.target_parameters)
    routed = get_peft_model(mixture(), LoraConfig(target_modules="all-linear", r=2)).eval()  # PEFT's, routers too
    for parameter in routed.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    given = logits(routed)
    compress(routed, rank=8).save_pretrained(tmp_path / "routed")
    again = PeftModel.from_pretrained(mixture(), tmp_path / "routed").eval()
    assert torch.allclose(logits(again), given, atol=1e-5)
    held_out = [{"input_ids": row, "labels": row} for row in ids(24, 8).tolist()]
    found = compress(adapted_experts("mixtral"), held_out, size="lora:1")
    assert any("experts" in name and rank for name, rank in found.ranks.ranks.items())


def test_an_adapter_of_experts_is_filled_up_to_one_rank(tmp_path):
    model = adapted_experts("gpt_oss", rank=2, rank_pattern={"experts.down_proj": 3}, alpha_pattern={"q_proj": 1})
    model.save_pretrained(tmp_path / "given")
    export_adapter(str(tmp_path / "given"), str(tmp_path / "filled"), pad=True)
    filled = PeftModel.from_pretrained(mixture("gpt_oss"), tmp_path / "filled").eval()
    assert set(ranks_of(filled).values()) == {3} and not filled.peft_config["default"].rank_pattern
    assert torch.allclose(logits(filled), logits(model), atol=2e-6)


def test_dropout_and_adapted_routers_are_refused(tmp_path):
    dropped = LoraConfig(target_modules="all-linear", lora_dropout=0.1)
    reason = r"no dropout for parameters, got lora_dropout=0.1 for 'model.layers.0.mlp.experts.gate_up_proj' and 3 mo"
    with pytest.raises(ValueError, match=reason + r".*target_modules=\['k_proj', 'o_proj', 'q_proj', 'v_proj'\]"):
        find_ranks(mixture(), texts(), dropped)
    ranks = LearnedRanks({"model.layers.0.mlp.experts.down_proj": ModuleRank(2, experts=4)})
    with pytest.raises(ValueError, match="no dropout for parameters, got lora_dropout=0.1 and ranks of 'model"):
        build_adapter(mixture(), ranks, LoraConfig(lora_dropout=0.1))
    layers = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    assert AutoLoraTrainer(mixture(), arguments(tmp_path), train_dataset=texts(), peft_config=layers).gates
    for kind in ("mixtral", "llama4"):  # a parameter, a linear layer
        adapted = get_peft_model(mixture(kind), LoraConfig(target_modules="all-linear", r=2))
        with pytest.raises(ValueError, match="adapts no routers, and the adapter does .'model.layers.0.*peft_config"):
            AutoLoraTrainer(adapted, arguments(tmp_path), train_dataset=texts())
