"""Does a number rise from one treatment to the next, over many blocks? Page's trend test, with tied values allowed.

Within a block (a prompt, or a training seed) the treatments are ranked; under the null hypothesis every order of a
block's values is equally likely. Per prompt nearly all values are tied (right or wrong), for which
`scipy.stats.page_trend_test` keeps the variance of untied ranks and loses most of its power; here the variance is that
of the ranks at hand. Over few blocks, scipy's exact distribution is the one to take.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, page_trend_test, rankdata

from selectkd_eval.stats import Floats


class Trend(NamedTuple):
    """Page's L, its distance from no trend in standard errors, and the two-sided p-value; over `blocks` blocks."""

    statistic: float
    z: float
    p: float
    blocks: int


def page(values: Floats) -> Trend:
    """Page's L of values, (blocks, treatments) with treatments in their expected order; NaN where all is tied.

    Normal approximation with the exact variance of each block's own ranks, sum (j - mean)^2 sum (r - mean)^2 / (T - 1).
    """
    blocks, treatments = values.shape
    ranks = rankdata(values, axis=1)
    order = np.arange(1, treatments + 1)
    middle = (treatments + 1) / 2
    statistic = float((ranks @ order).sum())
    spread = float(((order - middle) ** 2).sum()) * ((ranks - middle) ** 2).sum(axis=1) / (treatments - 1)
    error = math.sqrt(float(spread.sum()))
    if error == 0:
        return Trend(statistic, float("nan"), float("nan"), blocks)
    z = (statistic - blocks * treatments * middle**2) / error
    return Trend(statistic, z, float(2 * norm.sf(abs(z))), blocks)


def page_exact(values: Floats) -> float:
    """One-sided p-value of a rise over few blocks without ties, from the exact distribution; NaN for fewer than two
    blocks or three treatments, or with ties.
    """
    blocks, treatments = values.shape
    tied = any(len(set(row)) < treatments for row in values.tolist())
    if blocks < 2 or treatments < 3 or tied:
        return float("nan")
    return float(page_trend_test(values, method="exact").pvalue)
