"""The statistics that judge predictions: intervals, drift, and the comparison of two models."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964
"""The normal distribution's 97.5 % quantile."""
CONFIDENCE_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
"""Edges of the bins of confidence. They are closest near 1, where most predictions are."""
EXACT_UP_TO = 25
"""Discordant pairs below which `mcnemar` is exact."""


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (E. B. Wilson, 1927). Unlike the usual interval, it is valid near 100 %."""
    share, spread = correct / count, Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def confidence_counts(confidence: NDArray[np.float32]) -> list[int]:
    """The number of confidences, float32[N] from 0 to 1, in each of the 11 bins between `CONFIDENCE_EDGES`."""
    counts: list[int] = np.histogram(np.minimum(confidence, 1), CONFIDENCE_EDGES)[0].tolist()
    return counts


def stability_index(found: Sequence[int], reference: Sequence[int]) -> float:
    """The population stability index of two histograms with the same bins.

    It is the sum over the bins of (a - b) ln(a / b), where a and b are the shares of the bin. Half an image is added to each
    bin, so that an empty bin has a logarithm. Usual limits: below 0.1 no relevant change, from 0.25 on a large change
    (N. Siddiqi, Credit Risk Scorecards, 2006).
    """
    a, b = (np.array(counts, float) + 0.5 for counts in (found, reference))
    a, b = a / a.sum(), b / b.sum()
    return float(((a - b) * np.log(a / b)).sum())


def stability_by_chance(found: Sequence[int], reference: Sequence[int]) -> float:
    """The index that two samples of one distribution exceed in 5 % of cases.

    Without drift, the index divided by (1 / N + 1 / M) has about a chi-square distribution with one degree of freedom fewer
    than there are bins (B. Yurdakul, Statistical Properties of Population Stability Index, 2018). Its quantile is that of
    Wilson and Hilferty (1931).
    """
    degrees = len(found) - 1
    z = NormalDist().inv_cdf(0.95)
    quantile = degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3
    return quantile * (1 / max(sum(found), 1) + 1 / max(sum(reference), 1))


def drift(found: list[int], reference: list[int] | None) -> dict[str, Any]:
    """A histogram beside its reference, and how much they differ. The limits are those of `stability_index`."""
    if not reference or not sum(found):
        return {"found": found, "reference": None, "index": None, "by_chance": None, "verdict": "unknown"}
    index, by_chance = stability_index(found, reference), stability_by_chance(found, reference)
    verdict = "none" if index < 0.1 else "too few images" if index < by_chance else "moderate" if index < 0.25 else "large"
    return {"found": found, "reference": reference, "index": index, "by_chance": by_chance, "verdict": verdict}


def mcnemar(fixed: int, broken: int) -> float:
    """The p-value of McNemar's test (1947) that two models are equally often right on the same inputs.

    `fixed` inputs are right with the second model only, `broken` ones with the first only. For fewer than `EXACT_UP_TO` of
    both, it is the two-sided exact binomial test, else the chi-square test with continuity correction (A. L. Edwards, 1948).
    """
    pairs, fewer = fixed + broken, min(fixed, broken)
    if pairs < EXACT_UP_TO:
        return min(1.0, 2 * sum(math.comb(pairs, k) for k in range(fewer + 1)) / 2.0**pairs)
    chi_square = max(abs(fixed - broken) - 1, 0) ** 2 / pairs
    return float(math.erfc(math.sqrt(chi_square / 2)))  # the upper tail with one degree of freedom
