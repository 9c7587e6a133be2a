"""How is a table spelled in Markdown, HTML and JSON? (LaTeX has a module of its own, `latex`.)

Writers over one table. Each format's escaping stands in one function, and every text passes through it: a model's
name is data. Where the intervals stand is the writer's matter (`ci`). The JSON twin carries full precision, intervals,
standard errors, per-seed values and the records behind every number.
"""

from __future__ import annotations

import html as html_module
import json
import math
import re
from itertools import count, groupby
from typing import Any

from analysis.latex import arrow, latex, latex_text
from analysis.table_ir import Cell, Ci, Column, Row, Span, Style, Table
from selectkd_eval.records import canonical
from selectkd_eval.stats import Estimate

__all__ = ["html", "html_text", "latex", "latex_text", "markdown", "markdown_text", "page", "twin"]

INTERVAL = "95 % interval"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")


def markdown_text(text: str) -> str:
    """Escape what GitHub's Markdown would read as markup."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    """Line breaks of any kind, and what cannot be printed, as blanks."""
    return "".join(c if c.isprintable() else " " for c in text)


def html_text(text: str) -> str:
    """Escape for HTML text and attributes."""
    return html_module.escape(text, quote=True)


_MARKDOWN_STYLES: dict[Style, str] = {
    "best": "**{}**",
    "second": "<u>{}</u>",
    "interval": " <sub>{}</sub>",
    "mark": "{}",
}
_HTML_STYLES: dict[Style, str] = {
    "best": "<strong>{}</strong>",
    "second": "<u>{}</u>",
    "delta": '<span class="delta">{}</span>',
    "unsure": '<span class="unsure">{}</span>',
    "mark": "<sup>{}</sup>",
    "interval": ' <span class="interval">{}</span>',
}


def _cell(spans: list[Span], styles: dict[Style, str], escape: Any) -> str:
    # The space before a piece stays outside its markup.
    return "".join(
        " " * span.text.startswith(" ") + styles.get(span.style, "{}").format(escape(span.text.lstrip(" ")))
        for span in spans
    )


def _spanners(columns: tuple[Column, ...]) -> list[tuple[str, int]]:
    """Column groups and how many columns each spans; empty when no column has a group."""
    if not any(column.group for column in columns):
        return []
    return [(group, len(list(members))) for group, members in groupby(columns, lambda column: column.group)]


def _label(column: Column, grouped: bool) -> str:
    return f"{column.group + ': ' if grouped and column.group else ''}{column.label}{arrow(column)}"


def markdown(table: Table, ci: Ci = "inline") -> str:
    """A GitHub table with its caption above and its notes below."""
    heads = [table.stub, *(_label(column, grouped=True) for column in table.columns)]
    lines = [f"**{markdown_text(table.title)}** {markdown_text(table.told(ci))}", ""]
    lines.append("| " + " | ".join(map(markdown_text, heads)) + " |")
    lines.append("|---|" + "|".join(":--" if c.better is None else "--:" for c in table.columns) + "|")
    for block in table.blocks:
        if block.title:
            lines.append(f"| *{markdown_text(block.title)}* |" + " |" * len(table.columns))
        for row in block.rows:
            cells = [_cell(cell.spans(ci == "inline"), _MARKDOWN_STYLES, markdown_text) for cell in row.cells]
            stub = ("&nbsp;&nbsp;" if row.indent else "") + markdown_text(row.label)
            lines.append("| " + " | ".join([stub, *cells]) + " |")
            if ci == "row" and row.spread:
                below = [_cell(cell.below(), _MARKDOWN_STYLES, markdown_text).strip() for cell in row.cells]
                lines.append("| " + " | ".join(["", *below]) + " |")
    lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def html(table: Table, ci: Ci = "inline", linked: bool = False) -> str:
    """An accessible table: caption, scoped headers, notes in its own list below; cells carry their full-precision value
    for sorting. `linked`: a number leads to `#NAME-ROW`, where the page lists that row's records.
    """
    places = count()
    lines = [f'<table id="{html_text(table.name)}">']
    lines.append(
        f"<caption><span><strong>{html_text(table.title)}</strong> {html_text(table.told(ci))}</span></caption>"
    )
    lines.append("<thead>")
    if spanners := _spanners(table.columns):
        kinds = [("th", ' scope="colgroup"') if group else ("td", "") for group, _ in spanners]
        cells = [
            f'<{tag}{scope} colspan="{width}">{html_text(group)}</{tag}>'
            for (tag, scope), (group, width) in zip(kinds, spanners, strict=True)
        ]
        lines.append("<tr><td></td>" + "".join(cells) + "</tr>")
    heads = [table.stub, *(_label(column, grouped=False) for column in table.columns)]
    lines.append("<tr>" + "".join(f'<th scope="col">{html_text(head)}</th>' for head in heads) + "</tr>")
    lines.append("</thead>")
    for block in table.blocks:
        lines.append("<tbody>")
        if block.title:
            width = len(table.columns) + 1
            title = html_text(block.title)
            lines.append(f'<tr class="block"><th scope="rowgroup" colspan="{width}">{title}</th></tr>')
        for row in block.rows:
            lines += _html_row(row, ci, f"#{table.name}-{next(places)}" if linked else "")
        lines.append("</tbody>")
    lines.append("</table>")
    if table.notes:
        lines.append(f'<ul class="notes">{"".join(f"<li>{html_text(note)}</li>" for note in table.notes)}</ul>')
    return "\n".join(lines) + "\n"


def _html_row(row: Row, ci: Ci, target: str) -> list[str]:
    """A row, and below it that of its intervals where they have one."""
    cells = [_html_cell(cell, ci, target) for cell in row.cells]
    kind = ' class="indent"' if row.indent else ""
    lines = [f'<tr><th scope="row"{kind}>{html_text(row.label)}</th>{"".join(cells)}</tr>']
    if ci == "row" and row.spread:
        below = [f"<td>{_cell(cell.below(), _HTML_STYLES, html_text).strip()}</td>" for cell in row.cells]
        lines.append(f'<tr class="intervals"><th scope="row">{INTERVAL}</th>{"".join(below)}</tr>')
    return lines


def _html_cell(cell: Cell, ci: Ci, target: str) -> str:
    text = _cell(cell.spans(ci == "inline"), _HTML_STYLES, html_text)
    if target and cell.records:
        # Out of the tab order: the list that it leads to is one stop for the whole table.
        text = f'<a class="from" href="{html_text(target)}" tabindex="-1">{text}</a>'
    value = f' data-value="{cell.value.value!r}"' if cell.value is not None and cell.present else ""
    return f"<td{value}>{text}</td>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --quiet: #595959; --line: #767676; }}
@media (prefers-color-scheme: dark) {{ :root {{ --quiet: #b0b0b0; --line: #8c8c8c; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; border-block: 2px solid var(--line); }}
caption {{ text-align: left; padding-bottom: .6rem; }}
th, td {{ padding: .2rem .7rem; text-align: right; font-variant-numeric: tabular-nums; }}
tbody th, thead th:first-child {{ text-align: left; font-weight: normal; }}
thead {{ border-bottom: 1px solid var(--line); }}
tbody + tbody {{ border-top: 1px solid var(--line); }}
.block th {{ text-align: center; font-style: italic; }}
.indent {{ padding-left: 1.8rem; }}
.unsure, .interval, .intervals, .notes {{ color: var(--quiet); }}
.interval, .intervals, .notes {{ font-size: .85em; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<div class="scroll" role="region" tabindex="0" aria-label="{title}">
{table}</div>
{notes}</main>
</body>
</html>
"""


