"""Llama, Qwen, Mistral, Gemma and their like: all linear layers, bf16, checkpoints, long texts, quantized weights."""

import importlib.util
import json
import weakref

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Trainer,
)

import run_glue
import run_nlg
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks
from autolora_trainer.compat import CHECKPOINTING
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_layers, lora_parts
from autolora_trainer.ranks.adapter import QUANTIZED, build_adapter, fingerprint, is_other_model
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.search.selection import attach_gates
from autolora_trainer.training.passes import fix_loss_scale
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import as_argv, write_sst2
from tests.helpers.models import byte_llama, byte_tokenizer, tiny_gpt2
from tests.helpers.rows import rows, write_rows
from tests.helpers.trainings import short_training

SIZES = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
# 4 bit on a CPU with bf16: outputs in blocks of 32, inputs in blocks of 64
WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
SHARED_HEADS = {"num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **SHARED_HEADS),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SIZES, **SHARED_HEADS),
    "mistral": MistralConfig(**SIZES, **SHARED_HEADS, sliding_window=8),
    "gemma": GemmaConfig(**SIZES, **SHARED_HEADS),
    "gemma2": Gemma2Config(**SIZES, **SHARED_HEADS, sliding_window=8),
    "gpt_neox": GPTNeoXConfig(**SIZES, hidden_dropout=0.0, attention_dropout=0.0),
    "phi3": Phi3Config(**SIZES, num_key_value_heads=1),
}
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def tiny(kind, **changes):
    """A causal language model of two blocks, with weights far from zero."""
    torch.manual_seed(0)
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), "initializer_range": 0.2, **changes})
    return AutoModelForCausalLM.from_config(config)


def texts(count=32, length=10):
    data = rows(count, length)
    return Dataset.from_list([{**row, "labels": row["input_ids"]} for row in data])


def searcher(folder, model, targets="all-linear", data=None, rank=4, **changes):
    settings = {"max_steps": 4, "initial_rank": rank, "hypergradient_interval": 2, "val_fraction": 0.5, **changes}
    args = short_training(folder, AutoLoraTrainingArguments, **settings)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, lora_alpha=8)
    return AutoLoraTrainer(model, args, train_dataset=data or texts(), peft_config=config)


def retrain(folder, model, data=None, **changes):
    trainer = FinalTrainer(
        model, short_training(folder, **{"max_steps": 2, **changes}), train_dataset=data or texts(8)
    )
    fix_loss_scale(trainer).train()
    return trainer


def layer_kinds(model):
    return {name.rpartition(".")[2] for name in lora_layers(model)}


# ---- from search to adapter


