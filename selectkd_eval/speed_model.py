"""How fast should speculative decoding be, and how many target calls does a text need? The formulas, each by itself.

They turn acceptance into the speed-up of the paper's Table 5: in closed form, as if every drafted token were accepted
with one and the same chance (Leviathan et al., arXiv 2211.17192), and by replaying a text token by token. The replay
rests on one fact: an accepted token is the text itself, so whether a proposal is accepted at a position depends on the
text before it and not on where the step began. One pass over a text thus tells of every draft length.

Nothing here knows a record or a clock; `speed_explained` puts measured numbers in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selectkd_eval.bootstrap import Floats
from selectkd_eval.errors import InputError


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens per target call when every proposal is accepted with chance alpha: (1 - alpha^(gamma+1)) / (1 - alpha).

    Leviathan et al., Equation 1; computed as its sum, 1 + alpha + ... + alpha^gamma, which holds at alpha = 1 too.
    """
    return float(np.sum(_chance(alpha) ** np.arange(gamma + 1)))


def leviathan(alpha: float, gamma: int, c: float) -> float:
    """The speed-up of Leviathan et al., Theorem 3.8: a draft call costs c target calls, verifying any number of rows
    one.
    """
    return expected_tokens(alpha, gamma) / (gamma * c + 1)


def with_cost(tokens: float, drafted: float, c: float, v: float, o: float = 0.0) -> float:
    """The speed-up of steps that emit `tokens` and draft `drafted` on the mean, in target calls with one row: a draft
    call costs c, verifying v, accepting and cutting the caches o.
    """
    return tokens / (drafted * c + v + o)


def survival_tokens(survival: Sequence[float]) -> list[float]:
    """Tokens per target call at gamma = 0, 1, ... from U_i, the chances that i drafted tokens are accepted, i = 1, ...:
    1 + U_1 + ... + U_gamma. One run at the largest draft length thus tells of all shorter ones.
    """
    return [1.0, *(float(value) for value in 1 + np.cumsum(np.asarray(survival, dtype=np.float64)))]


def _chance(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise InputError(f"an acceptance is a share between 0 and 1, not {alpha:g}: give accepted / tested")
    return alpha


class Replayed(NamedTuple):
    """Expected counts of one text under one draft length: target calls, tokens drafted, tested and accepted, and
    `sizes`, (gamma + 1,), the calls that verified 0, 1, ... gamma drafted tokens.
    """

    calls: float
    drafted: float
    tested: float
    accepted: float
    sizes: Floats

    @property
    def tokens(self) -> float:
        """Tokens per target call; NaN for a text that needs none."""
        return (self.calls + self.accepted) / self.calls if self.calls else float("nan")


def replay(chances: Sequence[float] | Floats, gamma: int) -> Replayed:
    """Counts of decoding one text with draft length gamma: see `replay_all`."""
    found = replay_all([chances], [gamma])
    calls, drafted, tested, accepted = (float(values[0, 0]) for values in found[:4])
    return Replayed(calls, drafted, tested, accepted, found.sizes[0, 0])


class ReplayedAll(NamedTuple):
    """The same for several texts and draft lengths, (texts, lengths) each; `sizes` (texts, lengths, largest + 1)."""

    calls: Floats
    drafted: Floats
    tested: Floats
    accepted: Floats
    sizes: Floats


def replay_all(texts: Sequence[Sequence[float] | Floats], gammas: Sequence[int]) -> ReplayedAll:
    """Expected counts of decoding each text with each draft length, exact but for rounding.

    A text is given by the chances that a proposal is accepted, one for each token after those before the first step
    (the reference engine's prefill gives one token). With 0 and 1 alone (greedy decoding) the counts are those of the
    run itself. As in the engine, a step drafts min(gamma, tokens left - 1): the target's own token ends it. Steps
    begin at a place with some chance; going through the places in order, each hands its chance on. Raises InputError
    for a draft length below 1 or a chance outside [0, 1].
    """
    if not gammas or min(gammas) < 1:
        raise InputError(f"draft lengths are at least 1, not {', '.join(map(str, gammas)) or 'none'}")
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    longest, most = int(lengths.max(initial=0)), max(gammas)
    padded = np.zeros((len(texts), longest + most))
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    if not ((padded >= 0) & (padded <= 1)).all():
        raise InputError("a chance of acceptance lies between 0 and 1, and one of this text does not: measure it again")
    limits = np.asarray(gammas, dtype=np.int64)
    begins = np.zeros((longest + most + 2, len(texts), len(gammas)))
    begins[0] = 1.0
    calls, drafted, tested, accepted = np.zeros((4, len(texts), len(gammas)))
    sizes = np.zeros((len(texts), len(gammas), most + 1))
    places = np.arange(most + 1)
    for at in range(longest):
        count = np.minimum(limits, (lengths - at - 1)[:, None]).clip(0)  # (texts, lengths)
        here = np.where(at < lengths[:, None], begins[at], 0.0)
        # reach[..., i]: the first i proposals of a step that begins here are accepted.
        free = np.concatenate((np.ones((len(texts), 1)), np.cumprod(padded[:, at : at + most], axis=1)), axis=1)
        reach = here[..., None] * np.where(places <= count[..., None], free[:, None, :], 0.0)
        calls += here
        drafted += here * count
        kept = reach[..., 1:].sum(axis=-1)
        accepted += kept
        tested += np.where(places[:-1] < count[..., None], reach[..., :-1], 0.0).sum(axis=-1)
        np.put_along_axis(
            sizes, count[..., None], np.take_along_axis(sizes, count[..., None], -1) + here[..., None], -1
        )
        ends = reach.copy()
        ends[..., :-1] -= reach[..., 1:]
        begins[at + 1 : at + most + 2] += np.moveaxis(ends, -1, 0)
    return ReplayedAll(calls, drafted, tested, accepted, sizes)
