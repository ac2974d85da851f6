"""Tiny models and tokenizers, built from configurations."""

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    set_seed,
)

from tests.helpers.rows import WORDS


def tiny_roberta(**changes):
    config = dict(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return RobertaForSequenceClassification(RobertaConfig(**{**config, **changes}))


def tiny_gpt2(**changes):
    config = dict(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(GPT2Config(**{**config, **changes}))


def tiny_llama(kind=LlamaForCausalLM, config_of=LlamaConfig, **changes):
    config = dict(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    return kind(config_of(**{**config, **changes}))


def lora(model, rank=4, targets=("query", "value"), **changes):
    """`model` under a LoRA adapter whose B is not zero: the state of a model that has been trained for a while."""
    config = {"task_type": "SEQ_CLS", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), **changes}
    model = get_peft_model(model, LoraConfig(**config))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def tiny_checkpoint(folder, **changes):
    """A RoBERTa of 16 dimensions with a word-level tokenizer, saved as a checkpoint that scripts can load."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos": "<s>",
        "eos": "</s>",
        "cls": "<s>",
        "sep": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{k}_token": v for k, v in names.items()})
    fast.save_pretrained(folder)
    set_seed(0)
    tiny_roberta(**{"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, **changes}).save_pretrained(
        folder
    )
    return str(folder)


def tiny_tokenizer():
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "sat", "dog", "ran"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=32,
    )


SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FEW = {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
OWN_TOKENS = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
NARROW = {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 40}
FAMILIES = {
    "roberta": tiny_roberta,
    "roberta tokens": lambda: RobertaForTokenClassification(tiny_roberta().config),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=32)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**FEW)),
    "modernbert": lambda: ModernBertForSequenceClassification(
        ModernBertConfig(**SMALL, **OWN_TOKENS, intermediate_size=32)
    ),
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, **NARROW)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=32)),
}


# ---- models of texts: a token a byte, and weights far from zero, so that texts differ


def byte_llama(**changes):
    config = {
        "vocab_size": 258,
        "max_position_embeddings": 200,
        "initializer_range": 0.5,
        "pad_token_id": None,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    return tiny_llama(**{**config, **changes})


def byte_gpt2(**changes):
    config = {
        "vocab_size": 257,
        "n_positions": 200,
        "initializer_range": 0.5,
        "bos_token_id": 256,
        "eos_token_id": 256,
    }
    return tiny_gpt2(**{**config, **changes})


def byte_tokenizer(llama=False):
    """One token a byte, as in GPT-2's vocabulary, and one that is start and end; as Llama: one more, put in front."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    names = {"bos_token": "<s>", "eos_token": "</s>"} if llama else dict.fromkeys(("bos_token", "eos_token"), "<end>")
    tokenizer = Tokenizer(
        models.BPE({**vocabulary, **{n: 256 + i for i, n in enumerate(dict.fromkeys(names.values()))}}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if llama:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def padded(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