def page(table: Table, ci: Ci = "inline") -> str:
    """The table as a page that stands alone: no script, no request, light and dark."""
    body, notes = html(table, ci).split("</table>\n")
    return _PAGE.format(title=html_text(table.title), table=f"{body}</table>\n", notes=notes)


def twin(table: Table) -> str:
    """The table as JSON with full precision: every number with its interval, seeds and records."""
    content = {
        "name": table.name,
        "title": table.title,
        "caption": table.told(),
        "notes": list(table.notes),
        "facts": table.facts,
        "columns": [
            {"label": column.label, "group": column.group, "better": column.better} for column in table.columns
        ],
        "blocks": [
            {
                "title": block.title,
                "rows": [
                    {"label": row.label, "ranked": row.ranked, "cells": [_cell_json(cell) for cell in row.cells]}
                    for row in block.rows
                ],
            }
            for block in table.blocks
        ],
    }
    return json.dumps(json.loads(canonical(content)), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _cell_json(cell: Cell) -> dict[str, Any] | None:
    if cell.text:
        return {"text": cell.text}
    if not cell.present:
        return None
    return {
        "value": _estimate_json(cell.value, cell.error),
        "delta": _estimate_json(cell.delta, cell.delta_error),
        "p": None if math.isnan(cell.p) else cell.p,
        "p_holm": None if math.isnan(cell.p_holm) else cell.p_holm,
        "best": cell.best,
        "second": cell.second,
        "seeds": [{"seed": seed, "value": value} for seed, value in cell.seeds],
        "records": list(cell.records),
        **({"ratio": True} if cell.ratio else {}),  # the delta is one
    }


def _estimate_json(estimate: Estimate | None, error: float) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "method": estimate.method,
        **({} if math.isnan(error) else {"standard_error": error}),
    }
