"""Numbers as functions of what was drawn, and how sure they are.

The pairs of one sequence resemble each other, so that sequences and not pairs are drawn again, with
replacement: the cluster bootstrap with percentile intervals (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993; Field and Welsh, J. R. Stat. Soc. B, 2007). SciPy's bootstrap draws single
values, and gives no interval where one draw has no number; this one does both.

A ``Statistic`` is a function of ``weights`` (S,), how often each of S groups (sequences, queries)
was drawn. A number of the report is its statistic at weights of one: it is defined once.

Two models are compared on the same groups, by the bootstrap of their difference and by a test that
flips the sign of what one has more than the other in a group (Fisher, The Design of Experiments,
1935; drawn flips count as in Phipson and Smyth, 2010).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .report.tables import Column

__all__ = [
    "Statistic",
    "Statistics",
    "auc_statistic",
    "average_precision_statistic",
    "bootstrap_interval",
    "compare",
    "compare_models",
    "mean_statistic",
    "median_statistic",
]

RESAMPLES = 1000
SIGNIFICANCE = 0.05
FLIPS = 10000
EXACT = 14
"""Up to so many groups all flips of signs are tried, beyond it ``FLIPS`` drawn ones."""

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Statistics:
    """Numbers of one model: the names of the S groups, and key -> statistic."""

    groups: list[str]
    of: dict[str, Statistic]

    def values(self) -> dict[str, float]:
        """Each number, every group drawn once; nan where there was nothing to measure."""
        once = np.ones(len(self.groups), np.int64)
        return {key: float(statistic(once)) for key, statistic in self.of.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % ``bootstrap_interval`` of each number."""
        count = len(self.groups)
        return {key: bootstrap_interval(statistic, count) for key, statistic in self.of.items()}


def bootstrap_interval(statistic: Statistic, num_groups: int) -> tuple[float, float]:
    """The 95 % percentile interval (low, high) of a statistic under resampling of groups.

    Draws without a number are left out; nan for fewer than two groups, which have no spread.
    """
    if num_groups < 2:
        return math.nan, math.nan
    values = np.array([statistic(weights) for weights in draw_weights(num_groups, RESAMPLES)])
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
    """The mean of values (N,), of which ``groups`` (N,) says where each belongs, 0 to S - 1.

    Values that are nan, where there was nothing to measure, are left out.
    """
    groups, values = np.asarray(groups, np.intp), np.asarray(values, np.float64)
    measured = ~np.isnan(values)
    return _of_drawn(
        groups[measured],
        values[measured],
        lambda values, copies: np.average(values, weights=copies),
    )


def median_statistic(groups: Sequence[int], values: Sequence[float]) -> Statistic:
    """The median of values (N,); arguments as of ``mean_statistic``."""
    return _of_drawn(groups, values, lambda values, copies: np.median(np.repeat(values, copies)))


def auc_statistic(groups: Sequence[int], errors: Sequence[float], threshold: float) -> Statistic:
    """Area under the recall of errors (N,) from 0 to ``threshold``, divided by it; exact.

    The steps of the recall are joined by straight lines from (0, 0), as in SuperGlue's published
    evaluation (Sarlin et al., CVPR 2020). The area below the steps is a mean, that of an error e
    being 1 - e / threshold; the lines add half a step as far as the last error.
    """

    def auc(errors: np.ndarray, copies: np.ndarray) -> float:
        below = errors < threshold
        areas = np.where(below, 1 - errors / threshold, 0)
        joined = errors[below & (copies > 0)].max(initial=0) / (2 * threshold)
        return (copies @ areas + joined) / copies.sum()

    return _of_drawn(groups, errors, auc)


def _of_drawn(
    groups: Sequence[int],
    values: Sequence[float],
    number: Callable[[np.ndarray, np.ndarray], float],
) -> Statistic:
    """A number of the values (N,) and how often each was drawn (N,); nan where none was."""
    groups, values = np.asarray(groups, np.intp), np.asarray(values, np.float64)

    def statistic(weights: np.ndarray) -> float:
        copies = weights[groups]
        return number(values, copies) if copies.any() else math.nan

    return statistic


