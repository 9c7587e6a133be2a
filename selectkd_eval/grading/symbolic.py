"""Is this the same mathematical object? MATH's answers, compared by math-verify in processes that may be killed.

The answer is the last `\\boxed{}`; in a text without one, what math-verify finds there: after "final answer is", or the
last expression. The gold one is the reference solution's last box. What is plainly equal or unequal (the same LaTeX but
for spacing, two integers) is decided here; a test holds that math-verify agrees.

It differs from math-verify in a few points, each a test: numbers with different base subscripts differ, and so do small
decimals that agree only in their first six places; `2 1/2` is a mixed number; units may follow in prose; a percent sign
may be left out, whatever the installed version of the parser makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from types import TracebackType

from selectkd_eval.grading.boxes import boxed_gold, last_boxes
from selectkd_eval.grading.compare import BETWEEN
from selectkd_eval.grading.grade import Grade, GradeWord
from selectkd_eval.grading.pool import Allowance, Pool, Reply

_TAIL = 4000  # characters of a text without a box that are searched: the answer stands at its end
_LONGEST = 20_000  # a longer "answer" is a model in a loop; no reference has more than 200 characters
_KEPT = 400  # characters of an answer that a record keeps
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "°": r"^\circ ", "π": r"\pi ", "×": r"\times "}
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_SIZE = re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![a-zA-Z])|\\[!,;:]")
_SPACE = re.compile(r"(?<![a-zA-Z0-9])\s+|\s+(?![a-zA-Z0-9])")
_MIXED = re.compile(r"(-?\d+)\s+(\d+)\s*/\s*(\d+)")
_SHORT = re.compile(r"\\[dt]?frac\s*(\d|\\pi)\s*(\d|\\pi)")
_NAMED = re.compile(r"[a-zA-Z]\s*=\s*((?:\\\$)?\d{1,3}(?:,\d{3})+)")
# "118 dollars", "440 cm^2": a word of prose after a number would be read as a product of symbols.
_UNIT = re.compile(
    r"(?<=[\d})])\s+((?:[A-Za-z]{3,}|[cmk]m|ft|in|kg|mg|ml|mi|hr)\b[A-Za-z. ]*)(?:\^\{?\d\}?)?\Z",
    re.IGNORECASE,
)
_NOT_UNITS = frozenset({"and", "or", "mod", "sin", "cos", "tan", "log", "sqrt", "cot", "sec", "csc", "arctan"})
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|mathbf|rm)\s*\{([^{}]*)\}")
_GROUP = re.compile(r"(?<=\d)(?:,\s?\\!|\\!,|\{,\}|\\,)\s?(?=\d{3}(?!\d))")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*percent\s*\}|percent)\s*\Z")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\})\s?\d{3})+")
_INTEGER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})")
_BASE = re.compile(r"([+-]?[0-9A-Z.]+)_\{?(\d+)\}?")


def tidy(answer: str) -> str:
    """An answer without what surrounds it in prose: dollar signs of mathematics, bold marks, a final full stop; and
    thousands without their commas where these can be nothing else.
    """
    answer = _DOLLAR.sub("", answer.translate(_SIGNS).replace("\0", "")).strip().strip("*").strip()
    answer = _GROUP.sub("", answer.rstrip(".,;").strip() or answer)
    answer = _SHORT.sub(r"\\frac{\1}{\2}", answer)
    if mixed := _MIXED.fullmatch(answer):
        return rf"{mixed[1]}\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    if named := _NAMED.fullmatch(answer):
        return named[1]
    unit = _UNIT.search(answer)
    if unit and not _NOT_UNITS & set(unit[1].lower().split()):
        return rf"{answer[: unit.start()].rstrip()}\text{{ {unit[1]}}}"
    return answer


def plainly(answer: str, gold: str) -> bool | None:
    """Whether two tidy answers are equal, where that can be seen without algebra; None where it cannot."""
    one_percent = bool(_PERCENT.search(answer)) != bool(_PERCENT.search(gold))
    answer, gold = _canonical(_PERCENT.sub("", answer)), _canonical(_PERCENT.sub("", gold))
    if answer == gold or _same_words(answer, gold):
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        same: bool | None = _integer(answer) == _integer(gold)
    elif _DECIMAL.fullmatch(answer) and _DECIMAL.fullmatch(gold):
        same = _same_decimal(Fraction(answer), Fraction(gold))
    elif (ours := _BASE.fullmatch(answer)) and (theirs := _BASE.fullmatch(gold)):
        same = (ours[1].lstrip("0"), int(ours[2][:9])) == (theirs[1].lstrip("0"), int(theirs[2][:9]))
    else:
        same = None
    return None if one_percent and not same else same


def _same_words(answer: str, gold: str) -> bool:
    """Whether both are the same words, in \\text{} or not. A single letter is a symbol: x and X are two."""
    if ("\\" in answer) != ("\\" in gold):
        plain = [re.sub(r"\s", "", _TEXT.sub(r"\1", each)).casefold().rstrip(".") for each in (answer, gold)]
        if plain[0] == plain[1]:
            return True
    words = _words(answer)
    return words == _words(gold) and (len(words) > 1 or (words != "" and "(" in answer + gold))


def _same_decimal(answer: Fraction, gold: Fraction) -> bool | None:
    """math-verify rounds to six places, so that 0.0000672 is 0.0000673 to it; close calls are left to it."""
    if answer == gold:
        return True
    return False if abs(answer - gold) > abs(gold) / 10_000 else None


def _alternatives(answer: str, other: str) -> str:
    """What an answer can stand for, as the workers take it. A percent sign that only one side has may have been left
    out or worked out: 25% is 25 or 1/4. (That math-verify reads the sign depends on the version of its parser.)
    """
    plain = _PERCENT.sub("", answer)
    if plain == answer:
        return f"$${answer}$$"
    if _PERCENT.search(other):
        return f"$${plain}$$"
    return f"$${plain}$$" + BETWEEN + rf"$$\frac{{{plain}}}{{100}}$$"


def _canonical(answer: str) -> str:
    answer = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", _SIZE.sub("", answer))
    answer = _SPACE.sub("", answer).strip()
    number = answer.removeprefix(r"\$")
    if _THOUSANDS.fullmatch(number):
        return re.sub(r"[^\d+-]", "", number)
    return number if _INTEGER.fullmatch(number) else answer


def _integer(digits: str) -> tuple[bool, str]:
    """Sign and digits, because int() refuses thousands of them."""
    magnitude = digits.lstrip("+-").lstrip("0")
    return (digits.startswith("-") and magnitude != "", magnitude)


def _words(answer: str) -> str:
    """An answer in words, without case, spaces, parentheses: "\\text{(C)}" and "(C)"; empty where it is not words."""
    plain = _TEXT.sub(r"\1", answer)
    if not re.fullmatch(r"[A-Za-z(][\w\s().,'-]*", plain):
        return ""
    letters = re.sub(r"[\s().,'-]", "", plain)
    named = plain != answer or letters.isalpha() or re.match(r"[A-Za-z]{3}", plain)
    return letters.casefold() if named else ""


class MathVerify:
    """The grader `math-verify`. One pair's answer and gold are remembered: eight samples often give the same."""

    name = "math-verify"

    def __init__(self, workers: int = 0, allowance: Allowance | None = None) -> None:
        self.version = f"1, math-verify {version('math-verify')}"
        self.pool = Pool("math-verify", workers, allowance)
        self.known: dict[tuple[str, str], Reply] = {}

    def __enter__(self) -> MathVerify:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()

    def gold(self, reference: str) -> str:
        """The last box of a MATH solution; an InputError where it has none."""
        return boxed_gold(reference)

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Verdicts on (completion, gold) pairs, in order."""
        questions = [self._question(completion, gold) for completion, gold in pairs]
        unknown = list(dict.fromkeys(key for _, key in questions if key not in self.known))
        self.known.update(zip(unknown, self.pool.run(unknown), strict=True))
        return [_grade(self.known[key], answer) for answer, key in questions]

    def _question(self, completion: str, gold: str) -> tuple[str | None, tuple[str, str]]:
        """What the completion's box holds, and the pair that decides; plain cases are settled at once."""
        found = last_boxes(completion)
        reference = tidy(gold)
        if not found:
            tail = completion[-_TAIL:].replace("\0", "")
            key = (tail, f"$${reference}$$")
            if not tail.strip():
                self.known[key] = Reply("no-answer", None)
            return None, key
        # A list was asked for and each element stands in a box of its own.
        raw = ", ".join(found) if len(found) > 1 and len(found) == _elements(reference) else found[-1]
        answer = tidy(raw)
        key = (_alternatives(answer, reference), _alternatives(reference, answer))
        if key not in self.known:
            plain = False if len(answer) > _LONGEST else plainly(answer, reference)
            if plain is not None:
                self.known[key] = Reply("right" if plain else "wrong", None)
        return raw, key


def _elements(gold: str) -> int:
    """How many elements a list has: its commas outside brackets, and one."""
    depth = count = 0
    for character in gold:
        depth += (character in "([{") - (character in ")]}")
        count += character == "," and depth == 0
    return count + 1


def _grade(reply: Reply, answer: str | None) -> Grade:
    word: GradeWord = reply.word  # type: ignore[assignment]  # the worker's words are GradeWord's
    extracted = answer if answer is not None else reply.extracted
    if word == "no-answer" and answer is not None:
        word = "wrong"  # a box was there, whatever stands in it
    return Grade(word, None if extracted is None else extracted[:_KEPT])
