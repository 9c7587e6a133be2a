"""Which program is in this answer? Code from the text of a model, with the signature and the names it needs.

A completion that continues a prompt's code is taken to the letter: prompt and completion, up to a closing fence. A
chat answer's program is its first block that really defines the function asked for; helpers from its other blocks and
from the prompt, and the prompt's signature around a bare body, are put back where names are missing. Top-level lines
that print, ask for input or assert are the answer's own demonstration and go, as in EvalPlus; everything else stays.

Nothing is run here, and nothing raises: an answer that cannot be parsed is returned as it stands, for the sandbox to
fail with its syntax error.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from selectkd_eval.grading.fences import Block, blocks, cleaned, without_prompts

_LONGEST = 50_000  # characters of code that are parsed; no solution of these benchmarks has 10,000
_FENCE = re.compile(r"(?:\A|\n)[ \t]*(?:```|~~~)")
_STARTS = re.compile(  # a line at the left margin that can begin a statement worth keeping
    r"(?:async\s+def|def|class)\s+\w|@\w|import\s+\w|from\s+[\w.]+\s+import\b|[A-Za-z_]\w*\s*(?::[^=\n]+)?=(?!=)"
)
_CODE = re.compile(
    r"^[ \t]*(?:async[ \t]+)?(?:def|class|import)[ \t]+\w|^[ \t]*from[ \t]+\S+[ \t]+import\b", re.MULTILINE
)
_KNOWN = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Piece(NamedTuple):
    """One top-level statement: its source, the names it binds and those it needs from elsewhere."""

    code: str
    node: ast.stmt
    binds: frozenset[str]
    needs: frozenset[str]


def extract_code(text: str, *, prompt: str = "", entry_point: str = "", chat: bool = False) -> str | None:
    """The program in an answer, or None when there is no code in it.

    `chat` says that the text is an answer, not the continuation of `prompt`'s code. `prompt` is the code that was
    shown (imports, helpers, signature), `entry_point` the function that will be called; both may be empty.
    """
    text = cleaned(text)
    if not chat and not text.lstrip().startswith(("```", "~~~")):
        fence = _FENCE.search(text)
        return _continued(prompt, text[: fence.start()] if fence else text)
    if not text.strip():
        return None
    found = blocks(text)
    candidates = [block for block in found if block.python] or found
    if not candidates:
        return _from_prose(text, prompt, entry_point)
    return _from_blocks(candidates, prompt, entry_point)


def _continued(prompt: str, completion: str) -> str | None:
    """Prompt and completion; a prompt without its final line break (as a tokenizer may give it) gets it back."""
    if not completion.strip():
        return None
    gap = "" if not prompt or prompt.endswith("\n") or completion.startswith("\n") else "\n"
    return prompt + gap + completion


def _from_blocks(candidates: list[Block], prompt: str, entry_point: str) -> str | None:
    parsed = [(block.code, pieces(block.code)) for block in candidates]
    chosen = next((pair for pair in parsed if pair[1] and defines(pair[1], entry_point)), None)
    if chosen is None:
        for code, _ in parsed:
            if body := _bodied(code, prompt, entry_point):
                return body
        # Nothing to mend: the first block as it stands, preferring one that names the function.
        named = (code for code, _ in parsed if entry_point and re.search(rf"\bdef\s+{re.escape(entry_point)}\b", code))
        code = next(named, candidates[0].code)
        return _completed(code, pieces(code), [], prompt, entry_point)
    others = [piece for code, found in parsed if code is not chosen[0] for piece in found]
    return _completed(chosen[0], chosen[1], others, prompt, entry_point)


def _from_prose(text: str, prompt: str, entry_point: str) -> str | None:
    """Code that nothing marks: the statements at the left margin that parse, when a definition is among them."""
    text = without_prompts(text)
    found = pieces(text)
    if found and defines(found, entry_point):
        return _completed(text, found, [], prompt, entry_point)
    if body := _bodied(text, prompt, entry_point):
        return body
    start = re.search(
        r"^[ \t]*(?:async[ \t]+)?(?:def|class|import)[ \t]+\w|^[ \t]*from[ \t]+\S+[ \t]+import\b", text, re.M
    )
    return text[start.start() :] if start else None


def _completed(code: str, found: list[Piece], others: list[Piece], prompt: str, entry_point: str) -> str:
    """The code without its demonstration, after the definitions that it lacks and that the answer or prompt has."""
    if not found:
        return code
    kept = _without_demonstration(code, found)
    if not kept.strip():
        return code  # nothing but a demonstration: no function is there, and the verdict shall say so
    missing = _missing(found)
    if not missing:
        return kept
    # The answer's own helpers come before the prompt's; each may need others.
    order = [*(piece for piece in pieces(prompt) if entry_point not in piece.binds), *others]
    place = {name: number for number, piece in enumerate(order) for name in piece.binds}
    lacking: set[int] = set()
    while missing:
        number = place.get(missing.pop(), -1)
        if number >= 0 and number not in lacking:
            lacking.add(number)
            missing |= order[number].needs - _KNOWN
    future = [piece.code for piece in found if _is_future(piece.node)] if lacking else []
    for line in future:
        kept = kept.replace(line, "", 1)
    return "\n".join((*future, *(order[number].code for number in sorted(lacking)), kept))


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _bodied(code: str, prompt: str, entry_point: str) -> str | None:
    """The prompt's signature with a bare body below it, when the code is one: indented, or with a `return`."""
    if not prompt or not entry_point or re.search(rf"\bdef\s+{re.escape(entry_point)}\b", code):
        return None
    first = next((line for line in code.split("\n") if line.strip()), "")
    if not (first[:1] in (" ", "\t") or _returns_outside(code)):
        return None
    flat = textwrap.dedent(code)
    for body in (code, textwrap.indent(flat, "    "), textwrap.indent(flat, "\t")):
        program = prompt + ("" if prompt.endswith("\n") else "\n") + body
        if defines(pieces(program), entry_point) and parse(program) is not None:
            return program
    return None


