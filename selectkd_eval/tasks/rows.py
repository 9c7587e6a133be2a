"""What does a data set's row say? One reader per data set, whatever its fields are called where it comes from.

Files and the hub name the same things differently (MBPP's question is `text` in the full set and `prompt` in the
sanitized one; MATH's subject is `type` or `subject`). Here they get one name each. Nothing is read from disk here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.prompts import prompt_id

FIELD_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "gsm8k": {"question": ("question",), "answer": ("answer",)},
    "math": {
        "problem": ("problem", "question"),
        "solution": ("solution", "answer"),
        "answer": ("answer",),
        "level": ("level",),
        "subject": ("type", "subject"),
        "index": ("math_idx", "idx"),
    },
    "humaneval": {"id": ("task_id",), "prompt": ("prompt",), "entry_point": ("entry_point",), "test": ("test",)},
    "mbpp": {
        "id": ("task_id",),
        "text": ("text", "prompt"),
        "tests": ("test_list",),
        "setup": ("test_setup_code",),
        "imports": ("test_imports",),
        "code": ("code",),
    },
    "plus": {
        "id": ("task_id",),
        "prompt": ("prompt",),
        "entry_point": ("entry_point",),
        "solution": ("canonical_solution",),
        "base": ("base_input",),
        "plus": ("plus_input",),
        "atol": ("atol",),
        "assertion": ("assertion",),
        "test": ("test",),
        "tests": ("test_list",),
        "imports": ("test_imports",),
        "code": ("code",),
    },
}
"""What a value is called here, and what it may be called in a row; the first that the row has is taken."""

_Value = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A problem as its data set gives it. `reference` is the whole reference answer, for a grader to read; `prompt`
    the code that a continuing answer continues."""

    id: str
    fields: dict[str, Any]
    reference: str = ""
    strata: dict[str, str] = field(default_factory=dict)
    program: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""

    @property
    def decides(self) -> bytes:
        """Everything that the score depends on, in one spelling: a line of the task's digest."""
        parts = [*self.fields.values(), *([self.program] if self.program else [])]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8", "surrogatepass") + b"\n"


def read_row(reader: str, raw: _Value, where: str) -> Row:
    """A row in that reader's terms; an InputError names what it lacks. `where` is the subject: "entry 3 of FILE"."""
    family, read = READERS[reader]
    row = {}
    for name, spellings in FIELD_NAMES[family].items():
        spelled = next((spelling for spelling in spellings if raw.get(spelling) is not None), None)
        if spelled is not None:
            row[name] = raw[spelled]
    return read(row, where)


def _texts(family: str, row: _Value, where: str, *names: str) -> list[str]:
    """The named values, which must be texts."""
    for name in names:
        if not isinstance(row.get(name), str):
            spelled = " or ".join(f"`{spelling}`" for spelling in FIELD_NAMES[family][name])
            raise InputError(f"{where} lacks a text {spelled}: a {family} file has it in every entry")
        _check_unicode(row[name], where)
    return [row[name] for name in names]


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} holds half a character ({text[error.start]!r}), which is no text: mend it") from None


def _list(family: str, row: _Value, where: str, name: str) -> list[str]:
    value = row.get(name, [])
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise InputError(f"{where} has a `{FIELD_NAMES[family][name][0]}` that is not a list of texts: mend it")
    for part in value:
        _check_unicode(part, where)
    return value


def _gsm8k(row: _Value, where: str) -> Row:
    question, answer = _texts("gsm8k", row, where, "question", "answer")
    return Row(prompt_id(f"Question: {question}\nAnswer:"), {"question": question, "answer": answer}, answer)


def _math(row: _Value, where: str) -> Row:
    problem, solution = _texts("math", row, where, "problem", "solution")
    if "\\boxed" not in solution and "\\fbox" not in solution:  # the bare answer of a file without solutions
        solution = f"\\boxed{{{row.get('answer', solution)}}}"
    number = row.get("index")
    strata = {
        "level": str(row["level"]).removeprefix("Level").strip() if "level" in row else "",
        "subject": str(row.get("subject", "")),
    }
    return Row(
        prompt_id(problem) if number is None else f"math/{number}",
        {"problem": problem, "solution": solution},
        solution,
        {name: value for name, value in strata.items() if value},
    )


def _humaneval(row: _Value, where: str) -> Row:
    name, prompt, entry_point, test = _texts("humaneval", row, where, "id", "prompt", "entry_point", "test")
    return Row(
        name,
        {"prompt": prompt, "entry_point": entry_point},
        program={"test": test, "entry_point": entry_point, "given": prompt},
        prompt=prompt,
    )


