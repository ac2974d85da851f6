"""Query and value of a fused projection keep ranks of their own, from the search to a merged model."""

import copy
import io
import tempfile

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MptConfig,
    MptForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
    Trainer,
)
from transformers.pytorch_utils import Conv1D

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks, compress
from autolora_trainer.lora.fused import add_lora, out_features, part_rows, resolve_targets, split_parts
from autolora_trainer.lora.parts import lora_layers, lora_parts
from autolora_trainer.methods.base import count_parameters
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.grid import rank_grid
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.search.handover import start_from
from autolora_trainer.search.selection import attach_gates
from tests.helpers.models import tiny_gpt2, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import short_training

CONFIG = LoraConfig(task_type="CAUSAL_LM", lora_alpha=8)
FUSED = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
RANKS = LearnedRanks(
    {
        f"{FUSED[0]}#q": ModuleRank(1),
        f"{FUSED[0]}#v": ModuleRank(3),
        f"{FUSED[1]}#q": ModuleRank(2),
        f"{FUSED[1]}#v": ModuleRank(0),
    },
    initial_rank=4,
)


def text_rows(count=32):
    data = rows(count)
    return Dataset.from_list([{**row, "labels": row["input_ids"]} for row in data])


def off_blocks(model) -> list[float]:
    """Largest magnitude of `lora_B` outside the blocks of the parts, per layer."""
    largest = []
    for layer in lora_layers(model).values():
        weight = layer.lora_B["default"].weight.detach().clone()
        start = 0
        for rank, own in layer.fused_parts["default"].values():
            weight[own, start : start + rank] = 0
            start += rank
        largest.append(weight.abs().max().item())
    return largest


def update_ranks(model) -> dict[str, int]:
    """The true rank of the update that every third of c_attn gets."""
    found = {}
    for name, layer in lora_layers(model).items():
        delta = layer.get_delta_weight("default")  # Conv1D: (n, 3 n)
        for part, block in zip("qkv", delta.split(16, dim=1)):
            found[f"{name}#{part}"] = int(torch.linalg.matrix_rank(block.double(), tol=1e-6))
    return found


def train(model, steps=12, **arguments):
    arguments = short_training(tempfile.mkdtemp(), max_steps=steps, **arguments)
    Trainer(model=model, args=arguments, train_dataset=text_rows()).train()
    return model


# ---- which rows belong to query, key and value


def test_thirds_of_gpt2_are_what_its_attention_splits():
    attention = tiny_gpt2().transformer.h[0].attn
    found = part_rows("h.0.attn.c_attn", 48, tiny_gpt2().config)
    x = torch.randn(1, 3, 16)
    query, key, value = attention.c_attn(x).split(attention.split_size, dim=2)  # as GPT2Attention.forward does
    for part, expected in zip("qkv", (query, key, value)):
        assert torch.equal(attention.c_attn(x)[..., found[part]], expected)


def tiny(kind):
    size = dict(vocab_size=64, hidden_size=16, num_attention_heads=4)
    return {
        "gpt_neox": lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(**size, num_hidden_layers=1, intermediate_size=32, max_position_embeddings=32)
        ),
        "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_head=4, n_layer=1)),
        "phi3": lambda: Phi3ForCausalLM(
            Phi3Config(**size, num_key_value_heads=2, num_hidden_layers=1, intermediate_size=32, pad_token_id=0)
        ),
        "gpt_neox_japanese": lambda: GPTNeoXJapaneseForCausalLM(
            GPTNeoXJapaneseConfig(**size, num_hidden_layers=1, intermediate_multiple_size=2)
        ),
        "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=64, d_model=16, n_heads=4, n_layers=1)),
        "openai-gpt": lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=16, n_head=4, n_layer=1)),
        "imagegpt": lambda: ImageGPTForCausalImageModeling(
            ImageGPTConfig(vocab_size=64, n_embd=16, n_head=4, n_layer=1)
        ),
        "modernbert": lambda: ModernBertForMaskedLM(
            ModernBertConfig(**size, num_hidden_layers=1, intermediate_size=32, pad_token_id=0)
        ),
        "falcon": lambda: FalconForCausalLM(FalconConfig(**size, num_hidden_layers=1)),
    }[kind]()