def _returns_outside(code: str) -> bool:
    """Whether the code parses and returns or yields outside any function: the body of one, at the left margin."""
    tree = parse(code)
    waiting: list[ast.AST] = [] if tree is None else list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, (*_DEFINITIONS, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return False


def defines(found: list[Piece], entry_point: str) -> bool:
    """Whether the pieces define the function with a body of its own; without a name, whether they define anything."""
    for piece in found:
        if entry_point and entry_point not in piece.binds:
            continue
        if isinstance(piece.node, _DEFINITIONS):
            if not _is_stub(piece.node):
                return True
        elif entry_point and not isinstance(piece.node, ast.Import | ast.ImportFrom):
            return True
    return False


def _is_stub(node: ast.stmt) -> bool:
    """A definition that only repeats the signature: a docstring, imports, `pass`, `...` or a refusal."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
        isinstance(line, ast.Pass | ast.Import | ast.ImportFrom)
        or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        or (isinstance(line, ast.Raise) and line.exc is not None and "NotImplemented" in ast.dump(line.exc))
        for line in node.body
    )


def parse(code: str) -> ast.Module | None:
    """The syntax tree, or None: not Python, too long, or nested too deeply."""
    if len(code) > _LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in a candidate's string is not ours to warn of
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def pieces(code: str) -> list[Piece]:
    """The top-level statements of the code; where it does not parse as a whole, those of its parts that do."""
    tree = parse(code)
    if tree is not None:
        return _split(code, tree)
    found = []
    for chunk in _chunks(code[:_LONGEST]):
        if (part := parse(chunk)) is not None:
            found += _split(chunk, part)
    return found


def _split(code: str, tree: ast.Module) -> list[Piece]:
    lines = code.encode().split(b"\n")  # columns count bytes
    found = []
    for node in tree.body:
        first = min((node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", []))))
        last, end = node.end_lineno or node.lineno, node.end_col_offset
        begin = node.col_offset if first == node.lineno else 0  # not 0 after a semicolon
        source = [lines[first - 1][begin : end if first == last else None]]
        if first < last:
            source += [*lines[first : last - 1], lines[last - 1][:end]]
        found.append(Piece(b"\n".join(source).decode(), node, frozenset(_bound(node)), frozenset(_loaded(node))))
    return found


def _chunks(code: str) -> Iterable[str]:
    """Statements at the left margin with the indented lines below them; prose between them is left out."""
    chunk: list[str] = []
    for line in code.split("\n"):
        if _STARTS.match(line):
            decorated = chunk and chunk[-1].startswith("@")
            if chunk and not decorated:
                yield "\n".join(chunk)
                chunk = []
            chunk.append(line)
        elif chunk and (not line.strip() or line[0] in " \t)]}#"):
            chunk.append(line)
        elif chunk:
            yield "\n".join(chunk)
            chunk = []
    if chunk:
        yield "\n".join(chunk)


def _bound(node: ast.stmt) -> set[str]:
    """The names that a top-level statement binds at module level."""
    if isinstance(node, _DEFINITIONS):
        return {node.name}
    names: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.alias):
            names.add(child.asname or child.name.split(".")[0])
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            names.add(child.id)
        elif isinstance(child, _DEFINITIONS):
            names.add(child.name)
    return names


def _loaded(node: ast.stmt) -> set[str]:
    """The names that a statement reads and does not bind anywhere inside itself."""
    read: set[str] = set()
    own: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            (read if isinstance(child.ctx, ast.Load) else own).add(child.id)
        elif isinstance(child, ast.arg):
            own.add(child.arg)
        elif isinstance(child, ast.alias):
            own.add(child.asname or child.name.split(".")[0])
        elif isinstance(name := getattr(child, "name", None), str):  # a definition, or an exception that is caught
            own.add(name)
    return read - own


def _missing(found: list[Piece]) -> set[str]:
    bound = {name for piece in found for name in piece.binds}
    return {name for piece in found for name in piece.needs} - bound - _KNOWN


def _without_demonstration(code: str, found: list[Piece]) -> str:
    """The code without top-level asserts and statements that print or read; the pieces that parse, where it as a
    whole does not.
    """
    if parse(code) is None:
        return "\n".join(piece.code for piece in found if not _demonstrates(piece.node)) + "\n"
    lines = code.split("\n")
    spans = [range(piece.node.lineno - 1, piece.node.end_lineno or piece.node.lineno) for piece in found]
    used = Counter(line for span in spans for line in span)
    for piece, span in zip(found, spans, strict=True):
        if _demonstrates(piece.node) and all(used[line] == 1 for line in span):
            for line in span:
                lines[line] = ""
    return "\n".join(lines)


def _demonstrates(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom)) or _is_main(node):
        return False
    return any(
        isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in ("print", "input")
        for child in ast.walk(node)
    )


def _is_main(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":` does not run when a program is judged, so it may stay."""
    return isinstance(node, ast.If) and any(
        isinstance(child, ast.Name) and child.id == "__name__" for child in ast.walk(node.test)
    )