@pytest.mark.parametrize(
    "kind, targets, kinds",
    [
        ("llama", "all-linear", SEVEN),
        ("llama", ["q_proj", "v_proj", "down_proj"], {"q_proj", "v_proj", "down_proj"}),
        ("qwen2", "all-linear", SEVEN),
        ("qwen3", "all-linear", SEVEN),
        ("mistral", "all-linear", SEVEN),
        ("gemma", "all-linear", SEVEN),
        ("gemma2", "all-linear", SEVEN),
        ("gpt_neox", "all-linear", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("phi3", "all-linear", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("phi3", ["qkv_proj#q", "qkv_proj#v", "o_proj"], {"qkv_proj#q", "qkv_proj#v", "o_proj"}),
    ],
)
def test_search_retrain_and_saved_adapter(tmp_path, kind, targets, kinds):
    trainer = searcher(tmp_path, tiny(kind), targets)
    trainer.train()
    ranks = trainer.learned_ranks
    assert {name.rpartition(".")[2] for name in ranks.ranks} == kinds and len(ranks.ranks) == 2 * len(kinds)
    adapted = build_adapter(tiny(kind), ranks, LoraConfig(task_type="CAUSAL_LM"))
    built = {name: part.rank for name, part in lora_parts(adapted).items()}
    assert built == {name: rank for name, rank in ranks.ranks.items() if rank}
    retrain(tmp_path, adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny(kind), tmp_path / "adapter").eval()
    ids = torch.tensor([texts(1)[0]["input_ids"]])
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
        assert not torch.allclose(tiny(kind).eval()(ids).logits, expected, atol=1e-4)  # it has learned something


def test_module_without_a_rank_stays_out_of_the_adapter(tmp_path):
    """A budget of three components of the attention for fourteen modules: most of them must go."""
    model = tiny("llama")
    trainer = searcher(tmp_path, model, size="120", min_rank=0)
    costs = {name: part.cost for name, part in lora_parts(trainer.model).items()}
    trainer.train()
    ranks = trainer.learned_ranks
    left_out = {name for name, rank in ranks.ranks.items() if rank == 0}
    assert 0 < len(left_out) < 14 and sum(costs[n] * r for n, r in ranks.ranks.items()) <= 120
    adapted = build_adapter(tiny("llama"), ranks, LoraConfig(task_type="CAUSAL_LM"))
    assert set(lora_layers(adapted)) == set(ranks.ranks) - left_out
    assert adapted.peft_config["default"].target_modules == set(ranks.ranks) - left_out
    adapted.save_pretrained(tmp_path / "adapter")
    assert set(lora_layers(PeftModel.from_pretrained(tiny("llama"), tmp_path / "adapter"))).isdisjoint(left_out)


# ---- through the script


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A Llama of bytes and rows of data with their texts."""
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    byte_llama(initializer_range=0.1, hidden_size=32).save_pretrained(folder / "llama")
    byte_llama(initializer_range=0.1, **WIDE).save_pretrained(folder / "wide")
    for name in ("llama", "wide"):
        byte_tokenizer(llama=True).save_pretrained(folder / name)
    data = [{"input": f"name : {n}", "reference": f"{n} is a pub ."} for n in "Alba Bora Cena Dori Etna Fano".split()]
    write_rows(folder / "rows.jsonl", data * 4)
    write_rows(folder / "dev.jsonl", data[:2])
    return folder


def script(place, output, **changes):
    settings = {
        "model_name_or_path": place / "llama",
        "train_file": place / "rows.jsonl",
        "validation_file": place / "dev.jsonl",
        "output_dir": output,
        "lora_target_modules": "all-linear",
        "min_rank": 0,
        "size": 600,
        "initial_rank": 4,
        "search_max_steps": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "decode": False,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return as_argv({**settings, **changes})


def test_script_chooses_the_layers_of_a_bf16_llama(place, tmp_path):
    results = run_nlg.main(script(place, tmp_path, dtype="bfloat16"))
    ranks = LearnedRanks.load(tmp_path / "ranks.json")
    assert len(ranks.ranks) == 14 and 0 in ranks.ranks.values() and results["adapter_params"] <= 600
    with open(tmp_path / "adapter_config.json", encoding="utf-8") as file:
        targets = json.load(file)["target_modules"]
    assert sorted(targets) == sorted(name for name, rank in ranks.ranks.items() if rank)
    loaded = AutoModelForCausalLM.from_pretrained(place / "llama", dtype="bfloat16")
    assert {p.dtype for n, p in PeftModel.from_pretrained(loaded, tmp_path).named_parameters() if "lora" in n} == {
        torch.float32
    }


# ---- precision and memory


def hypergradient_of(model, folder):
    """The first-order hypergradient of an adapter that has learned something, on the same rows."""
    torch.manual_seed(0)
    trainer = searcher(folder, model, data=texts(16), max_steps=1)
    generator = torch.Generator().manual_seed(1)
    for part in trainer.gates.parts.values():
        part.set_lora_B(0.1 * torch.randn(part.lora_B.shape, generator=generator))
    trainer.create_optimizer()
    trainer._window.append(None)
    return trainer, trainer._hypergradient(None).direct


def test_bf16_base_is_searched_in_fp32(tmp_path):
    """The frozen weights are rounded, and β, α and the LoRA weights are not: the hypergradient is nearly that of the
    same weights in fp32."""
    rounded = tiny("llama").to(torch.bfloat16)
    _, exact = hypergradient_of(tiny("llama").to(torch.bfloat16).float(), tmp_path)
    trainer, direct = hypergradient_of(rounded, tmp_path)
    assert trainer.gates.logits.dtype == trainer.gates.selection.dtype == direct.dtype == torch.float32
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert torch.isfinite(direct).all()
    assert torch.nn.functional.cosine_similarity(direct.flatten(), exact.flatten(), dim=0) > 0.99
    trainer.train()
    assert torch.isfinite(trainer.gates.logits).all() and (trainer.gates.logits != 0).any()


@pytest.mark.parametrize("hypergradient", ["first_order", "finite_difference"])
def test_activation_checkpointing_changes_nothing(tmp_path, hypergradient):
    found = []
    for checkpointing in (False, True):
        settings = {CHECKPOINTING: checkpointing, "hypergradient": hypergradient}
        trainer = searcher(tmp_path, tiny("llama"), **settings)
        trainer.train()
        assert trainer.model.get_base_model().is_gradient_checkpointing == checkpointing
        contributions = [module.contributions for module in trainer.learned_ranks.modules.values()]
        found.append((trainer.gates.logits.detach(), torch.tensor(contributions), trainer.learned_ranks.ranks))
    for plain, checkpointed in zip(found[0][:2], found[1][:2]):
        assert plain.abs().max() > 0 and torch.allclose(plain, checkpointed, atol=1e-6, rtol=0)
    assert found[0][2] == found[1][2]


def test_reentrant_checkpoints_train_the_same_adapter(tmp_path):
    ranks = LearnedRanks({name: ModuleRank(2) for name in lora_layers(adapt_all(tiny("llama")))})
    trained = []
    for kwargs in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        torch.manual_seed(1)
        adapted = build_adapter(tiny("llama"), ranks, LoraConfig(task_type="CAUSAL_LM"))
        checkpoints = {CHECKPOINTING: kwargs is not None, f"{CHECKPOINTING}_kwargs": kwargs}
        retrain(tmp_path, adapted, max_steps=3, **checkpoints)
        trained.append(torch.cat([p.detach().flatten() for p in adapted.parameters() if p.requires_grad]))
    for checkpointed in trained[1:]:
        assert torch.allclose(checkpointed, trained[0], atol=1e-6, rtol=0)


def adapt_all(model, rank=4):
    return add_lora(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"), rank=rank)


def test_sequences_of_1024_tokens(tmp_path):
    model = tiny("llama", num_hidden_layers=1, max_position_embeddings=1024)
    data = texts(4, 1024)
    trainer = searcher(tmp_path, model, data=data, max_steps=6, per_device_train_batch_size=2)
    trainer.train()
    assert len(data[0]["input_ids"]) == 1024 and (trainer.gates.logits != 0).any()


class PeakBytes(TorchDispatchMode):
    """Bytes of all tensors made inside and still alive, at most."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, lambda tensor: self._count(tensor.untyped_storage()), output)
        return output

    def _count(self, storage):
        if storage._cdata not in self.alive:
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key, size):
        self.alive.discard(key)
        self.now -= size


def test_peak_memory_is_that_of_plain_lora_of_rank_k(tmp_path):
    """Activations, gradients and optimizers of three steps, of which each takes a selection step; width 512."""
    wide = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128, "num_attention_heads": 4}
    data, peaks = texts(24, 48), []
    plain = Trainer(
        adapt_all(tiny("llama", **wide), rank=8), short_training(tmp_path, max_steps=3), train_dataset=data
    )
    search = searcher(tmp_path, tiny("llama", **wide), data=data, rank=8, max_steps=3, hypergradient_interval=1)
    for trainer in (plain, search):
        with PeakBytes() as memory:
            trainer.train()
        peaks.append(memory.peak)
    assert peaks[1] < 1.03 * peaks[0], peaks