def _mbpp(row: _Value, where: str) -> Row:
    (text,) = _texts("mbpp", row, where, "text")
    tests = _list("mbpp", row, where, "tests")
    if not tests or "id" not in row:
        raise InputError(f"{where} lacks `task_id` or `test_list`: a task file of MBPP has both in every entry")
    prompt = f'"""\n{text.strip()}\n{tests[0]}\n"""\n'
    fields = {
        "text": text,
        "test_list": tests,
        "prompt": prompt,
        "entry_point": _tested(str(row.get("code", "")), tests),
    }
    program = {
        "test": "\n".join(tests),
        "setup": str(row.get("setup", "")),
        "imports": "\n".join(_list("mbpp", row, where, "imports")),
    }
    return Row(_mbpp_id(row["id"]), fields, program=program, prompt=prompt)


def _mbpp_id(value: Any) -> str:
    return f"Mbpp/{str(value).rsplit('/', maxsplit=1)[-1]}"


def _tested(code: str, tests: list[str]) -> str:
    """The function that the tests are about: the last one of the reference that the first test calls, or empty."""
    defined = re.findall(r"^(?:def|class)\s+(\w+)", code, re.MULTILINE)
    called = [name for name in defined if re.search(rf"\b{name}\s*\(", tests[0])]
    return called[-1] if called else ""


def _humaneval_plus(row: _Value, where: str) -> Row:
    if "base" not in row:  # the hub's form: EvalPlus's inputs and expected outputs written out as a test
        return _humaneval(row, where)
    prompt, entry_point = _texts("plus", row, where, "prompt", "entry_point")
    (name,) = _texts("plus", row, where, "id")
    program = {"given": prompt, "plus": _plus(name, row, where)}
    return Row(name, {"prompt": prompt, "entry_point": entry_point}, program=program, prompt=prompt)


def _mbpp_plus(row: _Value, where: str) -> Row:
    if "base" not in row:
        return _mbpp_plus_of_the_hub(row, where)
    prompt, entry_point = _texts("plus", row, where, "prompt", "entry_point")
    tests = _asserts(str(row.get("assertion", "")), where)
    fields = {
        "text": prompt.strip().strip('"').strip().rpartition("\nassert ")[0].strip(),
        "test_list": tests,
        "prompt": prompt,
        "entry_point": entry_point,
    }
    name = _mbpp_id(row.get("id"))
    return Row(name, fields, program={"plus": _plus(name, row, where)}, prompt=prompt)


def _mbpp_plus_of_the_hub(row: _Value, where: str) -> Row:
    (test,) = _texts("plus", row, where, "test")
    if "assertion(" not in test:
        raise InputError(
            f"{where} has neither `base_input` and `plus_input` nor EvalPlus's written-out `test`: give EvalPlus's own "
            f"MbppPlus-VERSION.jsonl.gz, or leave --data out for the hub's evalplus/mbppplus"
        )
    found = _mbpp({**row, "text": row.get("prompt")}, where)
    return replace(found, program={"test": test, "imports": found.program["imports"]})


def _plus(name: str, row: _Value, where: str) -> dict[str, Any]:
    """EvalPlus's inputs, solution and tolerance, as the sandbox's tester reads them."""
    solution, entry_point, prompt = _texts("plus", row, where, "solution", "entry_point", "prompt")
    inputs = {key: _inputs(row.get(key), where) for key in ("base", "plus")}
    return {
        "task": name,
        "entry_point": entry_point,
        "canonical": prompt + solution,
        **inputs,
        "atol": row.get("atol", 0),
    }


def _inputs(value: Any, where: str) -> Any:
    """A list of argument lists, or, once in MBPP+, an empty object for none; perhaps as JSON text."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) and found != {}:
        raise InputError(f"{where} has no lists `base_input` and `plus_input`: give EvalPlus's own file")
    return found


def _asserts(text: str, where: str) -> list[str]:
    """The single assert statements of a test text, as they are written."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError):
        raise InputError(f"{where} has an `assertion` that is not Python: give EvalPlus's own file") from None
    found = [ast.get_source_segment(text, node) for node in statements if isinstance(node, ast.Assert)]
    return [part for part in found if part]


READERS: dict[str, tuple[str, Callable[[_Value, str], Row]]] = {
    "gsm8k": ("gsm8k", _gsm8k),
    "math": ("math", _math),
    "humaneval": ("humaneval", _humaneval),
    "mbpp": ("mbpp", _mbpp),
    "humaneval-plus": ("plus", _humaneval_plus),
    "mbpp-plus": ("plus", _mbpp_plus),
}
"""A reader's name: which field names its rows have, and what makes a problem of them."""
