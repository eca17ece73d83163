"""How sure the judge's numbers are: intervals by resampling sequences, and paired comparison.

The pairs of one sequence resemble each other, so that sequences and not pairs are drawn again, with
replacement: the cluster bootstrap with percentile intervals (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993; Field and Welsh, J. R. Stat. Soc. B, 2007). Two models are compared on the
same sequences, by the bootstrap of their difference and by a test that flips the sign of what one
has more than the other in a sequence (Fisher, The Design of Experiments, 1935; drawn flips count
as in Phipson and Smyth, 2010).

A statistic is a function of ``weights`` (S,), how often each of S sequences was drawn: an average
precision sorts its answers once, and counts each as often as its sequence was drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import (
    THRESHOLD,
    PairScores,
    homography_accuracy,
    matching_score,
    repeatability,
)

__all__ = [
    "Comparison",
    "Statistic",
    "Statistics",
    "ap_statistic",
    "bootstrap_interval",
    "by_sequence",
    "compare",
    "intervals",
    "mean_statistic",
    "pair_statistics",
]

RESAMPLES = 1000
FLIPS = 10000
EXACT = 14
"""Up to so many sequences all flips of signs are tried, beyond it ``FLIPS`` drawn ones."""

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Statistics:
    """Numbers of one model as functions of how often each sequence was drawn.

    Attributes:
        names: of the S sequences.
        of: key of a number -> its statistic.
    """

    names: list[str]
    of: dict[str, Statistic]


def bootstrap_interval(
    statistic: Statistic, num_sequences: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic under resampling of sequences.

    Args:
        statistic: weights (S,) int64, the sum of which is S -> the number; nan where these
            sequences have none.
        num_sequences: S.

    Returns:
        (low, high); nan for fewer than two sequences, which say nothing of their spread.
    """
    if num_sequences < 2:
        return math.nan, math.nan
    values = np.array([statistic(w) for w in _draw_weights(num_sequences, resamples, seed)])
    return _percentiles(values)


def mean_statistic(values_by_sequence: Sequence[Sequence[float]]) -> Statistic:
    """The mean of all values, of S sequences with any number of values each."""
    sums = np.array([np.sum(values) for values in values_by_sequence], np.float64)
    counts = np.array([len(values) for values in values_by_sequence])

    def mean(weights: np.ndarray) -> float:
        count = weights @ counts
        return weights @ sums / count if count else math.nan

    return mean


