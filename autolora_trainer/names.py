"""Names of modules, of the parts of a fused projection (`…c_attn#q`), and of the tensors in an adapter's file."""

import re
from collections.abc import Collection, Iterable

SEPARATOR = "#"
MODULE = re.compile(r"[\w.\-#]{1,500}")  # what files may call a module: letters of any script, no paths, no patterns
WRAPPED = "base_layer"  # what PEFT calls a module within a wrapper
LEADS_OUT = re.compile(r"down|out|w2|wo")  # of the weights of experts, those that models mostly have last
PREFIX = "base_model.model."  # of the names in a file of PEFT's
# groups: module, `embedding_` or nothing, A or B
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)?(?:\.weight)?")


def module_of(name: str) -> str:
    """`h.0.attn.c_attn#q` -> `h.0.attn.c_attn`."""
    return name.partition(SEPARATOR)[0]


def named(names: Collection[str]) -> str:
    """How names are said: `'h.0.q'`, or `'h.0.q' and 5 more`."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{next(iter(names))!r}{more}"


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


def file_names(names: Iterable[str], parameters: Collection[str]) -> dict[str, str]:
    """{module or parameter: the module in an adapter's file that has its factors}. PEFT wraps a module once for every
    parameter of it that is adapted, the first innermost.

    Args:
        parameters: those of `names` that are none of modules, in the order of wrapping.
    Example:
        >>> list(file_names(["q", "experts.up", "experts.down"], ["experts.up", "experts.down"]).values())
        ['q', 'experts.base_layer', 'experts']
    """
    owned: dict[str, list[str]] = {}
    for name in parameters:
        owned.setdefault(name.rpartition(".")[0], []).append(name)

    def within(module):  # the wrappers of modules around it
        parts, found = module.split("."), []
        for end, part in enumerate(parts, 1):
            found.append(part)
            found += [WRAPPED] * len(owned.get(".".join(parts[:end]), ())) if end < len(parts) else []
        return ".".join(found)

    found, known = {}, set(parameters)
    for name in names:
        if name in known:
            owner = name.rpartition(".")[0]
            outside = len(owned[owner]) - 1 - owned[owner].index(name)
            found[name] = ".".join([within(owner), *[WRAPPED] * outside])
        else:
            found[name] = within(name)
    return found


def wrapped(modules: Iterable[str], given: Iterable[str]) -> list[tuple[list[str], list[str]]]:
    """The modules in an adapter's file that wrap one module of the model, the innermost first; and its parameters that
    they are of, those first that are mostly named first, as the file does not tell which is which.

    Args:
        modules: all that the file has.
        given: `target_parameters`, which may be ends of names; modules of which they do not tell are left out.
    Example:
        >>> wrapped(["q", "experts", "experts.base_layer"], ["experts.down_proj", "experts.up_proj"])
        [(['experts.base_layer', 'experts'], ['experts.up_proj', 'experts.down_proj'])]
    """
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(".".join(part for part in module.split(".") if part != WRAPPED), []).append(module)
    ends: dict[str, set[str]] = {}
    for name in given:
        owner, _, leaf = name.rpartition(".")
        ends.setdefault(owner, set()).add(leaf)
    found = []
    for owner, own in groups.items():
        parts = owner.split(".")
        leaves = set().union(*(ends.get(".".join(parts[start:]), ()) for start in range(len(parts))))
        if not leaves and (len(own) > 1 or "expert" in parts[-1]):
            leaves = ends.get("", set())
        if len(leaves) == len(own):
            ordered = sorted(leaves, key=lambda leaf: (bool(LEADS_OUT.search(leaf)), leaf))
            found.append((sorted(own, key=len, reverse=True), [f"{owner}.{leaf}" for leaf in ordered]))
    return found


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
