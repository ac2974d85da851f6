"""Frozen weights in 8 or 4 bits, as bitsandbytes holds them."""

import importlib.util

from transformers import BitsAndBytesConfig


def check_bitsandbytes(bits: int | None) -> None:
    """Raise `ValueError` where weights are asked for in 8 or 4 bits, and bitsandbytes is not installed."""
    if bits is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"--load_in_{bits}bit needs bitsandbytes, which is not installed. Type "
            'pip install ".[quantization]", or drop it.'
        )


def quantization(bits: int | None, compute_dtype: str) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds frozen weights, for `from_pretrained`; heads stay as they are, since they are trained or
    tied.

    Args:
        bits: 8, 4 (NF4, as of QLoRA, Dettmers et al. 2023), or None for weights as they are.
        compute_dtype: of products with weights of 4 bits: float32 or bfloat16.
    """
    if bits is None:
        return None
    return BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=["classifier", "score", "lm_head"],
    )
