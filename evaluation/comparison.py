"""Which differences between two models are real: number by number, paired over groups.

Two models are compared on the same sequences or queries, by the bootstrap of their difference
(``intervals``) and by a test that flips the sign of what one has more than the other in a group
(Fisher, The Design of Experiments, 1935; drawn flips count as in Phipson and Smyth, 2010).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .intervals import Statistic, Statistics, bootstrap_interval
from .report.tables import Column

__all__ = ["Comparison", "compare", "compare_models"]

SIGNIFICANCE = 0.05
FLIPS = 10000
EXACT = 14
"""Up to so many groups all flips of signs are tried, beyond it ``FLIPS`` drawn ones."""


@dataclass(frozen=True)
class Comparison:
    """What model A has more than model B.

    Attributes:
        difference: A's number minus B's.
        low, high: its 95 % interval.
        p_value: two-sided, of the hypothesis that A and B could change places on any group; from
            the numbers of each group alone.
        sequences: how many groups have both numbers.
    """

    difference: float
    low: float
    high: float
    p_value: float
    sequences: int

    @property
    def is_real(self) -> bool:
        """The interval leaves out zero, and flips of sign reach the difference too seldom."""
        return self.p_value < SIGNIFICANCE and (self.low > 0 or self.high < 0)


def compare(a: Statistic, b: Statistic, num_groups: int) -> Comparison:
    """Compare a number of two models, paired over the groups that both were evaluated on."""
    once = np.ones(num_groups, np.int64)
    low, high = bootstrap_interval(lambda weights: a(weights) - b(weights), num_groups)
    differences = by_group(a, num_groups) - by_group(b, num_groups)
    differences = differences[~np.isnan(differences)]
    p_value = _sign_flip_p_value(differences) if len(differences) else math.nan
    return Comparison(float(a(once) - b(once)), low, high, p_value, len(differences))


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
    """What model A has more than model B, for each split and column.

    Args:
        statistics: of each model, split -> its numbers; of the same groups.

    Returns:
        ``a`` and ``b``; ``rows``, with ``better``, the model that is better or None where they
        cannot be told apart; ``values``: key of a column -> group -> [of A, of B], of the first
        split.
    """
    (a, b), rows, values = names, [], {}
    for split, of_a in statistics[0].items():
        of_b, count = statistics[1][split], len(of_a.groups)
        for column in columns:
            if column.key not in of_a.of:
                continue
            pair = of_a.of[column.key], of_b.of[column.key]
            found = compare(*pair, count)
            if not found.sequences:
                continue
            if column.key not in values:
                each = np.stack([by_group(s, count) for s in pair], axis=1).tolist()
                values[column.key] = dict(zip(of_a.groups, each, strict=True))
            a_is_better = (found.difference > 0) != column.less_is_better
            better = (a if a_is_better else b) if found.is_real else None
            row = {"split": split, "title": column.title, "key": column.key, **asdict(found)}
            rows.append({**row, "better": better})
    return {"a": a, "b": b, "rows": rows, "values": values}
