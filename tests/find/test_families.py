"""One call on models that are no language models, or have no attention: pictures, sounds, states."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from autolora_trainer.find.rank_search import RankSearch
from autolora_trainer.lora.parts import lora_parts
from tests.helpers.trainings import short_training

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SOUND = {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4), "num_conv_pos_embedding_groups": 2}
SPEECH = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8,
    "max_source_positions": 8, "vocab_size": 64, "max_target_positions": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
FAMILIES = {  # (model, one row without labels, whether it writes, the modules that PEFT is to adapt)
    "ViT": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=2)),
        {"pixel_values": (3, 8, 8)}, False, "all-linear",
    ),
    "wav2vec2": (
        lambda: hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(
            **SIZES, **SOUND, num_feat_extract_layers=2, num_conv_pos_embeddings=4, classifier_proj_size=8,
            num_labels=2, apply_spec_augment=False,
        )),
        {"input_values": (160,)}, False, "all-linear",
    ),
    "Whisper": (
        lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**SPEECH)),
        {"input_features": (8, 16)}, True, ["q_proj", "v_proj", "fc1"],
    ),
    "Mamba": (
        lambda: hf.MambaForCausalLM(hf.MambaConfig(
            vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1, pad_token_id=0, use_mambapy=False
        )),
        {}, True, ["in_proj", "x_proj"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_of_a_family(tmp_path, family):
    build, shapes, writes, targets = FAMILIES[family]
    torch.manual_seed(0)
    model, data = build(), []
    for index in range(24):
        row = {name: torch.randn(shape) + index % 2 for name, shape in shapes.items()}
        row["labels"] = torch.randint(3, 60, (6,)) if writes else index % 2
        data.append({"input_ids": row["labels"], **row} if not shapes else row)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = LoraConfig(target_modules=targets, lora_alpha=16)
    args = short_training(tmp_path, per_device_train_batch_size=4, lr_scheduler_type="constant")
    search = RankSearch(model, data, config, args=args, initial_rank=4, search_steps=6, size="lora:1").run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    ranks = {name: rank for name, rank in search.ranks.ranks.items() if rank}
    assert ranks and set(search.ranks.ranks) == set(lora_parts(get_peft_model(build(), config)))
    assert {name: part.rank for name, part in lora_parts(get_peft_model(model, search.config)).items()} == ranks
    assert all(any(module.contributions) for module in search.ranks.modules.values())
