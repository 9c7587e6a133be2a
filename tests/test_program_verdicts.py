"""Verdicts on programs: what tests mean across two processes, which word an ending gets, and that none is forged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Outcome, Program
from selectkd_eval.sandbox.tester import FALLBACK, compiled, import_lines

BOTH = ("isolated", "official")


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(Limits(cpu_seconds=10.0), workers=2) as box:
        yield box


def fate(box: Sandbox, code: str, test: str, mode: str = "isolated", **parts: Any) -> Outcome:
    ((_, outcome),) = box.run([Program("one", code, test, **parts)], mode)  # type: ignore[arg-type]
    return outcome


# ---------------------------------------------------------------- words

ENDINGS = [
    ("def f(): return 1", "assert f() == 1", "pass", ""),
    ("def f(): return 1", "x = 0\nassert f() == 2, 'no'", "wrong", "assert f() == 2, 'no'"),
    ("def f(): assert False, 'mine'", "assert f() == 1", "error", "AssertionError: mine"),
    ("def f(): return {}['k']", "assert f() == 1", "error", "KeyError: 'k'"),
    ("def f(", "assert f() == 1", "error", "SyntaxError"),
    ("f = 1\n\0", "assert f == 1", "error", ""),
    ("pass", "assert f() == 1", "error", "NameError: name 'f' is not defined"),
    ("class Odd(Exception): pass\ndef f(): raise Odd('x')", "f()", "error", "Odd: x"),
    ("def f(): return f()", "f()", "error", "RecursionError"),
    ("def f(): return [0] * (1 << 40)", "f()", "memory", ""),
    ("import nosuch.thing", "assert True", "import-missing", "nosuch"),
    ("def f():\n import nosuch", "f()", "import-missing", "nosuch"),
    ("def f(): open('/etc/x-new', 'w')", "f()", "forbidden", "/etc/x-new"),
    ("raise SystemExit(0)", "assert True", "error", "SystemExit"),
    ("def f(): raise SystemExit(0)", "f()", "error", "SystemExit"),
    ("def f(): raise KeyboardInterrupt", "f()", "error", "KeyboardInterrupt"),
    ("def f(): raise GeneratorExit", "f()", "error", "GeneratorExit"),
    ("def f(): raise StopIteration", "list(f() for _ in range(3))", "error", ""),
    ("import os\nos._exit(0)", "assert True", "crash", "exit status 0"),
    ("import os\ndef f(): os._exit(0)", "f()", "crash", "exit status 0"),
    ("import ctypes\ndef f(): ctypes.string_at(0)", "f()", "crash", "SIGSEGV"),
    ("def f(): return input()", "f()", "error", "EOFError"),
    ("if __name__ == '__main__': raise ValueError", "assert True", "pass", ""),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n x: int", "assert P(1).x == 1", "pass", ""),
    ("def f(x: 'list[int]'):\r\n\treturn x", "assert f([1]) == [1]", "pass", ""),
    ("def f(): return g()", "def g(): return 1\nassert callable(g)", "pass", ""),
]


@pytest.mark.parametrize("mode", BOTH)
def test_words(box: Sandbox, mode: Any) -> None:
    programs = [Program(str(place), code, test) for place, (code, test, *_) in enumerate(ENDINGS)]
    for place, outcome in box.run(programs, mode):
        code, _, word, detail = ENDINGS[place]
        assert outcome.word == word, (code, outcome)
        assert detail in outcome.detail, (code, outcome)


def test_details_are_one_clean_line(box: Sandbox) -> None:
    texts = [r"'\ud800\x00\x1b[2J' + 'x' * 10 ** 6", r"'a\nb'", r"b'\xff'", "type('S', (str,), {'__str__': 5})('s')"]
    for text in texts:
        for mode in BOTH:
            detail = fate(box, f"def f(): raise ValueError({text})", "f()", mode).detail
            assert detail.startswith("ValueError") and len(detail) <= 400 and detail.isprintable()


# ---------------------------------------------------------------- what tests may do with the candidate's things

TREE = """
class Node:
    def __init__(self, value): self.value, self.left, self.items = value, None, [1, 2]
    def __len__(self): return 3
    def __getitem__(self, key): return self.items[key]
    def __setitem__(self, key, value): self.items[key] = value
    def __str__(self): return f"<{self.value}>"
    def __eq__(self, other): return isinstance(other, Node) and self.value == other.value
    def double(self): return Node(2 * self.value)
