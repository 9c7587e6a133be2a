"""Which rule gave a published number? The graders behind lm-eval's scores, so that such a number can be matched.

Each keeps the faults of its model (lm-eval 0.4.13): `gsm8k-strict` wants "#### 18" to the letter, `hendrycks` compares
whatever stands between the first and the last dollar sign, `minerva` wants its own closing sentence. Tests hold every
rule against lm-eval's functions, text by text. What needs sympy is called from the installed lm-eval, in the worker
processes of `pool`; the rest is short enough to stand here in our own words.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import TracebackType

from selectkd_eval.errors import InputError
from selectkd_eval.grading.grade import Grade, GradeWord
from selectkd_eval.grading.pool import Allowance, Pool, Reply

_KEPT = 400  # characters of an answer that a record keeps
_GUARD = Allowance(cpu_seconds=40.0, wall_seconds=240.0)  # lm-eval's own alarms (5 s each) decide; this is behind them
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_CLOSING = "Final Answer: The final answer is"
_HOPE = " I hope it is correct"

Extract = Callable[[str], str | None]
Equal = Callable[[str, str], bool]


class TextRule:
    """A rule of lm-eval that compares strings: where the answer is, and which spellings are one."""

    def __init__(self, name: str, extract: Extract, equal: Equal, gold: Callable[[str], str]) -> None:
        self.name, self.gold = name, gold
        self.version = "1, as lm-eval 0.4.13"
        self._extract, self._equal = extract, equal

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Verdicts on (completion, gold) pairs, in order."""
        return [self._one(completion, gold) for completion, gold in pairs]

    def _one(self, completion: str, gold: str) -> Grade:
        answer = self._extract(completion)
        if answer is None:
            return Grade("no-answer", None)
        return Grade("right" if self._equal(answer, gold) else "wrong", answer[:_KEPT])

    def __enter__(self) -> TextRule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""


class SympyRule:
    """A rule of lm-eval that asks sympy: lm-eval's own functions, in processes that may be killed."""

    def __init__(self, name: str, extract: Extract, gold: Callable[[str], str], workers: int = 0) -> None:
        self.name, self.gold = name, gold
        self.version = f"1, lm-eval {version('lm-eval')}, math-verify {version('math-verify')}"
        self._extract = extract
        self._pool = Pool(name, workers, _GUARD)
        self._known: dict[tuple[str, str], Reply] = {}

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Verdicts on (completion, gold) pairs, in order."""
        questions = [(self._extract(completion), gold) for completion, gold in pairs]
        asked = dict.fromkeys((answer, gold) for answer, gold in questions if answer is not None)
        unknown = [pair for pair in asked if pair not in self._known]
        self._known.update(zip(unknown, self._pool.run(unknown), strict=True))
        return [
            Grade("no-answer", None) if answer is None else _grade(self._known[answer, gold])
            for answer, gold in questions
        ]

    def __enter__(self) -> SympyRule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()


def _grade(reply: Reply) -> Grade:
    word: GradeWord = reply.word  # type: ignore[assignment]  # the worker's words are GradeWord's
    return Grade(word, None if reply.extracted is None else reply.extracted[:_KEPT])


def gsm8k_strict() -> TextRule:
    """lm-eval's gsm8k, filter strict-match: the first "#### NUMBER"."""
    return TextRule("gsm8k-strict", strict_number, _same_number, _gsm8k_reference)


def gsm8k_flexible() -> TextRule:
    """lm-eval's gsm8k, filter flexible-extract: the last thing that looks like a number."""
    return TextRule("gsm8k-flexible", flexible_number, _same_number, _gsm8k_reference)


def hendrycks() -> TextRule:
    """lm-eval's hendrycks_math: what stands between the first and the last dollar sign, compared as strings."""
    return TextRule("hendrycks", between_dollars, hendrycks_equal, hendrycks_gold)


def hendrycks_boxed() -> TextRule:
    """The comparison of hendrycks_math on the last \\boxed{}, as most code after it does."""
    return TextRule("hendrycks-boxed", hendrycks_box, hendrycks_equal, hendrycks_gold)


def minerva(workers: int = 0) -> SympyRule:
    """lm-eval's minerva_math exact_match: the closing sentence of its prompt, then sympy on normalised LaTeX."""
    return SympyRule("minerva", minerva_answer, hendrycks_gold, workers)


def minerva_math_verify(workers: int = 0) -> SympyRule:
    """lm-eval's minerva_math math_verify: math-verify on the whole completion and the whole solution."""
    return SympyRule("minerva-math-verify", lambda completion: completion, lambda reference: reference, workers)


