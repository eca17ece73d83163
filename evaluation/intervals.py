"""Numbers as functions of what was drawn, and how sure they are.

The pairs of one sequence resemble each other, so that sequences and not pairs are drawn again, with
replacement: the cluster bootstrap with percentile intervals (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993; Field and Welsh, J. R. Stat. Soc. B, 2007). SciPy's bootstrap draws single
values, and gives no interval where one draw has no number; this one does both.

A ``Statistic`` is a function of ``weights`` (S,), how often each of S groups (sequences, queries)
was drawn. A number of the report is its statistic at weights of one: it is defined once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Statistic",
    "Statistics",
    "auc_statistic",
    "average_precision_statistic",
    "bootstrap_interval",
    "mean_statistic",
    "median_statistic",
]

RESAMPLES = 1000

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Statistics:
    """Numbers of one model as functions of how often each group was drawn.

    Attributes:
        groups: names of the S groups.
        of: key of a number -> its statistic.
    """

    groups: list[str]
    of: dict[str, Statistic]

    def values(self) -> dict[str, float]:
        """Each number, every group drawn once; nan where there was nothing to measure."""
        once = np.ones(len(self.groups), np.int64)
        return {key: float(statistic(once)) for key, statistic in self.of.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % ``bootstrap_interval`` of each number."""
        return {
            key: bootstrap_interval(statistic, len(self.groups))
            for key, statistic in self.of.items()
        }


def bootstrap_interval(
    statistic: Statistic, num_groups: int, *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic under resampling of groups.

    Returns:
        (low, high); nan for fewer than two groups, which say nothing of their spread. Draws without
        a number are left out.
    """
    if num_groups < 2:
        return math.nan, math.nan
    draws = draw_weights(num_groups, resamples)
    values = np.array([statistic(weights) for weights in draws])
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # between infinities
        low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def draw_weights(num_groups: int, resamples: int) -> np.ndarray:
    """How often each group is drawn, (resamples, S) int64, each row with the sum S."""
    rng = np.random.default_rng(0)
    return rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), resamples)


def mean_statistic(groups: Sequence[int], values: Sequence[float]) -> Statistic:
    """The mean of values (N,), of which ``groups`` (N,) says where each belongs, 0 to S - 1."""
    groups, values = np.asarray(groups, np.intp), np.asarray(values, np.float64)

    def mean(weights: np.ndarray) -> float:
        copies = weights[groups]
        return np.average(values, weights=copies) if copies.any() else math.nan

    return mean


def median_statistic(groups: Sequence[int], values: Sequence[float]) -> Statistic:
    """The median of values (N,); arguments as of ``mean_statistic``."""
    groups, values = np.asarray(groups, np.intp), np.asarray(values, np.float64)

    def median(weights: np.ndarray) -> float:
        drawn = np.repeat(values, weights[groups])
        return np.median(drawn) if len(drawn) else math.nan

    return median


def auc_statistic(groups: Sequence[int], errors: Sequence[float], threshold: float) -> Statistic:
    """Area under the recall of errors (N,) from 0 to ``threshold``, divided by it; exact.

    The recall is the step function "share of errors at most t", its steps joined by straight lines
    from (0, 0), as in SuperGlue's published evaluation (Sarlin et al., CVPR 2020). The area below
    the steps is a mean, that of an error e being 1 - e / threshold; the lines add half a step as
    far as the last error.
    """
    groups, errors = np.asarray(groups, np.intp), np.asarray(errors, np.float64)
    below = errors < threshold
    areas = np.where(below, 1 - errors / threshold, 0)
    last = np.where(below, errors, 0)

    def auc(weights: np.ndarray) -> float:
        copies = weights[groups]
        if not (total := copies.sum()):
            return math.nan
        joined = last[copies > 0].max() / (2 * threshold)
        return (copies @ areas + joined) / total

    return auc


def average_precision_statistic(
    groups: np.ndarray, correct: np.ndarray, ranks: np.ndarray, relevant: np.ndarray
) -> Statistic:
    """Area below the precision-recall curve of all answers, as HF-Net's published code computes it.

    Precision is made to fall monotonically, and the first point of the curve is left out. Answers
    are sorted once; a draw counts each as often as its group was drawn.

    Args:
        groups: (N,) int, the group of each answer, 0 to S - 1.
        correct: (N,) bool.
        ranks: (N,) float, the best answer has the smallest; of equal ones the first comes first.
        relevant: (S,) int, what there was to find in each group.
    """
    order = np.argsort(ranks, kind="stable")
    groups, correct = groups[order], correct[order]
    found_at = np.flatnonzero(correct)

    def average_precision(weights: np.ndarray) -> float:
        copies = weights.astype(np.int32).take(groups)
        answers = np.cumsum(copies, dtype=np.int32)
        if not len(answers) or not answers[-1]:
            return math.nan
        if not (total := weights @ relevant):
            return 0.0
        # Behind a wrong answer precision is lower than before it: the envelope needs only right
        # ones, and of an answer's copies only the last.
        found = copies[found_at]
        precision = np.cumsum(found, dtype=np.int32) / np.maximum(answers[found_at], 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        area = (envelope * found).sum()
        first = np.searchsorted(answers, 1)
        if correct[first]:  # the curve's first point
            area -= envelope[np.searchsorted(found_at, first)]
        return float(area / total)

    return average_precision
