"""Where do arithmetic word problems come from when there is no network?  mini-GSM, in GSM8K's own format.

One problem is a chain of one to three operations on a count of things::

    Question: Anna has 12 shells. Then she finds 5 more shells. How many shells does Anna have now?
    Answer: Now she has <<12+5=17>>17 shells.
    #### 17

It stands in for GSM8K (the reasoning column of the paper's tables) on a machine without data or an
accelerator. Every answer line has several phrasings, so that a correct answer is a distribution and not a
string. All numbers are whole and at most 60.

A problem's *computation* is its operation chain with its operands. The hash of the computation decides the
split, so names, things and wording may recur between training and test, but no held-out computation is ever
trained on.

Not here: tokens, sets of fixed size (`corpus`), or grading (`passk` grades as GSM8K is graded).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

LARGEST = 60
"""No operand or result exceeds this."""

_SHE, _HE = ("she", "her", "her"), ("he", "his", "him")
_NAMES = {
    "Anna": _SHE, "Ben": _HE, "Clara": _SHE, "David": _HE, "Emma": _SHE, "Finn": _HE,
    "Grace": _SHE, "Hugo": _HE, "Iris": _SHE, "Jack": _HE, "Kate": _SHE, "Leo": _HE,
}  # fmt: skip
_ITEMS = (
    "apples",
    "balls",
    "books",
    "cards",
    "coins",
    "eggs",
    "hats",
    "keys",
    "pens",
    "shells",
    "stamps",
    "toys",
)

_OPENINGS = {
    "has": ("{name} has {a} {items}.", "{name} starts with {a} {items}."),
    "boxes": (
        "{name} has {a} boxes with {b} {items} in each box.",
        "There are {b} {items} in each of {his} {a} boxes.",
    ),
    "more": ("{other} has {a} {items}. {name} has {b} more {items} than {other}.",),
    "fewer": ("{other} has {a} {items}. {name} has {b} fewer {items} than {other}.",),
}
_EVENTS = {
    "add": (
        "Then {he} finds {b} more {items}.",
        "{His} friend gives {him} {b} {items}.",
        "Then {he} buys {b} {items}.",
    ),
    "sub": (
        "Then {he} loses {b} {items}.",
        "Then {he} gives {b} {items} to {other}.",
        "{He} sells {b} {items}.",
    ),
    "double": ("Then the number of {items} doubles.", "{His} aunt doubles {his} {items}."),
    "triple": ("Then the number of {items} triples.", "{His} aunt triples {his} {items}."),
}
_QUESTIONS = ("How many {items} does {name} have now?", "How many {items} does {he} have?")
_LINES = ("Now {he} has", "So {name} has", "That makes", "This gives {him}")
_SYMBOL = {"boxes": "*", "more": "+", "fewer": "-", "add": "+", "sub": "-", "double": "*", "triple": "*"}
_FACTOR = {"double": 2, "triple": 3}


@dataclass(frozen=True)
class Computation:
    """An operation chain and its operands: what must not be shared between splits.

    `chain` names the operations in order; `operands` are the numbers that the question states, in order.
    """

    chain: tuple[str, ...]
    operands: tuple[int, ...]

    @property
    def key(self) -> str:
        """The computation as text, e.g. `add,double|12,5`."""
        return ",".join(self.chain) + "|" + ",".join(map(str, self.operands))

    def split(self) -> str:
        """`train`, `validation` or `test`: 86 : 4 : 10 by hash of the key, the same on every machine."""
        bucket = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big") % 100
        return "test" if bucket < 10 else "validation" if bucket < 14 else "train"

    def equations(self) -> list[tuple[int, str, int, int]]:
        """Each step as (left, symbol, right, result)."""
        numbers = list(self.operands)
        total, steps = numbers.pop(0), []
        for name in self.chain:
            right = _FACTOR[name] if name in _FACTOR else numbers.pop(0)
            symbol = _SYMBOL[name]
            result = {"+": total + right, "-": total - right, "*": total * right}[symbol]
            steps.append((total, symbol, right, result))
            total = result
        return steps


@dataclass(frozen=True)
class Problem:
    """One word problem with one of its correct answers."""

    question: str
    answer: str
    computation: Computation

    @property
    def result(self) -> int:
        """The gold number."""
        return self.computation.equations()[-1][3]


def _draw_computation(rng: Random) -> Computation:
    """A chain of one to three operations (equally likely) whose results stay within 1..60."""
    while True:
        steps = rng.randint(1, 3)
        opening = rng.choice(("has", "has", "boxes", "more", "fewer"))
        chain = [] if opening == "has" else [opening]
        if opening == "boxes":
            operands = [rng.randint(2, 9), rng.randint(2, 9)]
        else:
            operands = [rng.randint(2, 20)] + [rng.randint(1, 9) for _ in chain]
        while len(chain) < steps:
            name = rng.choice(("add", "sub", "add", "sub", "double", "triple"))
            chain.append(name)
            if name not in _FACTOR:
                operands.append(rng.randint(1, 9))
        drawn = Computation(tuple(chain), tuple(operands))
        if all(1 <= result <= LARGEST for *_, result in drawn.equations()):
            return drawn


def _write(computation: Computation, rng: Random) -> Problem:
    """Puts names, things and words to a computation."""
    name, other = rng.sample(sorted(_NAMES), 2)
    he, his, him = _NAMES[name]
    items = rng.choice(_ITEMS)
    words = {"name": name, "other": other, "items": items, "he": he, "his": his, "him": him}
    words |= {"He": he.capitalize(), "His": his.capitalize()}

    numbers, events = list(computation.operands), list(computation.chain)
    opening = events.pop(0) if events[0] in _OPENINGS else "has"
    a = numbers.pop(0)
    template = rng.choice(_OPENINGS[opening])
    if template.startswith("There"):  # the person must be named before a pronoun refers to them
        template = "{name} counts {items}. " + template
    sentences = [template.format(a=a, b=numbers.pop(0) if opening != "has" else "", **words)]
    for event in events:
        b = "" if event in _FACTOR else numbers.pop(0)
        sentences.append(rng.choice(_EVENTS[event]).format(b=b, **words))
    sentences.append(rng.choice(_QUESTIONS).format(**words))

    lines = []
    for left, symbol, right, result in computation.equations():
        lead = rng.choice(_LINES).format(**words)
        lines.append(f"{lead} <<{left}{symbol}{right}={result}>>{result} {items}.")
    lines.append(f"#### {computation.equations()[-1][3]}")
    return Problem(" ".join(sentences), "\n".join(lines), computation)


def problems(split: str, seed: str) -> Iterator[Problem]:
    """An endless stream of problems of one split, a pure function of the arguments; no question repeats.

    Args:
        split: `train`, `validation` or `test`.
        seed: any text; different seeds give different streams over the same split.
    """
    rng = Random(f"mini-gsm/{split}/{seed}")
    seen: set[str] = set()
    while True:
        problem = _write(_draw_computation(rng), rng)
        if problem.computation.split() == split and problem.question not in seen:
            seen.add(problem.question)
            yield problem