class Leaf(Node): pass
def depth(node): return 0 if node is None else 1 + depth(node.left)
def count(n):
    for i in range(n): yield i
def forever():
    while True: yield 1
total = 0
def add(n):
    global total
    total += n
def apply(function, *args, **named): return function(*args, **named)
def sort(items): items.sort(); return None
def deep(box): box['rows'][0].append(9); box['new'] = {1}; return box['rows']
def kinds(values, kind): return [v for v in values if type(v) is kind]
def bad(x): raise ZeroDivisionError('by ' + str(x))
class Custom(LookupError): pass
def worse(): raise Custom('worse')
"""

HOLDS = [
    "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2 and root.left.value == 2",
    "assert Node(3).double().value == 6 and str(Node(3)) == '<3>' and len(Node(1)) == 3",
    "n = Node(1)\nn[0] = 7\nassert n[0] == 7 and n.items == [7, 2] and n[:] == [7, 2]",
    "assert Node(1) == Node(1) and Node(1) != Node(2) and Node(1) != '<1>' and not (Node(1) == 1)",
    "assert isinstance(Leaf(1), Node) and not isinstance(Node(1), Leaf) and not isinstance(Node(1), (int, list))",
    "assert list(count(4)) == [0, 1, 2, 3] and 3 in count(4) and 9 not in count(4) and max(count(4)) == 3",
    "it = count(2)\nassert next(it) == 0 and next(it) == 1\ntry: next(it)\nexcept StopIteration: pass\nelse: assert 0",
    "import itertools\nassert list(itertools.islice(forever(), 3)) == [1, 1, 1]",
    "add(2)\nadd(3)\nassert total == 5",
    "assert apply(lambda x: x + 1, 2) == 3 and apply(max, [1, 3]) == 3 and apply(int, '5') == 5",
    "calls = []\ndef note(x, *, y=0):\n calls.append((x, y))\n return depth(None)\n"
    "assert apply(note, 1, y=2) == 0 and calls == [(1, 2)]",
    "def boom(): raise KeyError('k')\ntry: apply(boom)\nexcept KeyError: pass\nelse: assert 0",
    "x = [3, 1, 2]\nassert sort(x) is None and x == [1, 2, 3]",
    "rows = [[1]]\nbox = {'rows': rows}\nassert deep(box) == [[1, 9]] and rows == [[1, 9]] and box['new'] == {1}",
    "assert kinds([1, 'a', 2.0], int) == [1] and kinds([1, 'a'], str) == ['a']",
    "try: bad(1)\nexcept ZeroDivisionError as e: assert str(e) == 'by 1' and e.args == ('by 1',)\nelse: assert 0",
    "try: worse()\nexcept LookupError: pass\nelse: assert 0",
    "f = apply\nassert f(depth, None) == 0 and f is not depth and {f: 1}[f] == 1",
]


@pytest.mark.parametrize("mode", BOTH)
def test_tests_mean_the_same_across_processes(box: Sandbox, mode: Any) -> None:
    for place, outcome in box.run([Program(str(i), TREE, test) for i, test in enumerate(HOLDS)], mode):
        assert outcome.passed, (HOLDS[place], outcome)


def test_order_and_helpers(box: Sandbox) -> None:
    parts = {"imports": "import math", "setup": "root = Node(2)", "entry_point": "area"}
    code = "class Node:\n def __init__(self, r): self.r = r\ndef area(n): return math.pi * n.r ** 2"
    test = "def check(candidate):\n assert math.isclose(candidate(root), 4 * math.pi)"
    for mode in BOTH:  # imports are seen by the candidate's functions too, as in one interpreter
        assert fate(box, code, test, mode, **parts).passed


def test_the_data_sets_texts_are_compiled_once_and_never_the_code() -> None:
    program = {"code": "1", "imports": "", "setup": "x = (", "test": "assert 1 is 1", "given": "y = 2"}
    codes = compiled(program)
    assert set(codes) == {"test", "given"}
    assert codes["test"] is compiled({**program, "code": "2"})["test"]
    names: dict[str, Any] = {}
    exec(codes["given"], names)
    assert names["y"] == 2


@pytest.mark.parametrize("mode", BOTH)
def test_tests_that_are_no_python_are_an_error(box: Sandbox, mode: str) -> None:
    outcome = fate(box, "def f(): return 1", "assert f( == 1", mode)
    assert (outcome.word, outcome.detail.partition(":")[0]) == ("error", "SyntaxError")


def test_imports_found_in_tests_are_only_the_imports() -> None:
    text = "import math\nfrom os import (path,\n sep)\nT = '''\nfrom here on, 42 is expected\n'''\ndef f():\n import re"
    assert import_lines(text) == "import math\nfrom os import path, sep"
    assert import_lines("assert f('import x') == 3") == ""


# ---------------------------------------------------------------- forgeries: wrong answers, whatever they do

EQUAL = "class Always:\n def __eq__(s, o): return True\n def __ne__(s, o): return False\n __hash__ = None\n"
MORE = "__lt__ = __le__ = __gt__ = __ge__ = __contains__ = lambda s, o: True\n"
SUM = " __sub__ = __rsub__ = __add__ = lambda s, o: 0.0\n __abs__ = __round__ = __float__ = lambda s, *a: 0.0\n"
JUMP = """
import sys
def t(f, e, a):
    try: f.f_lineno = 10 ** 6
    except Exception: pass
    return t
