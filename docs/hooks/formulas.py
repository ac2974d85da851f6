"""Formulas, `$...$` and `$$...$$`, as MathML, which browsers draw by themselves: no script from elsewhere."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content, page, config, files):
    """What pymdownx.arithmatex has found, converted."""

    def drawn(match) -> str:
        mathml = convert(html.unescape(match[3]), display="block" if match[2] == "[" else "inline")
        mathml = mathml.replace(r"\_", "_")  # which TeX asks for, and the converter leaves
        return f'<div class="formula">{mathml}</div>' if match[1] == "div" else mathml

    return FORMULA.sub(drawn, content)
