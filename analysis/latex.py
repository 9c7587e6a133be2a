r"""How is a table spelled in LaTeX?

booktabs, the caption above and the notes below, nothing wider than the line: a wide table is scaled down to it, and
lies on its side where that would make it too small to read. With siunitx every number stands in an S column, aligned
at its decimal point, and what follows it (the difference, marks, the interval) behind. All text passes through
`latex_text`: a model's name is data.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

from analysis.table_ir import UNSURE, Cell, Ci, Column, Row, Span, Style, Table, number

_NUMBERED = re.compile(r"^Table \d+(?:\. |(, .))")  # LaTeX numbers its tables itself
_SIGNS = {
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
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "’": "'",
}
_UPRIGHT = 160  # characters of a line that is still read upright: at two thirds of its size on a page of A4
_STYLES: dict[Style, str] = {
    "best": r"\textbf{{{}}}",
    "second": r"\underline{{{}}}",
    "unsure": r"\textcolor{{gray}}{{{}}}",
    "mark": r"\textsuperscript{{{}}}",
    "interval": r"{{\scriptsize {}}}",
}
# A switch reaches the whole cell of an S column, and a line under a number must not be part of it.
_SWITCHES: dict[Style, tuple[str, str]] = {
    "best": (r"\bfseries ", ""),
    "second": ("", r"\llap{{\underline{{\phantom{{{}}}}}}}"),
}


def latex_text(text: str) -> str:
    """Escape for LaTeX text mode; signs that pdflatex's fonts lack become `?`, never an error."""
    line = "".join(c if c.isprintable() else " " for c in text)
    signs = "".join(_SIGNS.get(c, c if c.isascii() or c in "äöüÄÖÜéèß" else "?") for c in line)
    # Two hyphens of an option's name are no dash; dashes themselves come from the table above.
    return re.sub("-(?=-)", "-{}", signs) if "--" in line else signs


def latex(table: Table, ci: Ci = "inline", siunitx: bool = False) -> str:
    r"""A table for \input; its first line names the packages that it needs."""
    layout = _Layout.of(table, siunitx)
    aside = _characters(table, ci) > _UPRIGHT
    needed = ["booktabs", "graphicx", *["rotating"] * aside, *["siunitx"] * siunitx, "xcolor"]
    kind = "sidewaystable" if aside else "table"
    title = _NUMBERED.sub(lambda found: (found[1] or "").lstrip(", ").upper(), table.title)
    lines = [
        f"% needs \\usepackage{{{','.join(needed)}}}",
        f"\\begin{{{kind}}}[tp]",
        "\\centering\\small",
        f"\\caption{{\\textbf{{{_broken(title)}}} {_broken(table.told(ci))}}}",
        f"\\label{{tab:{re.sub('[^a-z0-9]+', '-', table.name.lower())}}}",
        "\\par\\smallskip",  # most classes leave no space below a caption
        f"\\sbox0{{\\begin{{tabular}}{{{''.join(layout.specs)}}}",
        "\\toprule",
        *_heads(table, layout),
        "\\midrule",
    ]
    for index, block in enumerate(table.blocks):
        if index:
            lines.append("\\midrule")
        if block.title:
            width = len(table.columns) + 1
            lines.append(f"\\multicolumn{{{width}}}{{c}}{{\\textit{{{latex_text(block.title)}}}}} \\\\")
        for row in block.rows:
            lines += _row(row, layout, ci)
    lines += ["\\bottomrule", "\\end{tabular}}%"]
    # A table that fits keeps its size; a wider one is scaled to the line.
    lines.append("\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi")
    if table.notes:
        lines.append("\\par\\medskip\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright")
        lines += [f"{_broken(note)}\\par" for note in table.notes]
        lines.append("\\end{minipage}")
    return "\n".join([*lines, f"\\end{{{kind}}}"]) + "\n"


def _characters(table: Table, ci: Ci) -> int:
    """The length of the table's longest line, its columns two characters apart."""
    rows = [row for block in table.blocks for row in block.rows]
    widths = [max(len(text) for text in (table.stub, *(row.label for row in rows)))]
    for place, column in enumerate(table.columns):
        cells = [spans for row in rows for spans in (row.cells[place].spans(ci == "inline"), row.cells[place].below())]
        cells = cells if ci == "row" else cells[::2]
        widths.append(max([len(column.label) + 2, *(sum(len(span.text) for span in spans) for spans in cells)]))
    return sum(widths) + 2 * len(table.columns)


