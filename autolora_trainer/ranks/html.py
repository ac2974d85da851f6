"""The grid of ranks for a notebook: one table, its styles inline, no script, no network, legible without styles."""

from collections.abc import Mapping
from html import escape

from autolora_trainer.drawing import ACCENT, heat, rgb
from autolora_trainer.ranks.grid import bands, rank_grid, rank_summary

COLUMNS = 32  # blocks side by side; more continue below


def format_rank_html(ranks: Mapping[str, int], shades: Mapping[str, float], tips: Mapping[str, str]) -> str:
    """Blocks across, projections down, as `format_rank_table`.

    Args:
        ranks: {module: rank}.
        shades: {module: how dark, 0 to 1}.
        tips: {module: what is said when the pointer rests there}.
    Example:
        >>> format_rank_html({"h.0.q": 2}, {"h.0.q": 1.0}, {"h.0.q": "rank 2"}).count("<td")
        1
    """
    rows, columns, grid = rank_grid(ranks)
    _, _, names = rank_grid({name: name for name in ranks})
    tables = []
    for part in bands(len(columns), COLUMNS):
        lines = [_row("block", [f"<th style='padding:2px 6px'>{escape(column)}</th>" for column in columns[part]])]
        for label, own, modules in zip(rows, grid, names):
            if any(rank is not None for rank in own[part]):
                cells = [_cell(r, m, shades, tips) for r, m in zip(own[part], modules[part])]
                lines.append(_row(label, cells))
        tables.append(f"<table style='border-collapse:collapse;font:12px monospace'>{''.join(lines)}</table>")
    return f"<div>{'<br>'.join(tables)}<p>{escape(rank_summary(ranks))}</p></div>"


def _row(label: str, cells: list[str]) -> str:
    return f"<tr><th style='text-align:right;padding:2px 8px'>{escape(label)}</th>{''.join(cells)}</tr>"


def _cell(rank: int | None, name: str | None, shades: Mapping[str, float], tips: Mapping[str, str]) -> str:
    if rank is None:
        return "<td></td>"
    part = heat(shades.get(name, 0.0)) if rank else 0.0
    ink = "#fff" if part > 0.82 else "inherit"
    ground = f"rgba({','.join(map(str, rgb(ACCENT)))},{part:.2f})"  # over any ground, light or dark
    style = f"text-align:center;padding:2px 6px;color:{ink};background:{ground}"
    return f"<td title='{escape(tips.get(name, name), quote=True)}' style='{style}'>{rank}</td>"
