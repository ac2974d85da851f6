"""Names of modules, of the parts of a fused projection (`…c_attn#q`), and of the tensors in an adapter's file."""

import re
from collections.abc import Iterable

SEPARATOR = "#"
MODULE = re.compile(r"[\w.\-#]{1,500}")  # what files may call a module: letters of any script, no paths, no patterns
PREFIX = "base_model.model."  # of the names in a file of PEFT's
# groups: module, `embedding_` or nothing, A or B
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)?(?:\.weight)?")


def module_of(name: str) -> str:
    """`h.0.attn.c_attn#q` -> `h.0.attn.c_attn`."""
    return name.partition(SEPARATOR)[0]


def factors(tensors: Iterable[str], saved: Iterable[str] | None = None) -> dict[str, re.Match]:
    """{name of a tensor in an adapter's file: its match of `TENSOR`}, of the factors of updates.

    Args:
        saved: `modules_to_save`, which may be called like factors.
    Example:
        >>> list(factors(["q.lora_A.weight", "x.lora_B.weight"], saved=["lora_B"]))
        ['q.lora_A.weight']
    """
    ends = tuple("." + name for name in saved or ())
    found = {name: match for name in tensors if (match := TENSOR.fullmatch(name))}
    return {n: m for n, m in found.items() if not f".{m[1]}.lora_{m[2] or ''}{m[3]}".endswith(ends)}


def check_names(names: Iterable[str]) -> None:
    """Raise `ValueError` for modules of a model whose names no file of ours could give back."""
    for name in names:
        if SEPARATOR in name:
            raise ValueError(
                f"{name!r} holds {SEPARATOR}, which stands before the parts of fused projections (c_attn#q). Rename "
                "the module, or leave it out of target_modules."
            )
        if not MODULE.fullmatch(name):
            raise ValueError(
                f"{name[:80]!r} is no name for ranks.json, which takes letters, digits and _ - . alone. Rename the "
                "module, or leave it out of target_modules."
            )
