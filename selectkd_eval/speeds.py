"""From a speedup record's rows to its numbers: ratios of seconds, and acceptance under each of its names.

Every number is a ratio of sums over prompts, as in `measures`. One record times plain decoding twice and every
(draft, draft length) on the same prompts, so that drafts are compared within a prompt. Nothing here times, draws or
runs a model.
"""

from __future__ import annotations

from typing import NamedTuple


class Arm(NamedTuple):
    """A way to decode: `draft` is the draft's place in the record's list, `gamma` its length (0: plain decoding, whose
    `draft` is -1), `batch` the number of texts decoded together.
    """

    draft: int
    gamma: int
    batch: int = 1

    @property
    def plain(self) -> bool:
        return self.gamma == 0


PLAIN = Arm(-1, 0)