sys.settrace(t)
g = sys._getframe()
while g: g.f_trace = t; g = g.f_back
def f(): return 1
"""
FRAMES = """
import sys
def f():
    g = sys._getframe()
    while g:
        text = repr(g.f_locals) + repr(g.f_globals)
        for place in range(len(text)):
            if text.startswith('mandra', place) and text.startswith('gora-', place + 6): return text[place:place + 13]
        g = g.f_back
"""
OBJECTS = """
import gc
def f():
    for thing in gc.get_objects():
        try: text = str(thing)[:99999]
        except Exception: continue
        place = text.find('mandra' 'gora-')
        if place >= 0 and text[place + 11:place + 13].isdigit(): return text[place:place + 13]
"""
FORGERIES = [
    (EQUAL + "def f(): return Always()", "assert f() == 5"),
    (EQUAL + "def f(): return [Always()]", "assert f() == [5]"),
    (EQUAL + "def f(): return {1: Always()}", "assert f() == {1: 5}"),
    (EQUAL + f" {MORE}def f(): return Always()", "assert 5 in f()"),
    (EQUAL + f" {MORE}def f(): return Always()", "assert f() < 5"),
    (EQUAL + f"{SUM}def f(): return Always()", "assert abs(f() - 5) < 1e-6"),
    (EQUAL + f"{SUM}def f(): return Always()", "import math\nassert math.isclose(f(), 5)"),
    ("class I(int):\n __eq__ = lambda s, o: True\n __hash__ = int.__hash__\ndef f(): return I(4)", "assert f() == 5"),
    ("class L(list):\n __eq__ = lambda s, o: True\ndef f(): return L([4])", "assert f() == [5]"),
    ("class S(str):\n __eq__ = lambda s, o: True\n __hash__ = None\ndef f(): return S('a')", "assert f() == 'b'"),
    ("class D(dict):\n __eq__ = lambda s, o: True\ndef f(): return D()", "assert f() == {1: 2}"),
    ("class C:\n __class__ = list\ndef f(): return C()", "assert isinstance(f(), list)"),
    ("def f(): return float('nan')", "assert f() == float('nan') or f() == 5"),
    ("def set(x): return 1\ndef f(): return [1]", "assert set(f()) == set([5])"),
    ("def sorted(x): return 1\ndef len(x): return 1\ndef f(): return [1]", "assert sorted(f()) == sorted([5])"),
    ("class math:\n isclose = lambda *a: True\ndef f(): return 1", "import math\nassert math.isclose(f(), 5)"),
    ("def check(c): pass\ndef f(): return 1", "def check(candidate):\n assert candidate() == 5"),
    ("import threading, time, sys\ndef w():\n while True: sys.modules['candidate'].check = print\n"
     "threading.Thread(target=w, daemon=True).start()\ndef f(): return 1", "def check(c):\n assert c() == 5"),
    (JUMP, "assert f() == 5\nx = 1"),
    (FRAMES, "assert f() == 'mandragora-17'"),
    (OBJECTS, "assert f() == 'mandragora-17'"),
    ("import os\ndef f():\n for fd in range(64):\n"
     "  try: os.write(fd, b'{\"word\": \"pass\", \"detail\": \"\"}\\n' * 9)\n"
     "  except OSError: pass\n return 1", "assert f() == 5"),
    ("import os\nfor fd in range(3, 64):\n try: os.write(fd, b'\\1\\0\\0\\0T')\n except OSError: pass\n"
     "def f(): return 1", "assert f() == 5"),
    ("import os\ndef f():\n os.write(3, b'\\xff' * 4)\n return 1", "assert f() == 5"),
    ("import os\ndef f():\n os.close(3)\n return 1", "assert f() == 5"),
    ("import sys\ndef f():\n x = []\n x.append(x)\n return x", "assert f() == 5"),
    ("def f():\n x = []\n for _ in range(10 ** 5): x = [x]\n return x", "assert f() == 5"),
    ("def f(): return 'x' * (17 << 20)", "assert f() != 5"),
    ("def f():\n while True: yield 4", "assert f() == 5"),
    ("import builtins\nbuiltins.len = builtins.isinstance = lambda *a: True\ndef f(): return 1", "assert f() == 5"),
    ("class E(Exception):\n def __str__(s): raise SystemExit(0)\ndef f(): raise E", "f()"),
    ("class E(AssertionError):\n __name__ = 'pass'\ndef f(): raise E('pass')", "f()"),
]  # fmt: skip


def test_a_wrong_answer_never_passes(box: Sandbox) -> None:
    programs = [
        Program(str(place), code, test, entry_point="f" if "check(c" in test else "")
        for place, (code, test) in enumerate(FORGERIES)
    ]
    fates = dict(box.run(programs, "isolated"))
    assert [FORGERIES[place] for place, outcome in fates.items() if outcome.passed] == []
    assert len(fates) == len(FORGERIES)
    assert fate(box, "def f(): return 5", "assert f() == 5").passed  # the harness is alive


def test_helpers_of_the_prompt_are_the_data_sets_own(box: Sandbox) -> None:
    prompt = "def poly(x): return x - 2\n\ndef root():\n    '''A zero of poly.'''\n"
    test = "def check(candidate):\n    assert poly(candidate()) == 0"
    honest, forged = prompt + "    return 2\n", prompt + "    return 7\n\ndef poly(x): return 0\n"
    for mode, words in (("isolated", ["pass", "wrong"]), ("official", ["pass", "pass"])):
        found = [fate(box, code, test, mode, entry_point="root", given=prompt).word for code in (honest, forged)]
        assert found == words


def test_a_builtin_is_the_candidates_only_where_it_is_what_is_tested(box: Sandbox) -> None:
    for mode in BOTH:
        assert fate(box, "def sum(a, b): return a * b", "assert sum(3, 4) == 12", mode).passed
        assert fate(
            box, "def pow(a, b): return 1", "def check(f):\n assert f(3, 4) == 1", mode, entry_point="pow"
        ).passed
    assert not fate(box, "def set(x): return 1\ndef f(): return [1]", "assert set(f()) == set([2])").passed


# ---------------------------------------------------------------- gold solutions

HEAVY = {123}  # 4.3 s of CPU: amicable numbers below 9999


def rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
@pytest.mark.parametrize("mode", BOTH)
def test_gold_solutions_pass(box: Sandbox, shared_data: Path, mode: Any) -> None:
    """HumanEval 164 of 164; MBPP: the sanitized 427 but the one that is all arithmetic, and the full set's odd ones."""
    programs = [
        Program(row["task_id"], row["prompt"] + row["canonical_solution"], row["test"], given=row["prompt"],
                entry_point=row["entry_point"])
        for row in rows(shared_data / "tasks" / "HumanEval.jsonl.gz")
    ]  # fmt: skip
    programs += [
        Program(
            f"Mbpp/{row['task_id']}", row["code"], "\n".join(row["test_list"]), imports="\n".join(row["test_imports"])
        )
        for row in rows(shared_data / "tasks" / "mbpp_sanitized.jsonl.gz")
        if row["task_id"] not in HEAVY
    ]
    programs += [
        Program(f"full/{row['task_id']}", row["code"], "\n".join(row["test_list"]), row["test_setup_code"])
        for row in rows(shared_data / "tasks" / "mbpp_full.jsonl.gz")
        if row["task_id"] in (367, 533, 927, 126, 596)
    ]
    failed = {programs[place].id: outcome for place, outcome in box.run(programs, mode) if not outcome.passed}
    assert set(failed) <= (set(FALLBACK) if mode == "isolated" else set()), failed
    assert len(programs) == 164 + 426 + 5 and not FALLBACK
