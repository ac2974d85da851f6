"""Sections of docstrings as mkdocstrings takes them: it wants a blank line before each, and ours have none."""

import re

import griffe

TITLE = re.compile(r"(\S[^\n]*\n)(?=(?:Args|Attributes|Returns|Raises|Example):\n)")


def apart(text: str) -> str:
    """A docstring with a blank line before every section.

    Example:
        >>> apart("One.\\n\\nArgs:\\n    a: b.\\nRaises:\\n    ValueError: c.")
        'One.\\n\\nArgs:\\n    a: b.\\n\\nRaises:\\n    ValueError: c.'
    """
    return TITLE.sub(r"\1\n", text)


class Sections(griffe.Extension):
    """Griffe's way to change what it has read."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = apart(obj.docstring.value)
