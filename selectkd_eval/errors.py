"""What a user can do wrong, and what a machine can lack.

Both classes are shown as one sentence, without a traceback, with exit code 2. The sentence says what was asked,
what was found and what to do. Any other exception is a defect of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class InputError(Exception):
    """The request cannot be carried out as it was given: a name, a file, a record, a number."""


class SetupError(Exception):
    """The machine lacks something the request needs: a package, disk space, a key in the environment."""


def choose(name: str, table: Mapping[str, T], what: str) -> T:
    """`table[name]`, or an InputError that names the nearest entry and lists the others.

    `what` is the noun for the message, in the singular: "recipe", "verifier".
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"there is no {what} called {name!r}; {hint}known: {', '.join(sorted(table))}")


def commonest(reasons: Iterable[str]) -> tuple[str, int]:
    """The first of the reasons that occur most often, and how often; those that differ in numbers alone are one."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for reason in reasons:
        kind = re.sub(r"(?<!answered )(?<!code: )\b[0-9][0-9.,]*", "0", reason)  # a status is more than a number
        first.setdefault(kind, reason)
        counts[kind] += 1
    kind, often = counts.most_common(1)[0]
    return first[kind], often
