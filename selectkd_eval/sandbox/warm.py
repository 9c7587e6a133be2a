"""What makes a child cheap? That its parent did the same work before the first fork, on a program of its own.

What Python writes on a first run (specialised bytecode, caches, free lists) is then shared by all children instead of
being copied page by page in each; and what a child makes anew goes on pages where nothing is that would have to be
copied with it. The program below is this file's own; nothing of any answer is run here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from selectkd_eval.sandbox import official, tester
from selectkd_eval.sandbox.proxies import Far
from selectkd_eval.sandbox.remote import MODULE, Candidate

ROUNDS = 12
"""Enough for the interpreter to specialise what will be called."""

_CODE = '''
import math
from typing import List, Optional


def first(numbers: List[int], name: str = "x") -> Optional[list]:
    """Words as long as a prompt's."""
    found = []
    for place, number in enumerate(sorted(numbers)):
        if number > 1 and number % 2 == 0 or math.sqrt(abs(number)) > 3:
            found.append((place, number * 0.5, str(number) + name, {name: None}))
    return found or None
'''
_TEST = """
METADATA = {"author": "nobody"}


def check(candidate):
    assert candidate([3, 2]) == [(0, 1.0, "2x", {"x": None})]
    assert candidate([-1], "y") is None and candidate([1] * 9) is None
    assert candidate(numbers=[2]) != "x"
"""


class _Replies:
    """The candidate's end of a channel within one process: keeps what is sent."""

    cap = 1 << 20

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, body: bytes) -> None:
        self.sent.append(body)


class _Asks:
    """The tests' end: the candidate answers while its reply is waited for."""

    cap = 1 << 20

    def __init__(self, candidate: Candidate, replies: _Replies) -> None:
        self.send, self.replies = candidate.answer, replies

    def receive(self) -> bytes:
        return self.replies.sent.pop(0)


def up() -> None:
    """Judges a program of this file's in both modes, in this very process."""
    program = {"code": _CODE, "test": _TEST, "entry_point": "first"}
    for _ in range(ROUNDS):
        replies: Any = _Replies()
        candidate = Candidate(replies)
        candidate.start(_CODE)
        asks: Any = _Asks(candidate, replies)
        fates = [tester.judge(program, Far(asks), print), official.judge(program)]
        if fates != [("pass", ""), ("pass", "")]:
            raise RuntimeError(f"a program that is right was judged {fates}")
    sys.modules.pop(MODULE, None)


_POOL_BYTES, _POOL_HEAD = 1 << 14, 48  # Python's pools of small objects: their size, and where their first object lies
_SIZE_STEP, _LARGEST = 16, 512  # the sizes that have pools
_BYTES_HEAD = 33  # of a bytes object, before its contents
_MOST_BYTES = 1 << 20  # more than the holes of any size; an allocator with other pools is given up here
_SMALLEST: dict[int, Callable[[], object]] = {16: object, 32: lambda: int("1000000")}


def fill_holes() -> list[object]:
    """Takes every place that is free between living objects, for as long as the caller keeps the list.

    New objects then lie side by side in fresh pools instead of one each on pages of old ones.
    """
    taken: list[object] = []
    for size in range(_SIZE_STEP, _LARGEST + 1, _SIZE_STEP):
        filling: list[object] = []
        for _ in range(_MOST_BYTES // size):
            one = _SMALLEST[size]() if size in _SMALLEST else bytes(size - _BYTES_HEAD)
            if id(one) % _POOL_BYTES == _POOL_HEAD:  # the first of a new pool: the old ones are full
                taken += filling
                break
            filling.append(one)
    return taken
