"""The page of a run: curve, grid, scores, cost and how to go on, in one HTML file without script or network.

It follows the reader's light or dark, and a phone's width; every name in it is text.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape

from autolora_trainer.clean import clean
from autolora_trainer.drawing import PALETTE, figure_svg
from autolora_trainer.files import write_atomically
from autolora_trainer.ranks.adapter_config import CONFIG_FILE
from autolora_trainer.ranks.curve import Curve
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.curve import curve_figure, curve_table, format_capacity

PAGE_FILE = "report.html"
UNDECIDED = "Held-out rows have not seen the search learn: ranks are uniform."
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # heads, cells; all but the first column are numbers
GO_ON = {  # in the folder of the page
    "the grid and the curve in a terminal": "autolora show .",
    "the ranks for another tool: peft, trl, unsloth, axolotl": "autolora export . --format trl",
}
SMALLER = {
    "smaller still, on rows that no training saw": "autolora compress . --eval_file dev.jsonl --output_dir small"
}
CSS = """
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--rule) }
p { margin: .4rem 0; max-width: 44rem; color: var(--faint) }
dl { display: flex; flex-wrap: wrap; gap: .8rem 2.2rem; margin: 1.2rem 0 1.6rem }
dt { font-size: .8rem; color: var(--faint) }
dd { margin: 0; font-size: 1.35rem; font-weight: 600 }
.wide { overflow-x: auto; padding-bottom: .3rem }
.curve { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem 2rem }
.curve svg { width: 34rem; max-width: 100%; height: auto }
svg text { font-family: inherit !important }
table { border-collapse: collapse; font-size: .9rem }
.values th, .values td { padding: .25rem .9rem .25rem 0; text-align: right; white-space: nowrap;
                         font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--rule) }
.values th { font-weight: normal; color: var(--faint); vertical-align: bottom; white-space: normal }
.values :first-child { text-align: left; white-space: normal }
.first td:first-child { text-align: right; padding-left: .6rem }
.values .chosen td { font-weight: 700; color: var(--accent) }
.grid { margin-top: 1.2rem }
.grid table { font-size: 15px !important }
.grid td { padding: .3rem .45rem !important; min-width: 1.1em; border: 1px solid var(--paper) }
.grid p { font-size: .9rem }
.grid th { font-weight: normal; color: var(--faint) }
.grid th:first-child { position: sticky; left: 0; background: var(--paper) }
@media (max-width: 40rem) {
  .values th, .values td { padding-right: .6rem }
  table { font-size: .85rem }
  .grid table { font-size: 13px !important }
  .grid td { padding: .25rem .25rem !important }
}
pre { margin: .2rem 0 1rem; padding: .6rem .8rem; overflow-x: auto; border: 1px solid var(--rule); border-radius: 4px;
      font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace }
"""


def save_page(
    folder: str | os.PathLike,
    ranks: LearnedRanks,
    parameters: int,
    tables: Mapping[str, Table] | None = None,
    command: str = "",
    others: Mapping[str, tuple[LearnedRanks, int]] | None = None,
) -> str:
    """Write `report.html`, whole or not at all.

    Args:
        folder: where to write; it must exist.
        ranks, parameters: what was found, and its size in adapter parameters.
        tables: {heading: (heads, cells)}, such as scores and cost.
        command: what was typed, without this machine's names.
        others: {heading: (ranks, parameters)} of further adapters, shown as the first is.
    Returns:
        Its path.
    """
    parts = [f"<h1>{_text(ranks.title)}</h1>", _found(ranks, parameters)]
    for heading, (heads, cells) in (tables or {}).items():
        parts += [f"<h2>{_text(heading)}</h2>", _table(heads, cells)]
    for heading, (own, size) in (others or {}).items():
        parts += [f"<h2>{_text(heading)}</h2>", _found(own, size)]
    parts.append("<h2>How to go on, in this folder</h2>")
    commands = {**GO_ON, **(SMALLER if os.path.exists(os.path.join(folder, CONFIG_FILE)) else {})}
    commands |= {"how it was made": command} if command else {}
    parts += [f"<p>{_text(what)}</p><pre>{_text(line)}</pre>" for what, line in commands.items()]
    path = os.path.join(folder, PAGE_FILE)
    write_atomically(path, clean(_page(ranks.title, "\n".join(parts))))  # names in the grid, too
    return path


def _page(title: str, body: str) -> str:
    light, dark = ("; ".join(f"--{name}: {both[i]}" for name, both in PALETTE.items()) for i in (0, 1))
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # whatever a name holds, nothing runs or is fetched
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>
:root {{ {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
{CSS}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _text(text) -> str:
    return escape(clean(text))


def _found(ranks: LearnedRanks, parameters: int) -> str:
    """Figures, curve and grid of an adapter."""
    megabytes = parameters * 4 / 1e6
    curve, used = ranks.curve, sum(rank > 0 for rank in ranks.ranks.values())
    figures = {
        "adapter parameters": f"{parameters:,}",
        "in float32": f"{megabytes:{'.2f' if megabytes >= 0.1 else '.2g'}} MB",
        "modules with a rank": f"{used} of {len(ranks.modules)}",
        "largest rank": max(ranks.ranks.values(), default=0),
    }
    parts = []
    if curve is not None:
        parts.append(_curve(curve, parameters))
        said = format_capacity(curve, parameters) if curve.decided else UNDECIDED
        parts += [f"<p>{_text(said[0].upper() + said[1:])}.</p>".replace("..", ".")] if said else []
    grid = ranks._repr_mimebundle_()["text/html"]
    shaded = "share of the held-out gain" if any(m.contributions for m in ranks.modules.values()) else "rank"
    parts.append(
        f"<div class='wide grid'>{grid}<p>Blocks across, projections down; the shade is the {shaded}.</p></div>"
    )
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items())
    return f"<dl>{tiles}</dl>" + "\n".join(parts)


def _curve(curve: Curve, parameters: int) -> str:
    """The picture, and the numbers beside it."""
    picture = figure_svg(curve_figure(curve, parameters, width=4.6), themed=True)
    heads, rows = curve_table(curve, parameters)
    marked = [i for i, row in enumerate(rows) if row[0].endswith("<")]
    rows = [[cell.removesuffix(" <") for cell in row] for row in rows]
    return f"<div class='curve'>{picture}{_table(heads, rows, marked, 'values first')}</div>"


def _table(heads, rows, marked: Sequence[int] = (), kind: str = "values") -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr{' class=chosen' * (i in marked)}>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
        for i, row in enumerate(rows)
    )
    return f"<div class='wide'><table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
