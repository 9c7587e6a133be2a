"""How is a table spelled in Markdown, LaTeX, HTML and JSON?

Four writers over one table. Each format's escaping stands in one function, and every text passes through it: a
model's name is data. The JSON twin carries full precision, per-seed values and the records behind every number.
"""

from __future__ import annotations

import html as html_module
import json
import math
import re
from itertools import groupby
from typing import Any

from analysis.table_ir import Cell, Column, Row, Span, Style, Table
from selectkd_eval.records import canonical
from selectkd_eval.stats import Estimate

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")
_NUMBER = re.compile(r"^Table \d+\. ")  # LaTeX numbers its tables itself
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "[": "{[}",  # at the start of a row it would be the argument of the line break before it
    "]": "{]}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": r"$-$",
    "—": r"---",
    "–": r"--",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "°": r"$^{\circ}$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "Σ": r"$\sum$",
    "·": r"$\cdot$",
    "“": "``",
    "”": "''",
    "’": "'",
}


def markdown_text(text: str) -> str:
    """Escape what GitHub's Markdown would read as markup."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def latex_text(text: str) -> str:
    """Escape for LaTeX text mode; signs that pdflatex's fonts lack become `?`, never an error."""
    return "".join(_LATEX.get(c, c if c.isascii() or c in "äöüéèß" else "?") for c in _one_line(text))


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
_LATEX_STYLES: dict[Style, str] = {
    "best": r"\textbf{{{}}}",
    "second": r"\underline{{{}}}",
    "unsure": r"\textcolor{{gray}}{{{}}}",
    "mark": r"\textsuperscript{{{}}}",
    "interval": r" {{\scriptsize {}}}",
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
    # The space before a piece stays outside its markup: LaTeX's \\textcolor would swallow it.
    return "".join(
        " " * span.text.startswith(" ") + styles.get(span.style, "{}").format(escape(span.text.lstrip(" ")))
        for span in spans
    )


def _spanners(columns: tuple[Column, ...]) -> list[tuple[str, int]]:
    """Column groups and how many columns each spans; empty when no column has a group."""
    if not any(column.group for column in columns):
        return []
    return [(group, len(list(members))) for group, members in groupby(columns, lambda column: column.group)]


def _arrow(column: Column) -> str:
    return {"higher": " ↑", "lower": " ↓", None: ""}[column.better]


def _label(column: Column, grouped: bool) -> str:
    return f"{column.group + ': ' if grouped and column.group else ''}{column.label}{_arrow(column)}"


def markdown(table: Table) -> str:
    """A GitHub table with its caption above and its notes below."""
    heads = [table.stub, *(_label(column, grouped=True) for column in table.columns)]
    lines = [f"**{markdown_text(table.title)}** {markdown_text(table.caption)}", ""]
    lines.append("| " + " | ".join(map(markdown_text, heads)) + " |")
    lines.append("|---|" + "|".join(":--" if c.better is None else "--:" for c in table.columns) + "|")
    for block in table.blocks:
        if block.title:
            lines.append(f"| *{markdown_text(block.title)}* |" + " |" * len(table.columns))
        for row in block.rows:
            cells = [_cell(cell.spans(), _MARKDOWN_STYLES, markdown_text) for cell in row.cells]
            stub = ("&nbsp;&nbsp;" if row.indent else "") + markdown_text(row.label)
            lines.append("| " + " | ".join([stub, *cells]) + " |")
    lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def latex(table: Table) -> str:
    r"""A booktabs table for \input; needs \usepackage{booktabs,xcolor}."""
    spec = "l" + "".join("l" if column.better is None else "r" for column in table.columns)
    lines = [
        "% needs \\usepackage{booktabs,xcolor}",
        "\\begin{table}[t]",
        "\\centering\\small",
        f"\\caption{{\\textbf{{{latex_text(_NUMBER.sub('', table.title))}}} {latex_text(table.caption)}}}",
        f"\\label{{tab:{re.sub('[^a-z0-9]+', '-', table.name.lower())}}}",
        f"\\begin{{tabular}}{{{spec}}}",
        "\\toprule",
    ]
    if spanners := _spanners(table.columns):
        at, heads, rules = 2, [], []
        for group, width in spanners:
            heads.append(f"\\multicolumn{{{width}}}{{c}}{{{latex_text(group)}}}")
            if group:
                rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
            at += width
        lines += [" & ".join(["", *heads]) + " \\\\", "".join(rules)]
    heads = [table.stub, *(_label(column, grouped=False) for column in table.columns)]
    lines += [" & ".join(map(latex_text, heads)) + " \\\\", "\\midrule"]
    for index, block in enumerate(table.blocks):
        if index:
            lines.append("\\midrule")
        if block.title:
            width = len(table.columns) + 1
            lines.append(f"\\multicolumn{{{width}}}{{c}}{{\\textit{{{latex_text(block.title)}}}}} \\\\")
        lines += [_latex_row(row) for row in block.rows]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if table.notes:
        lines.append("\\par\\medskip\\begin{minipage}{\\linewidth}\\footnotesize")
        lines += [f"{latex_text(note)}\\par" for note in table.notes]
        lines.append("\\end{minipage}")
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _latex_row(row: Row) -> str:
    cells = [_cell(cell.spans(), _LATEX_STYLES, latex_text) for cell in row.cells]
    return " & ".join([("\\quad " if row.indent else "") + latex_text(row.label), *cells]) + " \\\\"


def html(table: Table) -> str:
    """An accessible table: caption, scoped headers, notes in its own list below."""
    lines = [f'<table id="{html_text(table.name)}">']
    lines.append(
        f"<caption><span><strong>{html_text(table.title)}</strong> {html_text(table.caption)}</span></caption>"
    )
    lines.append("<thead>")
    if spanners := _spanners(table.columns):
        cells = [f'<th scope="colgroup" colspan="{width}">{html_text(group)}</th>' for group, width in spanners]
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
            cells = [f"<td>{_cell(cell.spans(), _HTML_STYLES, html_text)}</td>" for cell in row.cells]
            kind = ' class="indent"' if row.indent else ""
            lines.append(f'<tr><th scope="row"{kind}>{html_text(row.label)}</th>{"".join(cells)}</tr>')
        lines.append("</tbody>")
    lines.append("</table>")
    if table.notes:
        lines.append(f'<ul class="notes">{"".join(f"<li>{html_text(note)}</li>" for note in table.notes)}</ul>')
    return "\n".join(lines) + "\n"


def twin(table: Table) -> str:
    """The table as JSON with full precision: every number with its interval, seeds and records."""
    content = {
        "name": table.name,
        "title": table.title,
        "caption": table.caption,
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
        "value": _estimate_json(cell.value),
        "delta": _estimate_json(cell.delta),
        "p": None if math.isnan(cell.p) else cell.p,
        "p_holm": None if math.isnan(cell.p_holm) else cell.p_holm,
        "best": cell.best,
        "second": cell.second,
        "seeds": [{"seed": seed, "value": value} for seed, value in cell.seeds],
        "records": list(cell.records),
        **({"ratio": True} if cell.ratio else {}),  # the delta is one
    }


def _estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "method": estimate.method,
    }
