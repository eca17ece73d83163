"""Intervals and comparison: known cases, and resampling done the slow way."""

import math

import numpy as np
import pytest

from hfnet_distill.evaluation import statistics as module
from hfnet_distill.evaluation.metrics import (
    Matches,
    PairScores,
    ViewScores,
    descriptor_ap,
    detector_ap,
    matching_score,
    summarize,
)
from hfnet_distill.evaluation.statistics import (
    ap_statistic,
    bootstrap_interval,
    by_sequence,
    compare,
    intervals,
    mean_statistic,
    pair_statistics,
)

SIX = [
    *("matching_score", "homography_accuracy", "descriptor_ap"),
    *("localization_error", "repeatability", "detector_ap"),
]


def make_view(rng, count, skill, *, matched=True):
    scores = np.sort(rng.uniform(size=count))[::-1].astype(np.float32)
    visible, offsets = rng.uniform(size=count) < 0.8, rng.uniform(0, 6, count)
    ratios = rng.uniform(size=count).astype(np.float32)
    correct = visible & (rng.uniform(size=count) < skill * (1 - ratios))
    errors = np.where(correct, 1.0, np.inf)
    matches = Matches(np.zeros(count, np.intp), ratios, errors) if matched else None
    return ViewScores(scores, visible, offsets, offsets < 3, matches)