@pytest.mark.parametrize(
    "kind, target",
    [
        *((kind, "query_key_value") for kind in ("gpt_neox", "gpt_neox_japanese", "bloom")),
        ("phi3", "qkv_proj"),
        *((kind, "Wqkv") for kind in ("mpt", "modernbert")),
        *((kind, "c_attn") for kind in ("openai-gpt", "imagegpt")),
    ],
)
def test_rows_of_the_value_reach_the_output_without_the_scores(kind, target):
    """On a sequence of one token attention is the value itself: rows of q and k change nothing, rows of v do."""
    model = tiny(kind).eval()
    name, module = next((n, m) for n, m in model.named_modules() if n.endswith(target))
    found = part_rows(name, out_features(module), model.config)
    assert sorted(torch.cat(list(found.values())).tolist()) == list(range(out_features(module)))
    inputs = {"input_ids": torch.tensor([[5]])}
    with torch.no_grad():
        before = model(**inputs).logits
        for part in "qkv":
            changed = copy.deepcopy(model)
            weight = changed.get_submodule(name).weight
            weight = weight.T if isinstance(module, Conv1D) else weight
            weight[found[part]] += torch.randn(len(found[part]), weight.shape[1])
            same = torch.allclose(changed(**inputs).logits, before, atol=1e-6)
            assert same == (part != "v")


def test_a_layout_that_is_not_known_is_left_whole():
    model = tiny("falcon")
    assert resolve_targets(model, CONFIG) is None
    with pytest.raises(ValueError, match="has no parts that are known. Give the whole, 'query_key_value'"):
        add_lora(model, LoraConfig(target_modules=["query_key_value#q"]))


def test_layouts_go_by_the_model_and_not_by_the_name():
    codegen = CodeGenForCausalLM(CodeGenConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=4, rotary_dim=4))
    assert resolve_targets(codegen, CONFIG) is None  # four blocks of query, value and key
    settings = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 4}
    by_head = part_rows("c_attn", 48, GPTBigCodeConfig(**settings, multi_query=False))
    assert by_head["q"].tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 24, 25, 26, 27, 36, 37, 38, 39]
    shared = part_rows("c_attn", 24, GPTBigCodeConfig(**settings, multi_query=True))
    assert [shared[part].tolist() for part in "qkv"] == [[*range(16)], [*range(16, 20)], [*range(20, 24)]]


def test_gpt2_is_searched_by_query_and_value_unless_told_otherwise():
    assert resolve_targets(tiny_gpt2(), CONFIG) == {name: ["q", "v"] for name in FUSED}
    assert list(lora_parts(add_lora(tiny_gpt2(), LoraConfig(target_modules=["c_attn"])))) == FUSED
    chosen = LoraConfig(target_modules=["c_attn#v", "c_attn#k", "mlp.c_proj"])
    found = list(lora_parts(add_lora(tiny_gpt2(), chosen)))
    assert found[:3] == [f"{FUSED[0]}#k", f"{FUSED[0]}#v", "transformer.h.0.mlp.c_proj"]
    assert list(lora_parts(add_lora(tiny_roberta(), LoraConfig(target_modules=["query"]))))[0].endswith("query")


@pytest.mark.parametrize("targets", [None, ["c_attn#q", "c_attn#v"], ["c_attn#v", "c_fc"]])
@pytest.mark.parametrize(
    "left_out",
    [
        {"layers_to_transform": [1]},
        {"layers_to_transform": 1, "layers_pattern": "h"},
        {"exclude_modules": ["h.0.attn.c_attn"]},
        {"exclude_modules": r".*\.0\.attn.*"},
    ],
)
def test_modules_that_a_config_leaves_out_are_left_out(targets, left_out):
    """The same modules as in PEFT, which knows no parts."""
    whole = [target.partition("#")[0] for target in targets or ["c_attn"]]
    expected = lora_layers(get_peft_model(tiny_gpt2(), LoraConfig(target_modules=whole, **left_out)))
    built = add_lora(tiny_gpt2(), LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **left_out))
    assert list(lora_layers(built)) == list(expected) and FUSED[0] not in expected
    assert f"{FUSED[1]}#v" in lora_parts(built)


def test_a_config_that_leaves_every_module_out_is_refused():
    with pytest.raises(ValueError, match="leave none of c_attn#q, c_attn#v in GPT2LMHeadModel. Leave out less."):
        add_lora(tiny_gpt2(), LoraConfig(exclude_modules=["c_attn"]))