def ap_statistic(
    sequences: np.ndarray, correct: np.ndarray, ranks: np.ndarray, relevant: np.ndarray
) -> Statistic:
    """The average precision of ``evaluation.metrics`` over the answers of all drawn sequences.

    Args:
        sequences: (N,) int, the sequence of each answer, 0 to S - 1.
        correct: (N,) bool.
        ranks: (N,) float, the best answer has the smallest; of equal ones the first comes first.
        relevant: (S,) int, what there was to find in each sequence.
    """
    order = np.argsort(ranks, kind="stable")
    sequences, correct = sequences[order], correct[order]
    found_at = np.flatnonzero(correct)
    relevant = np.asarray(relevant)

    def average_precision(weights: np.ndarray) -> float:
        total = weights @ relevant
        copies = weights.astype(np.int32).take(sequences)
        answers = np.cumsum(copies, dtype=np.int32)
        if not len(answers) or not answers[-1]:
            return math.nan
        if not total:
            return 0.0
        # Behind a wrong answer precision is lower than before it: the envelope needs only right
        # ones, and of an answer's copies only the last.
        found = copies[found_at]
        precision = np.cumsum(found, dtype=np.int32) / np.maximum(answers[found_at], 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        area = envelope @ found
        first = np.searchsorted(answers, 1)
        if correct[first]:  # the curve's first point is left out, as metrics leave it out
            area -= envelope[np.searchsorted(found_at, first)]
        return float(area / total)

    return average_precision


def intervals(statistics: Statistics, **options) -> dict[str, tuple[float, float]]:
    """The ``bootstrap_interval`` of each number, by its key."""
    return {
        key: bootstrap_interval(statistic, len(statistics.names), **options)
        for key, statistic in statistics.of.items()
    }


def pair_statistics(pairs: Sequence[tuple[str, PairScores]]) -> Statistics:
    """The six numbers of ``evaluation.metrics.summarize`` over the pairs of the drawn sequences.

    Args:
        pairs: (sequence, what is known of a pair), in the order in which they are summarized.
    """
    names = list(dict.fromkeys(sequence for sequence, _ in pairs))
    number_of = {name: number for number, name in enumerate(names)}
    numbered = [(number_of[sequence], pair) for sequence, pair in pairs]
    return Statistics(
        names,
        {
            "matching_score": _mean_over_pairs(numbered, len(names), matching_score),
            "homography_accuracy": _mean_over_pairs(numbered, len(names), homography_accuracy),
            "descriptor_ap": _descriptor_ap(numbered, len(names)),
            "localization_error": _localization_error(numbered, len(names)),
            "repeatability": _mean_over_pairs(numbered, len(names), repeatability),
            "detector_ap": _detector_ap(numbered, len(names)),
        },
    )


def by_sequence(statistic: Statistic, num_sequences: int) -> np.ndarray:
    """The number of each sequence alone, (S,) float64."""
    return np.array([statistic(weights) for weights in np.eye(num_sequences, dtype=np.int64)])


@dataclass(frozen=True)
class Comparison:
    """What model A has more than model B.

    Attributes:
        difference: A's number minus B's.
        low, high: its 95 % interval.
        p_value: two-sided, of the hypothesis that A and B could change places on any sequence;
            from the numbers of each sequence alone.
        sequences: how many have both numbers.
    """

    difference: float
    low: float
    high: float
    p_value: float
    sequences: int


def compare(
    a: Statistic, b: Statistic, num_sequences: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare a number of two models, paired over the sequences that both were judged on."""
    all_once = np.ones(num_sequences, np.int64)
    low, high = bootstrap_interval(
        lambda weights: a(weights) - b(weights), num_sequences, resamples=resamples, seed=seed
    )
    differences = by_sequence(a, num_sequences) - by_sequence(b, num_sequences)
    differences = differences[~np.isnan(differences)]
    p_value = _sign_flip_p_value(differences, seed) if len(differences) else math.nan
    return Comparison(float(a(all_once) - b(all_once)), low, high, p_value, len(differences))


def _sign_flip_p_value(differences: np.ndarray, seed: int) -> float:
    count = len(differences)
    if count <= EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (FLIPS, count), np.int8)
        signs[0] = 1  # what was observed is one of the flips, so that p is never 0
    # The tolerance keeps equal sums equal, whatever the order of their rounding.
    sums, least = np.abs(signs @ differences), abs(differences.sum())
    return float((sums >= least - 1e-12 * np.abs(differences).sum()).mean())


def _draw_weights(num_sequences: int, resamples: int, seed: int) -> np.ndarray:
    """How often each sequence is drawn, (resamples, S) int64, each row with the sum S."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_sequences, np.full(num_sequences, 1 / num_sequences), resamples)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # between infinities
        low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _mean_over_pairs(numbered, count: int, number: Callable) -> Statistic:
    values = [[] for _ in range(count)]
    for sequence, pair in numbered:
        value = number([pair])
        if not math.isnan(value):
            values[sequence].append(value)
    return mean_statistic(values)


def _localization_error(numbered, count: int) -> Statistic:
    values = [[] for _ in range(count)]
    for sequence, pair in numbered:
        for view in (pair.view1, pair.view0):
            offsets = view.offsets[view.visible & view.repeated]
            if len(offsets):
                values[sequence].append(offsets.mean())
    return mean_statistic(values)


def _descriptor_ap(numbered, count: int) -> Statistic:
    views = [(sequence, pair.view1) for sequence, pair in numbered if pair.is_matched]
    relevant = np.zeros(count, np.int64)
    for sequence, view in views:
        relevant[sequence] += (view.offsets[view.visible] < THRESHOLD).sum()
    return ap_statistic(
        _concatenate([np.full(v.visible.sum(), sequence) for sequence, v in views], np.intp),
        _concatenate([v.matches.correct[v.visible] for _, v in views], bool),
        _concatenate([v.matches.ratios[v.visible] for _, v in views], np.float32),
        relevant,
    )


def _detector_ap(numbered, count: int) -> Statistic:
    views = [(s, v) for s, pair in numbered if not pair.is_empty for v in (pair.view1, pair.view0)]
    sequences = _concatenate([np.full(v.visible.sum(), sequence) for sequence, v in views], np.intp)
    repeated = _concatenate([v.repeated[v.visible] for _, v in views], bool)
    scores = _concatenate([v.scores[v.visible] for _, v in views], np.float32)
    relevant = np.bincount(sequences, minlength=count)
    # Reversed, because detector_ap orders equal scores so.
    return ap_statistic(sequences[::-1], repeated[::-1], -scores[::-1], relevant)


def _concatenate(arrays: list[np.ndarray], dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])