def average_precision_statistic(
    groups: Sequence[int],
    correct: Sequence[bool],
    ranks: Sequence[float],
    relevant: Sequence[bool],
) -> Statistic:
    """Area below the precision-recall curve of all answers, as HF-Net's published code computes it:
    precision is made to fall monotonically, and the first point of the curve is left out.

    Args:
        groups: (N,) the group of each answer, 0 to S - 1.
        correct: (N,) whether it is right.
        ranks: (N,) the best answer has the smallest; of equal ones the first comes first.
        relevant: (N,) whether there was something to find.
    """
    order = np.argsort(ranks, kind="stable")
    groups, correct = np.asarray(groups, np.intp)[order], np.asarray(correct, np.bool_)[order]
    per_group = np.bincount(groups, np.asarray(relevant)[order])
    found_at = np.flatnonzero(correct)

    def average_precision(weights: np.ndarray) -> float:
        copies = weights.astype(np.int32).take(groups)
        answers = np.cumsum(copies, dtype=np.int32)
        if not len(answers) or not answers[-1]:
            return math.nan
        if not (total := weights[: len(per_group)] @ per_group):
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


def compare(a: Statistic, b: Statistic, num_groups: int) -> dict[str, float]:
    """Compare a number of two models, paired over the groups that both were evaluated on.

    Returns:
        ``difference``: what A has more than B; ``low`` and ``high``: the 95 % interval of it;
        ``p_value``: two-sided, of the hypothesis that A and B could change places on any group,
        from the numbers of each group alone; ``sequences``: how many groups have both numbers.
    """
    once = np.ones(num_groups, np.int64)
    low, high = bootstrap_interval(lambda weights: a(weights) - b(weights), num_groups)
    differences = by_group(a, num_groups) - by_group(b, num_groups)
    differences = differences[~np.isnan(differences)]
    return {
        "difference": float(a(once) - b(once)),
        "low": low,
        "high": high,
        "p_value": _sign_flip_p_value(differences) if len(differences) else math.nan,
        "sequences": len(differences),
    }


def by_group(statistic: Statistic, num_groups: int) -> np.ndarray:
    """The number of each group alone, (S,) float64."""
    return np.array([statistic(weights) for weights in np.eye(num_groups, dtype=np.int64)])


def _sign_flip_p_value(differences: np.ndarray) -> float:
    # As scipy.stats.permutation_test with permutation_type="samples", fifty times sooner: all flips
    # in one product.
    count = len(differences)
    if count <= EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = 1 - 2 * np.random.default_rng(0).integers(0, 2, (FLIPS, count), np.int8)
        signs[0] = 1  # what was observed is one of the flips, so that p is never 0
    # The tolerance keeps equal sums equal, whatever the order of their rounding.
    sums, least = np.abs(signs @ differences), abs(differences.sum())
    return float((sums >= least - 1e-12 * np.abs(differences).sum()).mean())


def compare_models(
    names: tuple[str, str],
    statistics: tuple[Mapping[str, Statistics], Mapping[str, Statistics]],
    columns: Sequence[Column],
) -> dict:
    """What model A has more than model B, for each split and column of the same groups.

    Returns:
        ``a`` and ``b``; ``rows``, with ``better``, the model that is better or None where they
        cannot be told apart; ``values``: key of a column -> group -> [of A, of B], first split.
    """
    (a, b), rows, values = names, [], {}
    for split, of_a in statistics[0].items():
        of_b, count = statistics[1][split], len(of_a.groups)
        for column in columns:
            if column.key not in of_a.of:
                continue
            pair = of_a.of[column.key], of_b.of[column.key]
            found = compare(*pair, count)
            if not found["sequences"]:
                continue
            if column.key not in values:
                each = np.stack([by_group(s, count) for s in pair], axis=1).tolist()
                values[column.key] = dict(zip(of_a.groups, each, strict=True))
            a_is_better = (found["difference"] > 0) != column.less_is_better
            is_real = found["p_value"] < SIGNIFICANCE and (found["low"] > 0 or found["high"] < 0)
            better = (a if a_is_better else b) if is_real else None
            row = {"split": split, "title": column.title, "key": column.key, **found}
            rows.append({**row, "better": better})
    return {"a": a, "b": b, "rows": rows, "values": values}