def test_search_holds_little_beside_the_weights_of_plain_lora(tmp_path):
    """Tensors of the search: β, α and AdamW's two moments, (M, k) each; and, as of any Trainer of ours, the state of a
    generator, 5 KB."""
    trainer = searcher(tmp_path, tiny("llama", hidden_size=64, intermediate_size=192), rank=8)
    plain = adapt_all(tiny("llama", hidden_size=64, intermediate_size=192), rank=8)
    trainer.train()
    trainable = sum(p.numel() for p in plain.parameters() if p.requires_grad)
    assert sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) == trainable
    moments = [t for state in trainer.selection_optimizer.state.values() for t in state.values()]
    own = [
        trainer.gates.logits,
        trainer.gates.selection,
        *moments,
        *held_tensors(trainer),
        *held_tensors(trainer.means),
    ]
    assert sum(t.numel() for t in own) < 0.05 * 3 * trainable  # weight and its two moments


def held_tensors(thing):
    values = [value for value in vars(thing).values() if isinstance(value, torch.Tensor)]
    return [value for value in values if value.is_floating_point()]


# ---- quantized bases

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    tiny("llama", **WIDE).save_pretrained(folder / "llama")
    tiny_gpt2(n_embd=64, initializer_range=0.2).save_pretrained(folder / "gpt2")
    return folder


