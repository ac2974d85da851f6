"""Does a search whose weights are in shards (FSDP2) find what one process finds, and go on to the same bits?"""

import os

import torch
from peft import LoraConfig
from safetensors.torch import load_file

from autolora_trainer import AutoLoraTrainer, build_adapter, find_ranks
from autolora_trainer.training.passes import fix_loss_scale
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.models import tiny_gpt2, tiny_roberta
from tests.helpers.processes import in_processes
from tests.helpers.sharding import FSDP, shard_on_cpus, trained
from tests.helpers.trainings import arguments, short_training

STEPS, KEPT = 4, 2  # of a search; the step that its checkpoint is of


def class_rows(count=80):
    """Of tokens that tell the class."""
    labels = torch.arange(count) % 2
    ids = torch.randint(5, 32, (count, 6), generator=torch.Generator().manual_seed(0)) + 27 * labels[:, None]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels)]


def text_rows(count=38):
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in class_rows(count)]


def collated(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def classifier():
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=8)
    return tiny_roberta(num_hidden_layers=1, initializer_range=0.2), config, class_rows()


def fused():
    """Tied embeddings, and parts of a projection, whose zeros a checkpoint must not fill."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn#q", "c_attn#v"], lora_alpha=8)
    return tiny_gpt2(n_layer=1, initializer_range=0.2, bos_token_id=0, eos_token_id=0), config, text_rows()


CASES = [(classifier, "auto"), (fused, "lora:2")]


def searched(folder, made, size, checkpoint=None):
    world, (model, config, rows) = int(os.environ.get("WORLD_SIZE", 1)), made()
    search = AutoLoraTrainer(
        model,
        arguments(
            folder, max_steps=STEPS, size=size, hypergradient_interval=1, hypergradient="first_order",
            per_device_train_batch_size=8 // world, gradient_accumulation_steps=2, selection_learning_rate=0.05,
            optim="adamw_torch", adam_epsilon=1e-4, save_strategy="steps", save_steps=KEPT,
            **(FSDP if world > 1 else {}),
        ),
        train_dataset=rows,
        data_collator=collated,
        peft_config=config,
    )  # fmt: skip
    search.train(resume_from_checkpoint=checkpoint)
    return search


def found(search):
    ranks = search.learned_ranks
    points = ranks.curve.points if ranks.curve else ()
    numbers = {
        "selection": search.gates.selection.clone(),
        "contributions": torch.tensor([module.contributions for module in ranks.modules.values()]),
        **{f"loss of {point.components}": torch.tensor(point.loss) for point in points},
        **trained(search, int(os.environ.get("WORLD_SIZE", 1)) > 1),
    }
    return (ranks.ranks, ranks.base_model_fingerprint), numbers


def retrained(folder, search, made):
    world, (base, config, rows) = int(os.environ.get("WORLD_SIZE", 1)), made()
    adapter = build_adapter(base, search.learned_ranks, config)
    search.start_retrain(adapter)
    own = short_training(
        folder, max_steps=4, per_device_train_batch_size=8 // world, per_device_eval_batch_size=8 // world,
        optim="adamw_torch", adam_epsilon=1e-4, save_strategy="no", **(FSDP if world > 1 else {}),
    )  # fmt: skip
    trainer = fix_loss_scale(FinalTrainer(adapter, own, collated, rows, rows))
    trainer.train()
    scores = {"eval_loss": torch.tensor(trainer.evaluate()["eval_loss"])}
    trainer.save_model(str(folder))
    return {**scores, **trained(trainer, world > 1)}


def found_for_others(folder):
    """Parameters that `find_ranks` finds, in shards under bf16; the model is not left in shards."""
    world, (model, config, rows) = int(os.environ.get("WORLD_SIZE", 1)), classifier()
    given, before = list(model.parameters()), [p.detach().clone() for p in model.parameters()]
    own = short_training(folder, per_device_train_batch_size=8 // world, bf16=world > 1, **(FSDP if world > 1 else {}))
    ranks = find_ranks(model, rows, config, args=own, data_collator=collated, size="lora:2", search_steps=6)
    assert all(p is q and torch.equal(p, b) for p, q, b in zip(model.parameters(), given, before, strict=True))
    return sum(ranks.rank_pattern.values())


def in_shards(folder):
    shard_on_cpus()
    results = []
    for made, size in CASES:
        place = folder / f"{made.__name__}.shards"
        search = searched(place, made, size)
        whole = found(search)
        search.save_model(str(place / "found"))
        again = found(searched(place, made, size, str(place / f"checkpoint-{KEPT}")))
        results.append((whole, again))
        if made is classifier:
            final = retrained(place / "retrained", search, made)
    others = found_for_others(folder / "others")
    if os.environ["RANK"] == "0":
        torch.save((results, final, others), folder / "found.pt")


def apart(one, other, most=1e-5):
    assert one.keys() == other.keys()
    return {name: gap for name in one if not (gap := (one[name] - other[name]).abs().max().item()) < most}


def test_shards_find_what_one_process_does_and_go_on_to_the_same_bits(tmp_path):
    """α, contributions, the curve, ranks, weights and files; the retrain of what was found; `find_ranks`."""
    in_processes(tmp_path, in_shards, tmp_path)
    results, final, others = torch.load(tmp_path / "found.pt")
    files = []
    for (made, size), (whole, again) in zip(CASES, results, strict=True):
        search = searched(tmp_path / "one", made, size)
        names, numbers = found(search)
        assert (size == "auto") == any(name.startswith("loss of ") for name in numbers)
        assert whole[0] == again[0] == names, made.__name__
        assert apart(numbers, whole[1]) == {}
        assert [name for name, value in whole[1].items() if not torch.equal(value, again[1][name])] == []
        search.save_model(str(tmp_path / made.__name__))
        files.append((made.__name__, f"{made.__name__}.shards/found"))
        if made is classifier:
            assert apart(retrained(tmp_path / "retrained", search, made), final) == {}
            files.append(("retrained", f"{made.__name__}.shards/retrained"))
    for one, other in files:
        assert apart(*(load_file(tmp_path / own / "adapter_model.safetensors") for own in (one, other))) == {}
    assert found_for_others(tmp_path / "others") == others