def make_pairs(sequences, *, per_sequence=3, keypoints=40, seed=0):
    """Made-up results of pairs, better in some sequences than in others."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(sequences):
        skill = rng.uniform(0.2, 1)
        for _ in range(per_sequence):
            views = (make_view(rng, keypoints, skill), make_view(rng, keypoints, skill))
            pairs.append((f"s{number}", PairScores(*views, None, rng.exponential(4 - 3 * skill))))
    return pairs


def repeat(pairs, weights):
    """The pairs of sequences s0, s1, ... as often as each was drawn."""
    return [pair for sequence, pair in pairs for _ in range(weights[int(sequence[1:])])]


def test_every_number_is_resampled_as_metrics_would():
    """The statistics equal ``summarize`` over the drawn pairs, one by one."""
    pairs = make_pairs(5)
    rng = np.random.default_rng(1)
    pairs.append(("s2", PairScores(*(make_view(rng, 9, 1, matched=False),) * 2, None, math.inf)))
    pairs.append(("s3", PairScores(make_view(rng, 0, 1), make_view(rng, 4, 1), None, math.inf)))
    statistics = pair_statistics(pairs)
    assert statistics.names == ["s0", "s1", "s2", "s3", "s4"]
    assert list(statistics.of) == SIX
    draws = module._draw_weights(5, 20, seed=3)
    drawn = [[statistic(weights) for statistic in statistics.of.values()] for weights in draws]
    expected = [list(summarize(repeat(pairs, weights)).values()) for weights in draws]
    np.testing.assert_allclose(drawn, expected, rtol=1e-12)


def test_intervals_hold_the_numbers():
    pairs = make_pairs(20)
    statistics = pair_statistics(pairs)
    found, numbers = intervals(statistics), summarize([pair for _, pair in pairs])
    assert found == intervals(statistics)
    assert found != intervals(statistics, seed=1)
    for name, (low, high) in found.items():
        assert low < numbers[name] < high, name
    wide = intervals(pair_statistics(make_pairs(5)))
    assert sum(high - low for low, high in wide.values()) > sum(
        high - low for low, high in found.values()
    )


def test_the_interval_of_a_mean_is_that_of_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 400)
    low, high = bootstrap_interval(mean_statistic(values[:, None]), 400, resamples=4000)
    spread = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], values.mean() + [-spread, spread], atol=0.02)


def test_copies_within_a_sequence_do_not_narrow_its_interval():
    values = np.random.default_rng(0).normal(size=12)
    once = bootstrap_interval(mean_statistic(values[:, None]), 12)
    often = bootstrap_interval(mean_statistic(np.repeat(values[:, None], 50, axis=1)), 12)
    np.testing.assert_allclose(once, often)


def test_sequences_of_different_length_weigh_by_their_pairs():
    statistic = mean_statistic([[1, 1, 1], [], [0]])
    assert statistic(np.array([1, 1, 1])) == 0.75
    assert statistic(np.array([1, 0, 2])) == 0.6
    assert math.isnan(statistic(np.array([0, 3, 0])))


def test_average_precision_by_hand():
    # Best first: right, wrong, right; the first point of the curve does not count.
    statistic = ap_statistic(
        np.array([1, 0, 0]),
        np.array([True, True, False]),
        np.array([0.3, 0.1, 0.2]),
        np.array([1, 1]),
    )
    assert statistic(np.array([1, 1])) == pytest.approx(2 / 3 / 2)
    # Right, right, wrong, wrong: one of the first two copies counts.
    assert statistic(np.array([2, 0])) == pytest.approx(1 / 2)
    assert statistic(np.array([0, 2])) == pytest.approx(1 / 2)


def test_one_sequence_has_no_interval():
    for pairs in (make_pairs(1), []):
        found = intervals(pair_statistics(pairs))
        assert all(math.isnan(bound) for both in found.values() for bound in both)


def test_numbers_of_each_sequence():
    pairs = make_pairs(3)
    statistics = pair_statistics(pairs)
    for number in (matching_score, descriptor_ap, detector_ap):
        found = by_sequence(statistics.of[number.__name__], 3)
        expected = [number([pair for _, pair in pairs[row : row + 3]]) for row in (0, 3, 6)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def means(values):
    """The statistic of one value per sequence, and how many sequences."""
    return mean_statistic(np.array(values, np.float64)[:, None])


def test_exact_p_value_by_hand():
    # Of 8 flips, the sum of 1, 2 and 3 is reached by two: none and all.
    found = compare(means([2, 4, 6]), means([1, 2, 3]), 3)
    assert (found.difference, found.p_value, found.sequences) == (2, 2 / 8, 3)
    assert 1 <= found.low <= 2 <= found.high <= 3
    # 0.1, 0.2 and -0.3 sum to zero but for rounding: every flip reaches that.
    assert compare(means([0.1, 0.2, 0]), means([0, 0, 0.3]), 3).p_value == 1


def test_drawn_flips_agree_with_all_flips(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = means(rng.normal(0.4, 1, 13)), means(rng.normal(0, 1, 13))
    exact = compare(a, b, 13).p_value
    monkeypatch.setattr(module, "EXACT", 0)
    assert compare(a, b, 13).p_value == pytest.approx(exact, abs=0.015)


def test_a_clear_difference_and_none():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=60)
    better = compare(means(base + 0.02 + rng.normal(0, 0.03, 60)), means(base), 60)
    assert better.low > 0
    assert 0 < better.p_value < 0.01
    same = compare(means(base + rng.normal(0, 0.03, 60)), means(base), 60)
    assert same.low < 0 < same.high
    assert same.p_value > 0.05
    itself = compare(means(base), means(base), 60)
    assert (itself.difference, itself.low, itself.high, itself.p_value) == (0, 0, 0, 1)


def test_the_difference_is_that_of_the_table():
    """An average precision of all sequences together is not the mean of theirs."""
    pairs_a, pairs_b = make_pairs(6, seed=1), make_pairs(6, seed=2)
    of_a, of_b = (pair_statistics(pairs).of["descriptor_ap"] for pairs in (pairs_a, pairs_b))
    expected = [descriptor_ap([pair for _, pair in pairs]) for pairs in (pairs_a, pairs_b)]
    assert compare(of_a, of_b, 6).difference == pytest.approx(expected[0] - expected[1], abs=1e-12)


def test_comparison_leaves_out_what_was_not_measured():
    measured, none = mean_statistic([[1.0], [5.0], [2.0]]), mean_statistic([[], [], []])
    assert compare(measured, mean_statistic([[0.0], [3.0], []]), 3).sequences == 2
    nothing = compare(measured, none, 3)
    assert nothing.sequences == 0
    assert math.isnan(nothing.p_value)