@pytest.mark.parametrize("size, heads", [(16, 2), (48, 2), (768, 12)])
def test_cross_attention_has_no_query_in_its_fused_projection(size, heads):
    settings = dict(n_embd=size, n_head=heads, n_layer=1, add_cross_attention=True)
    model, crossed = tiny_gpt2(**settings), "transformer.h.0.crossattention.c_attn"  # [k | v]
    assert resolve_targets(model, CONFIG) == {FUSED[0]: ["q", "v"], crossed: []}
    assert list(lora_parts(add_lora(model, CONFIG))) == [f"{FUSED[0]}#q", f"{FUSED[0]}#v", crossed]
    with pytest.raises(ValueError, match="crossattention.c_attn', which has no parts that are known"):
        add_lora(tiny_gpt2(**settings), LoraConfig(target_modules=["c_attn#q"]))


@pytest.mark.parametrize(
    "target, sentence",
    [("c_attn#x", "which has q, k, v. Give the whole"), ("nothing#q", "'nothing' not found")],
)
def test_parts_that_are_not_there_are_refused(target, sentence):
    with pytest.raises(ValueError, match=sentence):
        add_lora(tiny_gpt2(), LoraConfig(target_modules=[target]))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_every_component_has_the_scale_of_an_unfused_lora(use_rslora):
    model = add_lora(tiny_gpt2(), LoraConfig(lora_alpha=8, use_rslora=use_rslora), rank=4)
    assert {part.scaling for part in lora_parts(model).values()} == {4.0 if use_rslora else 2.0}


# ---- search


def test_gates_scale_every_part_by_its_own_variables():
    model = add_lora(tiny_gpt2(), CONFIG, rank=2)
    for part in lora_parts(model).values():
        part.set_lora_B(torch.randn(part.shape[0], 2))
    plain = copy.deepcopy(model)
    gates = attach_gates(model)
    assert gates.names == [f"{name}#{part}" for name in FUSED for part in "qv"]
    with torch.no_grad():
        gates.logits.copy_(torch.randn(4, 2))
        gates.refresh()
        for row, part in enumerate(lora_parts(plain).values()):
            part.set_lora_B(part.lora_B * gates.selection[row])
        ids = torch.randint(0, 64, (2, 6))
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-6)
        gates.bake()
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-6)
    assert off_blocks(model) == [0.0, 0.0]


def test_a_search_learns_ranks_for_query_and_value_apart(tmp_path):
    arguments = short_training(
        tmp_path,
        AutoLoraTrainingArguments,
        max_steps=8,
        initial_rank=2,
        hypergradient="finite_difference",
        hypergradient_interval=1,
        selection_learning_rate=0.1,
    )
    trainer = AutoLoraTrainer(model=tiny_gpt2(), args=arguments, train_dataset=text_rows(), peft_config=CONFIG)
    trainer.train()
    assert list(trainer.learned_ranks.ranks) == [f"{name}#{part}" for name in FUSED for part in "qv"]
    assert off_blocks(trainer.model) == [0.0, 0.0]
    assert rank_grid(trainer.learned_ranks.ranks)[0] == ["c_attn#q", "c_attn#v"]


# ---- export: one ordinary LoRA


def test_ranks_of_query_and_value_survive_training_saving_loading_and_merging(tmp_path):
    base = tiny_gpt2()
    model = train(build_adapter(copy.deepcopy(base), RANKS, CONFIG))
    assert off_blocks(model) == [0.0, 0.0]
    wanted = {f"{name}#{part}": 0 for name in FUSED for part in "qkv"} | RANKS.ranks
    assert update_ranks(model) == wanted
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)  # without this package
    assert update_ranks(loaded) == wanted
    ids = torch.randint(0, 64, (2, 6))
    with torch.no_grad():
        expected = model.eval()(ids).logits
        assert torch.equal(loaded.eval()(ids).logits, expected)
        assert torch.allclose(loaded.merge_and_unload()(ids).logits, expected, atol=1e-5)


