"""Does a retrain start where the search ended, from the components that were chosen?"""

import copy
import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from autolora_trainer import AutoLoraTrainer, LearnedRanks
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.search.arguments import RANK_RULE_CHOICES
from autolora_trainer.search.handover import handover_tensors, kept_factors, load_handover
from autolora_trainer.search.selection import attach_gates
from tests.helpers.models import lora, tiny_gpt2, tiny_roberta
from tests.helpers.ranks import learned
from tests.helpers.rows import rows
from tests.helpers.trainings import LORA, arguments, searcher


@pytest.mark.parametrize("rank", [4, 2])
def test_retrain_starts_where_the_search_ended(tmp_path, rank):
    """Of full rank it computes what the search did; of less, its update is the best approximation of that rank."""
    trainer = searcher(tmp_path)
    trainer.train()
    ids = torch.arange(3, 15).view(1, 12)
    expected = trainer.model.eval()(ids).logits
    updates = {
        name: part.scaling * (part.lora_B * trainer.gates.scale * alpha) @ part.lora_A
        for (name, part), alpha in zip(trainer.gates.parts.items(), trainer.gates.selection)
    }
    torch.manual_seed(0)
    ranks = LearnedRanks({name: ModuleRank(rank) for name in updates}, initial_rank=4)
    adapted = build_adapter(tiny_roberta(), ranks, LORA).eval()
    assert not torch.allclose(adapted(ids).logits, expected, atol=1e-3)
    trainer.start_retrain(adapted)
    if rank == 4:
        torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-5)
    for name, part in lora_parts(adapted).items():
        u, s, vh = torch.linalg.svd(updates[name].detach())
        best = u[:, :rank] * s[:rank] @ vh[:rank]
        torch.testing.assert_close((part.scaling * part.lora_B @ part.lora_A).detach(), best, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(part.lora_A.detach().norm(dim=1), torch.full((rank,), 3**-0.5))  # as LoRA begins
    with pytest.raises(
        ValueError, match=r"The search kept nothing for 'A\.roberta.*key', the retrain needs \(4, 16\)"
    ):
        trainer.start_retrain(
            get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["key"]))
        )


@pytest.mark.parametrize("kind", [tiny_roberta, tiny_gpt2])
def test_a_retrain_with_dora_starts_where_the_search_ended(tmp_path, kind):
    torch.manual_seed(0)
    base, tokens = kind(), rows()
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16)
    if kind is tiny_gpt2:
        config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16)
        tokens = [{**row, "labels": row["input_ids"]} for row in tokens]
    settings = arguments(tmp_path, hypergradient="first_order")
    trainer = AutoLoraTrainer(copy.deepcopy(base), settings, train_dataset=tokens, peft_config=config)
    trainer.train()
    ranks = LearnedRanks({name: ModuleRank(4) for name in trainer.gates.names}, initial_rank=4)
    adapted = build_adapter(base, ranks, dataclasses.replace(config, use_dora=True))
    trainer.start_retrain(adapted)
    ids = torch.arange(3, 15).view(1, 12)
    torch.testing.assert_close(adapted.eval()(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_retrain_that_cannot_start_where_the_search_ended_is_refused(tmp_path):
    trainer = searcher(tmp_path, max_steps=2)
    trainer.train()
    ranks = LearnedRanks({name: ModuleRank(4) for name in trainer.gates.names}, initial_rank=4)
    other = build_adapter(tiny_roberta(), ranks, LoraConfig(task_type="SEQ_CLS", alora_invocation_tokens=[1, 2]))
    with pytest.raises(ValueError, match="as plain LoRA or DoRA, got ALoraLinearVariant at .* Leave start_retrain"):
        trainer.start_retrain(other)
    other = build_adapter(tiny_roberta(), ranks, dataclasses.replace(LORA, init_lora_weights="pissa"))
    with pytest.raises(ValueError, match="on the same base model, and init_lora_weights='pissa' alters it. Leave st"):
        trainer.start_retrain(other)


@pytest.mark.parametrize("rule", RANK_RULE_CHOICES)
@pytest.mark.parametrize("scaling", ["constant", "paper"])
def test_kept_components_start_the_retrain_where_the_search_ended(tmp_path, rule, scaling):
    """With every component kept, the retrain's first output is the search's last."""
    base = tiny_roberta()
    searched = lora(base, rank=4).eval()
    gates = attach_gates(searched)
    with torch.no_grad():
        gates.logits.copy_(torch.randn(gates.logits.shape))
    gates.refresh()
    ids = torch.arange(3, 15).view(1, 12)
    expected = searched(ids).logits
    whole = {name: [0, 1, 2, 3] for name in gates.names}
    save_file(handover_tensors(gates, whole, rule != "threshold", searched), tmp_path / "kept.safetensors")
    gates.remove()
    fresh = build_adapter(
        searched.unload(),
        learned(dict.fromkeys(gates.names, 4), 4),
        LoraConfig(task_type="SEQ_CLS", lora_alpha=16),
        scaling,
    )
    load_handover(tmp_path / "kept.safetensors", fresh)
    torch.testing.assert_close(fresh.eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_kept_components_are_the_chosen_ones():
    gates = attach_gates(lora(tiny_roberta(), rank=4))
    gates.selection.copy_(torch.rand(gates.selection.shape))
    chosen = dict(zip(gates.names, ([1, 3], [], [2], [0, 1, 2, 3])))
    name = gates.names[0]
    part, alpha = gates.parts[name], gates.selection[0]
    a, b = kept_factors(gates, chosen, directions=False)[name]
    torch.testing.assert_close(a, part.lora_A[[1, 3]].detach())
    torch.testing.assert_close(b, (part.lora_B[:, [1, 3]] * alpha[[1, 3]]).detach())
    kept = kept_factors(gates, chosen, directions=True)
    assert list(kept) == [name for name, own in chosen.items() if own]
    a, b = kept[name]
    u, s, vh = torch.linalg.svd(((part.lora_B * alpha) @ part.lora_A).detach())
    torch.testing.assert_close(b @ a, (u[:, [1, 3]] * s[[1, 3]]) @ vh[[1, 3]], rtol=1e-4, atol=1e-6)
