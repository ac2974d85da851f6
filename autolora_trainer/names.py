"""Names of modules, and of the parts of a fused projection: `…c_attn#q`."""

SEPARATOR = "#"


def module_of(name: str) -> str:
    """`h.0.attn.c_attn#q` -> `h.0.attn.c_attn`."""
    return name.partition(SEPARATOR)[0]