def test_the_exported_adapter_has_one_scale_and_a_rank_that_servers_take():
    model = build_adapter(tiny_gpt2(), RANKS, CONFIG)
    config = model.peft_config["default"]
    assert (
        {layer.scaling["default"] for layer in lora_layers(model).values()}
        == {config.lora_alpha / config.r}
        == {8 / 2}  # ranks 1, 3 and 2
    )
    assert config.r == 4 and lora_rank_for_servers(RANKS.ranks) == 8
    assert config.peft_type == "LORA" and sorted(config.rank_pattern.values()) == [2, 4]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_paper_scaling_gives_a_fused_module_the_scale_of_its_mean_rank(use_rslora):
    config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=8, use_rslora=use_rslora)
    model = build_adapter(tiny_gpt2(), RANKS, config, scaling="paper")
    expected = 8 / 2**0.5 if use_rslora else 8 / 2  # ranks 1 and 3 together; 2 alone
    assert [layer.scaling["default"] for layer in lora_layers(model).values()] == pytest.approx([expected] * 2)


def test_a_retrain_of_the_whole_says_that_the_search_kept_parts():
    kept = {f"{letter}.{name}": torch.zeros(1, 16) for name in RANKS.ranks for letter in "AB"}
    with pytest.raises(ValueError, match="kept parts of 'transformer.h.0.attn.c_attn', .*build_adapter"):
        start_from(kept, get_peft_model(tiny_gpt2(), RANKS.to_lora_config(CONFIG)))


def test_effective_parameters_count_no_zeros():
    model = build_adapter(tiny_gpt2(), RANKS, CONFIG)
    assert count_parameters(model) == ((1 + 3 + 2) * (16 + 16), 0)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == (4 + 2) * (16 + 48)


def test_a_resumed_training_keeps_the_zeros(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 6, "seed": 3}

    def trainer(steps):
        settings = short_training(
            tmp_path, max_steps=steps, lr_scheduler_type="constant", weight_decay=0.0, **arguments
        )
        torch.manual_seed(0)
        model = build_adapter(tiny_gpt2(), RANKS, CONFIG)
        return Trainer(model=model, args=settings, train_dataset=text_rows())

    whole = trainer(12)
    whole.train()
    resumed = trainer(12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert off_blocks(resumed.model) == [0.0, 0.0]
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters()):
        assert torch.equal(a, b), name


def test_ranks_of_another_model_are_refused():
    ranks = LearnedRanks({"roberta.encoder.layer.0.attention.self.query#q": ModuleRank(1)})
    with pytest.raises(ValueError, match="has no part q in RobertaForSequenceClassification"):
        build_adapter(tiny_roberta(), ranks, LoraConfig(task_type="SEQ_CLS"))


# ---- zeros are part of the module


def trained_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, trained_whole, lambda m: trained_whole(copy.deepcopy(m))])
def test_a_copy_keeps_the_zeros_when_it_is_trained(copied):
    model = build_adapter(tiny_gpt2(), RANKS, CONFIG)
    before = [part.lora_B.clone() for part in lora_parts(model).values()]
    twin = train(copied(model), weight_decay=0.1)
    assert off_blocks(twin) == [0.0, 0.0]
    assert all((part.lora_B != 0).any() for part in lora_parts(twin).values())
    assert all(torch.equal(part.lora_B, b) for part, b in zip(lora_parts(model).values(), before))
    twin.load_state_dict({name: torch.ones_like(value) for name, value in twin.state_dict().items()})
    assert off_blocks(twin) == [0.0, 0.0]


def test_an_adapter_of_plain_peft_trains_on_with_its_parts_apart(tmp_path):
    base = tiny_gpt2()
    train(build_adapter(copy.deepcopy(base), RANKS, CONFIG)).save_pretrained(tmp_path)
    RANKS.save(tmp_path / "ranks.json")
    loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    split_parts(loaded, LearnedRanks.from_pretrained(tmp_path).ranks)
    assert off_blocks(train(loaded)) == [0.0, 0.0]


def test_a_compressed_adapter_of_parts_loads_with_its_parts_apart(tmp_path):
    model = train(build_adapter(tiny_gpt2(), RANKS, CONFIG))
    small = compress(model, rank=1)
    assert any("#" in name for name in small.ranks.modules)
    loaded = small.load(tiny_gpt2())
    loaded.peft_config["default"].inference_mode = False
    loaded.set_adapter("default")
    assert off_blocks(train(loaded)) == [0.0, 0.0]
