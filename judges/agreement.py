"""Do judges agree: with each other, with themselves when asked again, with people?

The unit is one comparison, the interval's unit is its prompt. Percent agreement alone misleads where one word is
frequent, so Cohen's kappa, Gwet's AC1 and Krippendorff's alpha (nominal) stand beside it: kappa falls towards 0 when
nearly all verdicts are one word, AC1 does not. All are (observed - chance) / (1 - chance) and differ in what they
take for chance.

It does not say who is right; `classification` takes a reference as given. The paper compares students under several
judges (SelecTKD, Figure 5) without an agreement figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from judges import wording
from judges.ratings import K, Ratings, by_sample, ratings
from judges.resampling import Resampling, percentile, resampled_sums
from selectkd_eval import stats
from selectkd_eval.errors import InputError
from selectkd_eval.measures import NOTHING, Row
from selectkd_eval.stats import Estimate, Floats

_DEFAULT = Resampling()
ONE_WORD = "all verdicts are one word"


@dataclass(frozen=True)
class Pair:
    """Two raters on the comparisons that both decided; `why` says why kappa has no value."""

    a: str
    b: str
    comparisons: int
    observed: Estimate
    kappa: Estimate
    ac1: Estimate
    why: str = ""


@dataclass(frozen=True)
class Agreement:
    """Every pair of raters, and alpha over all of them."""

    raters: tuple[str, ...]
    pairs: tuple[Pair, ...]
    alpha: Estimate
    comparisons: int  # with two verdicts or more
    missing: dict[str, int]  # comparisons without this rater's verdict
    settled: int


@dataclass(frozen=True)
class SelfConsistency:
    """One judge asked again: comparisons with two verdicts or more."""

    repeats: int
    comparisons: int
    unanimous: Estimate  # share of comparisons on which all repeats agree
    pairwise: Estimate  # chance that two repeats agree, mean over comparisons
    alpha: Estimate
    missing: int  # askings without a verdict
    settled: int


@dataclass(frozen=True)
class Classification:
    """A rater against a reference; precision, recall and F1 are unweighted means over the words present."""

    comparisons: int
    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    missing: int  # comparisons without a verdict of the rater, or of the reference


# ---- coefficients, from tables or from sums ------------------------------------------------------------


def observed_agreement(table: Floats) -> Floats:
    """Share of the diagonal in contingency tables (..., K, K)."""
    return _over(np.trace(table, axis1=-2, axis2=-1), table.sum(axis=(-2, -1)))


def cohen_chance(table: Floats) -> Floats:
    """Chance agreement of two raters who keep their own word frequencies, from tables (..., K, K)."""
    return _over((table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1), table.sum(axis=(-2, -1)) ** 2)


def gwet_chance(table: Floats, categories: int) -> Floats:
    """Chance agreement of Gwet (2008), for a scale of so many words, from tables (..., K, K)."""
    mean = _over((table.sum(axis=-1) + table.sum(axis=-2)) / 2, table.sum(axis=(-2, -1))[..., None])
    return (mean * (1 - mean)).sum(axis=-1) / (categories - 1)


def krippendorff_chance(counts: Floats) -> Floats:
    """Chance agreement of two verdicts drawn without replacement from all of them, counts per word (..., K)."""
    n = counts.sum(axis=-1)
    return _over((counts * (counts - 1)).sum(axis=-1), n * (n - 1))


def corrected(observed: Floats, chance: Floats) -> Floats:
    """Agreement beyond chance; NaN where chance alone would always agree (one word: 1 - chance is 0 up to rounding)."""
    left = 1 - chance
    return _over(observed - chance, np.where(left > 1e-12, left, 0))


def _over(num: Floats, den: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(den == 0, np.nan, num / den)


def _coincidences(codes: NDArray[np.int64]) -> Floats:
    """Per comparison: agreeing coincidences sum_c n_c (n_c - 1) / (m - 1), then n_c per word: (U, 1 + K)."""
    counts = (codes[:, :, None] == np.arange(K)).sum(axis=1).astype(np.float64)
    given = counts.sum(axis=1)
    counts[given < 2] = 0  # a lone verdict can be paired with nothing
    agreeing = (counts * (counts - 1)).sum(axis=1) / np.maximum(given - 1, 1)
    return np.concatenate([agreeing[:, None], counts], axis=1)


def _contingency(a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
    """Per comparison a flat K x K table with a 1 at the two verdicts, all 0 where one is missing: (U, K * K)."""
    out = np.zeros((len(a), K * K))
    both = (a >= 0) & (b >= 0)
    out[np.flatnonzero(both), (a * K + b)[both]] = 1
    return out


# ---- reports ------------------------------------------------------------


def agreement(found: Ratings, how: Resampling = _DEFAULT) -> Agreement:
    """Agreement of every pair of raters and of all together, with 95 % intervals over prompts.

    All coefficients come from the same resamples. Near full agreement (stats.at_the_edge) resampling knows too little
    and the interval is at least Wilson's for the agreement, carried through at the chance agreement found.
    """
    pairs = list(combinations(range(len(found.raters)), 2))
    per_unit = [_contingency(found.codes[:, i], found.codes[:, j]) for i, j in pairs] + [_coincidences(found.codes)]
    table = found.by_prompt(np.concatenate(per_unit, axis=1))
    draws = resampled_sums(table, how, found.tasks)
    out = []
    for at, (i, j) in enumerate(pairs):
        here = slice(at * K * K, (at + 1) * K * K)
        out.append(_pair(found, (found.raters[i], found.raters[j]), table[:, here], draws[:, here]))
    return Agreement(
        found.raters,
        tuple(out),
        _alpha(table[:, -1 - K :], draws[:, -1 - K :]),
        comparisons=int(((found.codes >= 0).sum(axis=1) > 1).sum()),
        missing={rater: int((found.codes[:, r] < 0).sum()) for r, rater in enumerate(found.raters)},
        settled=found.settled,
    )


def _pair(found: Ratings, names: tuple[str, str], table: Floats, draws: Floats) -> Pair:
    square, squares = table.sum(axis=0).reshape(K, K), draws.reshape(-1, K, K)
    if not square.sum():
        return Pair(*names, 0, NOTHING, NOTHING, NOTHING, "no comparison that both decided")
    observed = _Observed(table[:, :: K + 1].sum(axis=1), table.sum(axis=1), observed_agreement(squares))
    q = found.offered
    kappa = observed.beyond(cohen_chance(square), cohen_chance(squares))
    return Pair(
        *names,
        int(square.sum()),
        observed.beyond(np.zeros(()), np.zeros(len(squares))),
        kappa,
        observed.beyond(gwet_chance(square, q), gwet_chance(squares, q)),
        ONE_WORD if math.isnan(kappa.value) else "",
    )


def _alpha(table: Floats, draws: Floats) -> Estimate:
    total = table.sum(axis=0)
    if not total[1:].sum():
        return NOTHING
    observed = _Observed(table[:, 0], table[:, 1:].sum(axis=1), _over(draws[:, 0], draws[:, 1:].sum(axis=1)))
    return observed.beyond(krippendorff_chance(total[1:]), krippendorff_chance(draws[:, 1:]))


@dataclass(frozen=True)
class _Observed:
    """Agreements and comparisons per prompt, (N,) each, and the agreement of every resample."""

    num: Floats
    den: Floats
    draws: Floats

    def beyond(self, chance: Floats, chances: Floats) -> Estimate:
        """Agreement beyond a chance agreement, which the resamples have of their own; chance 0 is plain agreement."""
        some = self.den > 0
        n, share = int(some.sum()), float(self.num.sum() / self.den.sum())
        value = float(corrected(np.asarray(share), chance))
        found = percentile(value, corrected(self.draws, chances), n)
        if math.isnan(value) or not stats.at_the_edge(self.num[some], self.den[some]):
            return found
        limits = stats.wilson(share * n, n)
        low, high = (float(corrected(np.asarray(limit), chance)) for limit in (limits.low, limits.high))
        method = "bootstrap over prompts, at least Wilson's at the edge"
        return Estimate(value, float(np.fmin(low, found.low)), float(np.fmax(high, found.high)), n, method)


def self_consistency(rows: Iterable[Row], how: Resampling = _DEFAULT) -> SelfConsistency:
    """How often one judge says the same when it is asked again (`sample`), over comparisons read twice or more."""
    raters = by_sample(rows)
    if len(raters) < 2:
        raise InputError("every comparison was judged once: ask again with --repeats 2 or more to measure consistency")
    found = ratings(raters)
    sums = _coincidences(found.codes)
    given = sums[:, 1:].sum(axis=1)
    read = (given > 1).astype(np.float64)
    # agreeing / m is sum_c n_c (n_c - 1) / (m (m - 1)): the share of the comparison's pairs of askings that agree.
    pairwise = sums[:, 0] / np.maximum(given, 1)
    whole = (sums[:, 1:].max(axis=1) == given) & (given > 1)
    table = found.by_prompt(np.column_stack([sums, whole, pairwise, read]))
    draws = resampled_sums(table, how, found.tasks)
    return SelfConsistency(
        len(raters),
        int(read.sum()),
        _share(table[:, -3], table[:, -1], _over(draws[:, -3], draws[:, -1])),
        _share(table[:, -2], table[:, -1], _over(draws[:, -2], draws[:, -1])),
        _alpha(table[:, : 1 + K], draws[:, : 1 + K]),
        missing=int((found.codes < 0).sum()),
        settled=found.settled,
    )


def _share(num: Floats, den: Floats, draws: Floats) -> Estimate:
    if not den.sum():
        return NOTHING
    return _Observed(num, den, draws).beyond(np.zeros(()), np.zeros(len(draws)))


def classification(
    rows: Iterable[Row], reference: Iterable[Row], unread_as: str = "", how: Resampling = _DEFAULT
) -> Classification:
    """A rater's verdicts against a reference's (the annotators' majority: `ratings.majority`).

    Precision, recall and F1 as scikit-learn's macro averages: over the words that either side used, F1 the mean of the
    words' F1, and a word that was never given has precision 0.
    """
    found = ratings({"the rater": rows, "the reference": reference}, unread_as)
    both = int((found.codes >= 0).all(axis=1).sum())
    table = found.by_prompt(_contingency(found.codes[:, 1], found.codes[:, 0]))
    square, squares = table.sum(axis=0).reshape(K, K), resampled_sums(table, how, found.tasks).reshape(-1, K, K)
    missing = len(found.units) - both
    if not both:
        return Classification(0, NOTHING, NOTHING, NOTHING, NOTHING, missing)
    used = (square.sum(axis=0) + square.sum(axis=1)) > 0
    n = int((table.sum(axis=1) > 0).sum())
    values, draws = _macro(square, used), _macro(squares, used)
    precision, recall, f1 = (percentile(float(value), drawn, n) for value, drawn in zip(values, draws, strict=True))
    accuracy = _share(table[:, :: K + 1].sum(axis=1), table.sum(axis=1), observed_agreement(squares))
    return Classification(both, accuracy, precision, recall, f1, missing)


def _macro(table: Floats, used: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Macro precision, recall and F1 of tables (..., reference, rater), over the words in `used`."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    given, real = table.sum(axis=-2), table.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = [
            np.where(den > 0, num / den, 0.0) for num, den in ((hits, given), (hits, real), (2 * hits, given + real))
        ]
    precision, recall, f1 = (one[..., used].mean(axis=-1) for one in each)
    return precision, recall, f1


# ---- in words ------------------------------------------------------------


def lines(found: Agreement) -> list[str]:
    """What `winrate` prints of several judges: who they are, every pair, alpha, and what is missing."""
    numbered = {rater: str(number) for number, rater in enumerate(found.raters, start=1)}
    out = wording.line("judges", ", ".join(f"{number} {rater}" for rater, number in numbered.items()))
    for pair in found.pairs:
        kappa = f"– ({pair.why})" if pair.why else wording.number(pair.kappa)
        text = f"agree {wording.share(pair.observed)}, kappa {kappa}, AC1 {wording.number(pair.ac1)}"
        out += wording.line(f"{numbered[pair.a]} with {numbered[pair.b]}", f"{text} (n {pair.comparisons:,})")
    out += wording.line(
        "alpha",
        f"{wording.number(found.alpha)} Krippendorff's, nominal, "
        f"{wording.some(found.comparisons, 'comparison')} with two verdicts or more on {found.alpha.n:,} prompts",
    )
    gaps = [f"{numbered[rater]} gave no verdict on {count:,}" for rater, count in found.missing.items() if count]
    settled = [f"{wording.some(found.settled, 'comparison')} settled without a judge"] if found.settled else []
    return out + (wording.line("left out", ", ".join(settled + gaps)) if settled or gaps else [])


def consistency_lines(found: SelfConsistency) -> list[str]:
    """What `winrate --repeats` prints of a judge that was asked again."""
    text = (
        f"all of {found.repeats} askings agree on {wording.share(found.unanimous)}, two of them on "
        f"{wording.share(found.pairwise)}, alpha {wording.number(found.alpha)}"
    )
    left_out = [
        f"{wording.some(found.missing, 'asking')} without a verdict" if found.missing else "",
        f"{wording.some(found.settled, 'comparison')} settled without a judge" if found.settled else "",
    ]
    rest = wording.listed([wording.some(found.comparisons, "comparison") + " asked again and read", *left_out])
    return wording.line("repeats", text) + wording.line("", rest)


def classification_lines(found: Classification, rater: str, reference: str) -> list[str]:
    """What is printed of a judge beside a reference, e.g. the majority of annotators."""
    text = (
        f"{rater} is right on {wording.share(found.accuracy)}; macro precision {wording.share(found.precision)}, "
        f"recall {wording.share(found.recall)}, F1 {wording.share(found.f1)} (n {found.comparisons:,}, "
        f"{found.missing:,} without a verdict); the reference is {reference}"
    )
    return wording.line("reference", text)