class _Layout(NamedTuple):
    """The columns' specifications, the label's first, and which of them are S columns."""

    specs: tuple[str, ...]
    aligned: tuple[bool, ...]

    @classmethod
    def of(cls, table: Table, siunitx: bool) -> _Layout:
        specs, aligned = ["l"], []
        for place, column in enumerate(table.columns):
            cells = [row.cells[place] for block in table.blocks for row in block.rows]
            numbers = [cell for cell in cells if cell.present and not cell.text]
            aligned.append(bool(siunitx and numbers))
            specs.append(_aligned(numbers) if aligned[-1] else "r" if numbers or column.better else "l")
        return cls(tuple(specs), tuple(aligned))


def _aligned(cells: list[Cell]) -> str:
    """An S column with room for the widest number, and for the widest text before and behind one."""
    shown = [cell.printed.removeprefix(cell.prefix) for cell in cells]
    sign = "-" if any(text.startswith("−") for text in shown) else ""
    whole = max(len(text.lstrip("−").partition(".")[0]) for text in shown)
    digits = max(cell.digits for cell in cells)
    before = max((latex_text(cell.prefix) for cell in cells), key=len)
    behind = max((_behind(cell.spans()) for cell in cells), key=len)
    room = [f"table-format={sign}{whole}.{digits}", "table-align-text-after=false", "table-align-text-before=false"]
    room += [f"table-space-text-pre={{{before}}}"] if before else []
    room += [f"table-space-text-post={{{behind}}}"] if behind else []
    return f"S[{','.join(room)}]"


def _heads(table: Table, layout: _Layout) -> list[str]:
    """The line of column groups, where there are any, and that of columns."""
    lines = []
    if any(column.group for column in table.columns):
        at, heads, rules = 2, [], []
        for group, members in groupby(table.columns, lambda column: column.group):
            width = len(list(members))
            heads.append(f"\\multicolumn{{{width}}}{{c}}{{{latex_text(group)}}}")
            if group:
                rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
            at += width
        lines += [" & ".join(["", *heads]) + " \\\\", "".join(rules)]
    heads = [latex_text(f"{column.label}{arrow(column)}") for column in table.columns]
    braced = (f"{{{head}}}" if s else head for head, s in zip(heads, layout.aligned, strict=True))
    return [*lines, " & ".join([latex_text(table.stub), *braced]) + " \\\\"]


def arrow(column: Column) -> str:
    """Which end of a column is good."""
    return {"higher": " ↑", "lower": " ↓", None: ""}[column.better]


def _row(row: Row, layout: _Layout, ci: Ci) -> list[str]:
    """A row, and below it that of its intervals where they have one."""
    cells = [
        _number(cell, cell.spans(ci == "inline")) if aligned else _cell(cell.spans(ci == "inline"))
        for cell, aligned in zip(row.cells, layout.aligned, strict=True)
    ]
    lines = [" & ".join([("\\quad " if row.indent else "") + latex_text(row.label), *cells]) + " \\\\"]
    if ci == "row" and row.spread:
        below = [_cell(cell.below()) for cell in row.cells]
        braced = (f"{{{text}}}" if s and text else text for text, s in zip(below, layout.aligned, strict=True))
        lines.append(" & ".join(["", *braced]) + " \\\\[2pt]")
    return lines


def _cell(spans: list[Span]) -> str:
    """Pieces of text, each in its style; the space before one stays outside, where \\textcolor would swallow it."""
    told: list[str] = []
    for span in spans:
        space = " " * (span.text.startswith(" ") or (span.style == "interval" and bool(told)))
        # ° is raised already.
        style = "{}" if span.text == UNSURE else _STYLES.get(span.style, "{}")
        told.append(space + style.format(latex_text(span.text.lstrip(" "))))
    return "".join(told)


def _number(cell: Cell, spans: list[Span]) -> str:
    """A cell of an S column: the bare number, and in braces whatever is no number."""
    if cell.text or not cell.present or cell.value is None:
        return f"{{{_cell(spans)}}}"
    value = number(cell.value.value, cell.digits)
    before, under = _SWITCHES.get(cell.emphasis, ("", ""))
    prefix = f"{{{latex_text(cell.prefix)}}}" if cell.prefix else ""
    behind = under.format(latex_text(value)) + _behind(spans)
    return f"{before}{prefix}{value.replace('−', '-')}" + (f"{{{behind}}}" if behind else "")


def _behind(spans: list[Span]) -> str:
    """What follows a number in an S column, in the ordinary weight."""
    text = _cell([Span("", "plain"), *spans[1:]])
    return f"\\normalfont\\ {text.lstrip(' ')}" if text else ""


def _broken(text: str) -> str:
    """Running text that may break within the names of records and options, which are longer than a line has room."""
    return re.sub(r"(\\_|/|,|=)(?=\S)", r"\1\\allowbreak{}", latex_text(text))