def load(folder, bits=None):
    settings = {f"load_in_{bits}bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
    quantized = BitsAndBytesConfig(**settings) if bits else None
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", quantization_config=quantized)


@needs_bitsandbytes
@pytest.mark.parametrize("kind, targets", [("llama", "all-linear"), ("gpt2", None)])
@pytest.mark.parametrize("bits", [4, 8])
def test_search_on_a_quantized_base(checkpoints, tmp_path, kind, targets, bits):
    """Gates work, ranks come out, and the adapter trained on the quantized base loads on the unquantized one."""
    base = load(checkpoints / kind, bits)
    quantized = [name for name, module in base.named_modules() if "bit" in type(module).__name__]
    assert len(quantized) == (14 if kind == "llama" else 8)
    trainer = searcher(tmp_path, base, targets)
    assert all(type(layer).__module__ == "peft.tuners.lora.bnb" for layer in trainer.gates.layers.values())
    trainer.train()
    assert torch.isfinite(trainer.gates.logits).all() and (trainer.gates.logits != 0).any()
    ranks, config = trainer.learned_ranks, LoraConfig(task_type="CAUSAL_LM")
    plain = add_lora(load(checkpoints / kind), LoraConfig(task_type="CAUSAL_LM", target_modules=targets), rank=1)
    costs = [{name: part.cost for name, part in lora_parts(model).items()} for model in (plain, trainer.model)]
    assert costs[0] == costs[1]
    adapted = build_adapter(load(checkpoints / kind, bits), ranks, config)
    retrain(tmp_path, adapted, max_steps=8)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(checkpoints / kind), tmp_path / "adapter").eval()
    rounded, exact = effect(adapted), effect(loaded)
    similarity = torch.nn.functional.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0)
    assert exact.norm() > 0 and similarity > (0.8 if bits == 4 else 0.99)


@torch.no_grad()
def effect(adapted):
    """What the adapter adds to the logits of a row, (tokens, vocabulary)."""
    ids = torch.tensor([texts(1)[0]["input_ids"]])
    logits = adapted.eval()(ids).logits
    with adapted.disable_adapter():
        return (logits - adapted(ids).logits)[0]


