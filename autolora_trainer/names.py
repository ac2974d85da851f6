"""Names of modules, of the parts of a fused projection (`…c_attn#q`), and of the tensors in an adapter's file."""

import re

SEPARATOR = "#"
PREFIX = "base_model.model."  # of the names in a file of PEFT's
# groups: module, `embedding_` or nothing, A or B
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)?(?:\.weight)?")


def module_of(name: str) -> str:
    """`h.0.attn.c_attn#q` -> `h.0.attn.c_attn`."""
    return name.partition(SEPARATOR)[0]
