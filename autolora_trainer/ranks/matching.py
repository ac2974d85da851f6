"""Patterns of module names, as PEFT has them: regular expressions, and so possibly endless ones of a stranger's.

Most are plain names, which are looked up. The others are tried in a process of their own, which is ended after some
seconds: nothing in Python ends a match that has begun.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

SECONDS, DEADLINE = 5, 60  # of computing, and altogether on a machine that is busy; well-meant takes milliseconds
FEW = 512  # patterns, which Python keeps compiled
LONGEST = 20_000  # characters of a pattern
PLAIN = re.compile(r"\^?(?:[\w\-#]|\\?\.|\\-)*", re.ASCII)
# How PEFT 0.21 takes a key of rank_pattern, a name in modules_to_save, one in layers_pattern, and target_modules.
KEY, SAVED, LAYERS, WHOLE = r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.", "{}"
CHILD = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
except Exception:
    pass
given, found = json.load(sys.stdin), {}
try:
    for place, (pattern, whole) in enumerate(given["patterns"]):
        for name in given["names"]:
            if (re.fullmatch if whole else re.match)(pattern, name):
                found.setdefault(name, place)
    print(json.dumps({"found": found}))
except (re.error, RecursionError, OverflowError) as error:
    print(json.dumps({"error": str(error)}))
"""


def first_matches(keys: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """{name: the first key that PEFT finds for it}, of the names that have one. A dot stands for itself.

    Raises:
        ValueError: for keys that are no regular expressions, or take too long.
    Example:
        >>> first_matches(["v", "^h.0.q", "q"], ["h.0.q", "h.1.q", "h.0.k"])
        {'h.0.q': '^h.0.q', 'h.1.q': 'q'}
    """
    names, places = list(names), {}
    for place, key in enumerate(keys):
        if PLAIN.fullmatch(key):
            places.setdefault(key.replace("\\", ""), place)
    others = [place for place, key in enumerate(keys) if not PLAIN.fullmatch(key)]
    matched = _match([(KEY, keys[place]) for place in others], names) if others else {}
    found = {}
    for name in names:
        parts = name.split(".")
        ends = [f"^{name}", *(".".join(parts[start:]) for start in range(len(parts)))]
        fits = [places[end] for end in ends if end in places]
        fits += [others[matched[name]]] if name in matched else []
        if fits:
            found[name] = keys[min(fits)]
    return found


def check_patterns(patterns: Iterable[tuple[str, str]], names: Iterable[str]) -> None:
    """Raise `ValueError` for patterns that PEFT would be no end matching on the modules of a model.

    Args:
        patterns: (how PEFT takes it, as `KEY`; the pattern).
        names: of the modules.
    """
    patterns, names = list(patterns), list(names)
    if len(patterns) > max(FEW, 2 * len(names)):  # which PEFT compiles anew for every module
        raise ValueError(f"it has {len(patterns):,} patterns of modules for a model of {len(names):,}")
    if patterns := [(form, pattern) for form, pattern in patterns if not PLAIN.fullmatch(pattern)]:
        _match(patterns, names)


def _match(patterns: list[tuple[str, str]], names: list[str]) -> dict[str, int]:
    """{name: place of the first pattern that it matches}."""
    if (longest := max(len(pattern) for _, pattern in patterns)) > LONGEST:
        raise ValueError(f"a pattern of modules has {longest:,} characters; at most {LONGEST:,} are taken")
    formed = [(form.format(pattern), form == WHOLE) for form, pattern in patterns]
    given = json.dumps({"patterns": formed, "names": names})
    typed = [sys.executable, "-I", "-S", "-c", CHILD, str(SECONDS)]
    try:
        done = subprocess.run(typed, input=given, capture_output=True, text=True, timeout=DEADLINE)
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):  # ended by its limits, most likely
        raise ValueError(f"a pattern of modules takes more than {SECONDS} seconds to match") from None
    if "error" in answer:
        raise ValueError(f"a pattern of modules is no regular expression ({answer['error']})")
    return answer["found"]
