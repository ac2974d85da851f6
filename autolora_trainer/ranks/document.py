"""The content of a ranks.json, which is data from elsewhere: everything in it is checked before any of it is used."""

from autolora_trainer.files import parse_json
from autolora_trainer.names import MODULE
from autolora_trainer.ranks.curve import Curve
from autolora_trainer.values import MAX_RANK

FORMAT_VERSION = 2  # 1 had neither contributions nor a curve, and is still read
MAX_MODULES, MAX_EXPERTS = 100_000, 65_536
NUMBERS = ("selection", "contributions")  # of a module, one a component
ADVICE = "Correct it, or give the ranks.json of a finished run."


def read_document(text: str, path) -> dict:
    """The fields of `LearnedRanks` in the text of a ranks.json, modules as {name: the fields of `ModuleRank`}.

    Raises:
        ValueError: one line that names the file and what is wrong with it.
    """
    try:
        if text.count('"rank"') > MAX_MODULES:  # before a second is spent on reading them
            raise ValueError(f"modules must be an object with at most {MAX_MODULES:,} module names")
        document = parse_json(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise ValueError(f"{path} is not a ranks.json: {error}. {ADVICE}") from None
    return _checked(document, path)


def is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _no_constant(name):
    raise ValueError(f"it holds {name}, which is no number")


def _no_duplicates(pairs):
    if len(mapping := dict(pairs)) < len(pairs):
        raise ValueError("it names something twice in one object")
    return mapping


def _checked(document, path) -> dict:
    """The fields of a ranks.json document, each of the right type and within bounds; else `ValueError`."""

    def wrong(what):
        return ValueError(f"{path} is not a valid ranks.json: {what}. {ADVICE}")

    if not isinstance(document, dict) or document.get("format_version") not in (1, FORMAT_VERSION):
        given = document.get("format_version") if isinstance(document, dict) else type(document).__name__
        raise wrong(f"format_version must be 1 or {FORMAT_VERSION}, got {given!r}"[:300])
    modules = document.get("modules")
    if not isinstance(modules, dict) or not 0 < len(modules) <= MAX_MODULES:
        raise wrong("modules must be an object with at least one module name")
    checked = {}
    for name, module in modules.items():
        if not MODULE.fullmatch(name):
            raise wrong(f"{name[:80]!r} is not a module name")
        rank = module.get("rank") if isinstance(module, dict) else None
        if type(rank) is not int or not 0 <= rank <= MAX_RANK:
            raise wrong(f"the rank of {name!r} must be an integer from 0 to {MAX_RANK}, got {rank!r}"[:300])
        lists = [module.get(what, []) for what in NUMBERS]
        for what, values in zip(NUMBERS, lists):
            if not isinstance(values, list) or len(values) > MAX_RANK:
                raise wrong(f"the {what} of {name!r} must be a list of numbers")
            if not all(map(is_number, values)):
                raise wrong(f"the {what} of {name!r} must hold finite numbers")
        experts = module.get("experts")
        if experts is not None and (type(experts) is not int or not 1 <= experts <= MAX_EXPERTS):
            raise wrong(f"the experts of {name!r} must be from 1 to {MAX_EXPERTS:,}, got {experts!r}"[:300])
        checked[name] = (rank, *(tuple(map(float, values)) for values in lists), experts)
    initial_rank = document.get("initial_rank", 8)
    if type(initial_rank) is not int or not 1 <= initial_rank <= MAX_RANK:
        raise wrong(f"initial_rank must be an integer from 1 to {MAX_RANK}, got {initial_rank!r}"[:300])
    threshold = document.get("threshold")
    fields = {"modules": checked, "initial_rank": initial_rank, "threshold": threshold}
    for name in ("base_model", "base_model_fingerprint", "constraint", "rank_rule"):
        value = document.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= 500 and value.isprintable()):
            raise wrong(f"{name} must be a short text on one line, got {type(value).__name__}")
        fields[name] = value
    if threshold is not None and not is_number(threshold):
        raise wrong(f"threshold must be a number, got {threshold!r}"[:300])
    if (curve := document.get("curve")) is not None:
        try:
            fields["curve"] = Curve.from_dict(curve)
        except ValueError as error:
            raise wrong(str(error)) from None
    return fields