@needs_bitsandbytes
def test_gates_on_a_quantized_base_multiply_the_components(checkpoints):
    adapted = adapt_all(load(checkpoints / "llama", 4))
    generator = torch.Generator().manual_seed(1)
    for part in lora_parts(adapted).values():
        part.set_lora_B(0.1 * torch.randn(part.lora_B.shape, generator=generator))
    gates = attach_gates(adapted)
    with torch.no_grad():
        gates.selection.copy_(torch.rand(gates.selection.shape, generator=generator))
    ids = torch.tensor([texts(1)[0]["input_ids"]])
    with torch.no_grad():
        gated = adapted.eval()(ids).logits
        gates.bake()
        assert torch.allclose(adapted(ids).logits, gated, atol=1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_fingerprints_of_quantized_models(checkpoints, bits):
    """Of quantized models they tell checkpoints apart; between a quantized model and its original they say nothing."""
    original, quantized = load(checkpoints / "llama"), load(checkpoints / "llama", bits)
    names = [name for name in lora_layers(adapt_all(load(checkpoints / "llama")))]
    mark = fingerprint(quantized, names)
    assert mark.startswith(QUANTIZED) and mark == fingerprint(load(checkpoints / "llama", bits), names)
    assert mark == fingerprint(adapt_all(quantized), names)  # under an adapter, too
    other = tiny("llama", **WIDE, initializer_range=0.1)
    learned = {
        kind: LearnedRanks({n: ModuleRank(1) for n in names}, base_model_fingerprint=fingerprint(model, names))
        for kind, model in {"original": original, "quantized": quantized, "other": other}.items()
    }
    assert not any(is_other_model(learned[kind], original) for kind in ("original", "quantized"))
    assert not any(is_other_model(learned[kind], quantized) for kind in ("original", "quantized", "other"))
    assert is_other_model(learned["other"], original)
    changed = LearnedRanks(learned["quantized"].modules, base_model_fingerprint=QUANTIZED + "0" * 16)
    assert is_other_model(changed, quantized)


@needs_bitsandbytes
def test_script_on_a_4_bit_llama(place, tmp_path, capsys):
    """Search and retrain in 4 bit; what was learned evaluates alike when it is loaded again."""
    given = {"model_name_or_path": place / "wide", "do_eval": True}
    results = run_nlg.main(script(place, tmp_path, load_in_4bit=True, lora_dropout=0.0, do_train=True, **given))
    ranks = LearnedRanks.load(tmp_path / "ranks.json")
    assert ranks.base_model_fingerprint.startswith(QUANTIZED) and 0 < ranks.total_rank
    again = run_nlg.main(script(place, tmp_path, load_in_4bit=True, max_steps=None, **given))
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-5)
    whole = run_nlg.main(script(place, tmp_path, max_steps=None, **given))
    assert whole["eval_loss"] == pytest.approx(results["eval_loss"], abs=0.2)


@needs_bitsandbytes
def test_classifier_of_an_8_bit_encoder_stays_as_it_is(tmp_path):
    place = write_sst2(tmp_path)
    files = {f"{split}_file": place / f"{split}.jsonl" for split in ("train", "validation")}
    settings = {"task_name": "sst2", "model_name_or_path": place / "tiny-roberta", "use_cpu": True, **files}
    settings |= {"search_max_steps": 6, "max_steps": 4, "save_strategy": "no", "output_dir": place / "out"}
    results = run_glue.main(as_argv({**settings, "load_in_8bit": True}))
    assert results["head_params"] == 16 * 16 + 16 + 2 * 16 + 2 and LearnedRanks.load(place / "out" / "ranks.json")
    head = {n: t for n, t in load_file(place / "out" / "adapter_model.safetensors").items() if "classifier" in n}
    assert len(head) == 4 and {t.dtype for t in head.values()} == {torch.float32}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, "Drop one of the two"),
        ({"load_in_4bit": True, "method": "full"}, "--load_in_4bit is for LoRA, got --method full"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(place, tmp_path, capsys, changes, sentence):
    if changes.get("method") == "full" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    own = {"lora_target_modules": None, "size": None} if "method" in changes else {}
    assert run_guarded(lambda: run_nlg.main(script(place, tmp_path / "out", **own, **changes)), "run_nlg.py") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and sentence in error and not (tmp_path / "out").exists()


def test_missing_library_is_named(place, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(UsageError, match=r'--load_in_8bit needs bitsandbytes.*pip install "\.\[quant'):
        run_nlg.main(script(place, tmp_path, load_in_8bit=True))
