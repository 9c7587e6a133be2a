"""How far may an estimate lie from the truth, to first order? Standard errors without resampling.

The cross-check of the bootstrap's intervals and the source of power statements: an influence per prompt, its spread
between prompts. It gives no interval; near 0 and 1, and with few prompts, it is too small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from selectkd_eval.bootstrap import Floats, parts

Z = 1.959963984540054  # 97.5 % point of the normal distribution
_POWER = 0.8416212335729143  # 80 % point


def standard_error(num: ArrayLike, den: ArrayLike, strata: ArrayLike | None = None) -> float:
    """Linearised standard error of sum(num) / sum(den) over prompts, entries (N,); NaN for fewer than 2 prompts.

    This is the cluster-robust sandwich with the prompt as the cluster. With `strata`, (N,), prompts vary within their
    stratum only; one prompt alone in its stratum adds nothing, as in the bootstrap.
    """
    return _spread(_influence(num, den), strata)


def paired_error(
    num_a: ArrayLike, den_a: ArrayLike, num_b: ArrayLike, den_b: ArrayLike, strata: ArrayLike | None = None
) -> float:
    """Linearised standard error of ratio a minus ratio b on the same prompts, all (N,): see `standard_error`."""
    return _spread(_influence(num_a, den_a) - _influence(num_b, den_b), strata)


def _influence(num: ArrayLike, den: ArrayLike) -> Floats:
    """How much each prompt moves sum(num) / sum(den), to first order, (N,); NaN without a denominator."""
    num, den = np.asarray(num, dtype=np.float64), np.asarray(den, dtype=np.float64)
    total = den.sum()
    return (num - num.sum() / total * den) / total if total else np.full(len(num), np.nan)


def _spread(influence: Floats, strata: ArrayLike | None) -> float:
    if len(influence) < 2:
        return float("nan")
    within = [part[0] for part in parts(influence[None], strata)]
    return float(np.sqrt(sum(len(part) * part.var(ddof=1) for part in within if len(part) > 1)))


def detectable(error: float) -> float:
    """The smallest true difference that a two-sided test at 5 % finds with 80 % power, for an estimate of this standard
    error (normal approximation).
    """
    return (Z + _POWER) * error