def strict_number(completion: str) -> str | None:
    found = _STRICT.search(completion)
    return found[1].strip() if found else None


def flexible_number(completion: str) -> str | None:
    found = deque(_FLEXIBLE.finditer(completion), maxlen=1)
    return found[0][0].strip() if found else None


def _same_number(answer: str, gold: str) -> bool:
    return _ignoring(answer) == gold


def _ignoring(text: str) -> str:
    """What the task's `regexes_to_ignore` and `ignore_case` leave: commas, dollar signs, the solution's text before
    the last "#### " and a full stop at the end go.
    """
    text = text.replace(",", "").replace("$", "")
    text = text.rpartition("#### ")[2]
    return re.sub(r"\.$", "", text).lower()


def _gsm8k_reference(reference: str) -> str:
    if "#### " not in reference:
        raise InputError(f"the reference answer {reference[-60:]!r} has no '#### NUMBER' line as in GSM8K: add it")
    return _ignoring(reference)


def between_dollars(completion: str) -> str:
    first, last = completion.find("$"), completion.rfind("$")
    return completion if first == last else completion[first + 1 : last]


def minerva_answer(completion: str) -> str | None:
    """What stands on one line between "Final Answer: The final answer is" and ". I hope it is correct."."""
    # lm-eval appends the closing words, so that a stop before them does not matter.
    for line in (completion + _HOPE[1:] + ".").split("\n"):
        start = line.find(_CLOSING)
        # One character of any kind stands on either side of the closing words.
        end = line.find(_HOPE, start + len(_CLOSING) + 1, len(line) - 1) if start >= 0 else -1
        if end >= 0:
            return line[start + len(_CLOSING) : end - 1].strip()
    return None


def hendrycks_box(text: str) -> str | None:
    """The content of the last \\boxed or, without one, \\fbox; None where it is not closed."""
    if "\\boxed " in text:
        return text.rsplit("\\boxed ", maxsplit=1)[-1].split("$", maxsplit=1)[0]
    start = max(text.rfind("\\boxed"), -1)
    if start < 0:
        return None  # lm-eval finds an \fbox here and then fails on it
    depth = 0
    for match in re.compile("[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            box = text[start : match.end()]
            return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else None
    return None


def hendrycks_gold(reference: str) -> str:
    """The reference solution's last box as lm-eval reads it; an InputError where there is none."""
    gold = hendrycks_box(reference)
    if gold is None:
        raise InputError(
            f"the reference answer {reference[-60:]!r} has no \\boxed{{}} as MATH's solutions do: add it, "
            f"or give a task whose answers are numbers"
        )
    return gold


def hendrycks_equal(answer: str, gold: str) -> bool:
    """Whether two answers have one canonical spelling; where one of them has none, whether they are the same string."""
    try:
        return canonical(answer) == canonical(gold)
    except (ValueError, IndexError):
        return answer == gold


_REWRITTEN = (
    *(("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
)


def canonical(text: str) -> str:
    """The spelling that MATH's authors compare; a ValueError or IndexError where their code gives up."""
    for old, new in _REWRITTEN:
        text = text.replace(old, new)
    text = _without_units(text).replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text.startswith("."):
        text = "0" + text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = _fractions(_roots(text).replace(" ", ""))
    return _ratio("\\frac{1}{2}" if text == "0.5" else text)


def _without_units(text: str) -> str:
    parts = text.split("\\text{ ")
    if len(parts) > 2:
        raise ValueError("two units")
    return parts[0]


def _roots(text: str) -> str:
    first, *rest = text.split("\\sqrt")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _fractions(text: str) -> str:
    """`\\frac12` with its braces; a lone `\\frac1` leaves the whole text as it was."""
    first, *rest = text.split("\\frac")
    parts = [first]
    for part in rest:
        if part[0] == "{":
            parts.append(part)
        elif len(part) < 2:
            return text
        else:
            below = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            parts.append(f"{{{part[0]}}}{below}")
    return "\\frac".join(parts)


def _ratio(text: str) -> str:
    """`3/4` as a fraction; int() refuses letters, and with it the whole spelling is given up, as there."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    above, below = int(parts[0]), int(parts[1])
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text


RULES: dict[str, Callable[[int], TextRule | SympyRule]] = {
    "gsm8k-strict": lambda workers: gsm8k_strict(),
    "gsm8k-flexible": lambda workers: gsm8k_flexible(),
    "minerva": minerva,
    "minerva-math-verify": minerva_math_verify,
    "hendrycks": lambda workers: hendrycks(),
    "hendrycks-boxed": lambda workers: hendrycks_boxed(),
}
