"""How sure the judge's numbers are: intervals by resampling sequences, and paired comparison.

The pairs of one sequence resemble each other, so that sequences and not pairs are drawn again, with
replacement: the cluster bootstrap with percentile intervals (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993; Field and Welsh, J. R. Stat. Soc. B, 2007). Two models are compared on the
same sequences, by the bootstrap of their differences and by a test that flips the signs of these
(Fisher, The Design of Experiments, 1935; drawn flips count as in Phipson and Smyth, 2010).

A statistic is a function of ``weights`` (S,), how often each of S sequences was drawn: an average
precision sorts its answers once, and counts each as often as its sequence was drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import (
    THRESHOLD,
    PairScores,
    homography_accuracy,
    matching_score,
    repeatability,
)

__all__ = [
    "Comparison",
    "ap_statistic",
    "bootstrap_interval",
    "by_sequence",
    "compare",
    "intervals",
    "mean_statistic",
]

RESAMPLES = 1000
FLIPS = 10000
EXACT = 14
"""Up to so many sequences all flips of signs are tried, beyond it ``FLIPS`` drawn ones."""

Statistic = Callable[[np.ndarray], float]


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


def intervals(
    pairs: Sequence[tuple[str, PairScores]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the six numbers of ``evaluation.metrics.summarize``.

    Args:
        pairs: (sequence, what is known of a pair), in the order in which they are summarized.

    Returns:
        name of the number -> (low, high), in the order of ``summarize``.
    """
    names = list(dict.fromkeys(sequence for sequence, _ in pairs))
    number_of = {name: number for number, name in enumerate(names)}
    numbered = [(number_of[sequence], pair) for sequence, pair in pairs]
    statistics = {
        "matching_score": _mean_over_pairs(numbered, len(names), matching_score),
        "homography_accuracy": _mean_over_pairs(numbered, len(names), homography_accuracy),
        "descriptor_ap": _descriptor_ap(numbered, len(names)),
        "localization_error": _localization_error(numbered, len(names)),
        "repeatability": _mean_over_pairs(numbered, len(names), repeatability),
        "detector_ap": _detector_ap(numbered, len(names)),
    }
    return {
        name: bootstrap_interval(statistic, len(names), resamples=resamples, seed=seed)
        for name, statistic in statistics.items()
    }


def by_sequence(
    pairs: Sequence[tuple[str, PairScores]], number: Callable[[list[PairScores]], float]
) -> dict[str, float]:
    """sequence -> a number of ``evaluation.metrics`` over its pairs alone, for ``compare``."""
    groups: dict[str, list[PairScores]] = {}
    for sequence, pair in pairs:
        groups.setdefault(sequence, []).append(pair)
    return {sequence: number(group) for sequence, group in groups.items()}


@dataclass(frozen=True)
class Comparison:
    """What model A has more than model B, mean over sequences.

    Attributes:
        difference: mean of A minus B; nan where no sequence has both numbers.
        low, high: its 95 % interval.
        p_value: two-sided, of the hypothesis that A and B could change places on any sequence.
        sequences: how many have both numbers.
    """

    difference: float
    low: float
    high: float
    p_value: float
    sequences: int


def compare(
    values_a: dict[str, float],
    values_b: dict[str, float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models, sequence by sequence.

    Args:
        values_a, values_b: sequence -> number, of the same sequences; a sequence where either is
            nan is left out.

    Raises:
        ValueError: the sequences differ.
    """
    if values_a.keys() != values_b.keys():
        odd = sorted(values_a.keys() ^ values_b.keys())
        raise ValueError(
            f"cannot compare models on different sequences: {odd[0]} has only one of them"
            f"{f' ({len(odd)} such)' if len(odd) > 1 else ''}; judge both on the same dataset"
        )
    differences = np.array([values_a[name] - values_b[name] for name in values_a], np.float64)
    differences = differences[~np.isnan(differences)]
    count = len(differences)
    if not count:
        return Comparison(math.nan, math.nan, math.nan, math.nan, 0)
    low, high = bootstrap_interval(
        mean_statistic(differences[:, None]), count, resamples=resamples, seed=seed
    )
    p_value = _sign_flip_p_value(differences, seed)
    return Comparison(float(differences.mean()), low, high, p_value, count)


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
