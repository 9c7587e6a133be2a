"""Is this the number that GSM8K asks for? The final number of a worked solution, whatever it is dressed in.

The paper reports pass@1 on GSM8K without naming its grader, and graders alone move such scores by points.
So a grader here is a named rule with measured error rates: `gsm8k-numeric` agrees with OpenAI's own verdicts
on all 5,276 labelled solutions of grade-school-math. A completion becomes a canonical number (an exact
fraction, never a float) and is right when that equals the gold one.

Stored completions can be graded again at any time without a model. Competition mathematics (symbolic answers) is
`symbolic`'s, programs are the sandbox's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from types import TracebackType

from selectkd_eval.errors import InputError
from selectkd_eval.grading.grade import Grade

_DIGITS = 200  # a longer run of digits is a model stuck in a loop, not an answer
_NUMBER = re.compile(
    # A minus is a sign only where nothing stands before it to subtract from.
    r"(?P<sign>(?<![\w).])-)?(?:\\?[$€£]\s?)?(?P<inner_sign>(?<=[$€£])-)?"
    r"(?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<decimals>\.\d+)?|(?P<bare>(?<![\d,])\.\d+))"
    r"(?:\s?/\s?(?P<below>\d+))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_MIXED = re.compile(
    r"(?<![\d.,/])(\d{1,9})(?:\s*\\[dt]?frac\s*\{(\d{1,9})\}\s*\{(\d{1,9})\}|\s+(\d{1,9})/(\d{1,9})(?![\d/.,]\d))"
)
_MARKER = re.compile(r"(?:\banswer\s*(?:is|:|=)+|^[ \t]*A:)", re.IGNORECASE | re.MULTILINE)
_REMARK = re.compile(r"\([^()]*\)")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PLAIN = str.maketrans(
    {"−": "-", "－": "-", "．": ".", "，": ",", "＄": "$", "￥": "", "％": "%", "\u00a0": " ", "\u202f": " "}
)


def extract_number(completion: str) -> str | None:
    """The final number of a worked solution in canonical form ("18", "-2.5", "1/3"), or None.

    Looked for in this order: after the last `####`; in the last `\\boxed{}`; after the last "answer is",
    "answer:" or "A:"; the last number, remarks in parentheses set aside. Currency signs, units, thousands
    commas, trailing zeros and non-ASCII digits do not matter.
    """
    text = _ascii_digits(completion)
    _, mark, after = text.rpartition("####")
    if mark and (number := _first(after.lstrip().split("\n", 1)[0])) is not None:
        return number
    if (boxed := _last_boxed(text)) is not None and (number := _last(boxed)) is not None:
        return number
    if markers := list(_MARKER.finditer(text)):
        line = _without_remarks(text[markers[-1].end() :].lstrip().split("\n", 1)[0])
        if (number := _first(line.rpartition("=")[2])) is not None or (number := _first(line)) is not None:
            return number
    for line in reversed(text.split("\n")):
        if (number := _last(_without_remarks(line))) is not None:
            return number
    return None


def gsm8k_gold(answer: str) -> str:
    """The number after `####` of a GSM8K answer, canonical; an InputError when there is none."""
    _, mark, after = _ascii_digits(answer).rpartition("####")
    number = _first(after) if mark else None
    if number is None:
        raise InputError(f"the reference answer {answer[-60:]!r} has no '#### NUMBER' line as in GSM8K: add it")
    return number


class NumberGrading:
    """The grader `gsm8k-numeric`: exact fractions, no process, no library."""

    name = "gsm8k-numeric"
    version = "2"

    def gold(self, reference: str) -> str:
        """The number after a GSM8K answer's `####`; an InputError where there is none."""
        return gsm8k_gold(reference)

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Verdicts on (completion, gold) pairs, in order."""
        found = [extract_number(completion) for completion, _ in pairs]
        return [
            Grade("no-answer" if number is None else "right" if number == gold else "wrong", number)
            for number, (_, gold) in zip(found, pairs, strict=True)
        ]

    def __enter__(self) -> NumberGrading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""


def _ascii_digits(text: str) -> str:
    text = text.translate(_PLAIN).replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    if not text.isascii():
        text = "".join(str(int(c)) if c.isdecimal() else c for c in text)
    return text


def _without_remarks(line: str) -> str:
    """The line without what is in parentheses, unless its only number is there."""
    plain = _REMARK.sub(" ", line)
    return plain if any(c.isdigit() for c in plain) else line


def _last_boxed(text: str) -> str | None:
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return None
    depth = 1
    for at in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[starts[-1] : at]
    return text[starts[-1] :]


def _numbers(text: str) -> list[str]:
    text = _FRACTION.sub(r"\1/\2", _MIXED.sub(_unmixed, text))
    found = []
    for match in _NUMBER.finditer(text):
        whole, below = match["whole"] or "0", match["below"]
        decimals = match["decimals"] or match["bare"] or ""
        if max(len(whole), len(decimals), len(below or "")) > _DIGITS:
            continue
        value = Fraction(whole.replace(",", "") + decimals)
        if below is not None:
            if int(below) == 0:
                continue
            value /= int(below)
        found.append(_spell(-value if match["sign"] or match["inner_sign"] else value))
    return found


def _unmixed(match: re.Match[str]) -> str:
    """`2 1/2` and `2\\frac{1}{2}` as 5/2."""
    whole, above, below = int(match[1]), int(match[2] or match[4]), int(match[3] or match[5])
    return f"{whole * below + above}/{below}"


def _first(text: str) -> str | None:
    numbers = _numbers(text)
    return numbers[0] if numbers else None


def _last(text: str) -> str | None:
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _spell(value: Fraction) -> str:
    """One spelling per value: an integer, a finite decimal, or a fraction in lowest terms."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1 or places > _DIGITS:
        return str(value)
    sign, digits = "-" if value < 0 else "", str(abs(value.numerator) * (10**places // value.denominator))
    digits = digits.rjust(places + 1, "0")
    return f"{sign}{digits[:-places]}.{digits[-places:]}"
