"""Intervals and comparison: known cases, and resampling done the slow way."""

import math

import numpy as np
import pytest

from hfnet_distill.evaluation import intervals
from hfnet_distill.evaluation.intervals import (
    Statistics,
    auc_statistic,
    average_precision_statistic,
    bootstrap_interval,
    by_group,
    compare,
    draw_weights,
    mean_statistic,
    median_statistic,
)
from hfnet_distill.evaluation.tasks.hfnet import HFNet, PairScores, ViewScores

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
    matches = (np.zeros(count, np.intp), ratios, errors) if matched else ()
    return ViewScores(scores, visible, offsets, offsets < 3, *matches)


def make_pairs(sequences, *, per_sequence=3, keypoints=40, seed=0):
    """Made-up results of pairs, better in some sequences than in others."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(sequences):
        skill = rng.uniform(0.2, 1)
        for _ in range(per_sequence):
            views = (make_view(rng, keypoints, skill), make_view(rng, keypoints, skill))
            pairs.append((f"s{number}", PairScores(*views, rng.exponential(4 - 3 * skill))))
    return pairs


def statistics_of(pairs):
    """The six numbers of (sequence, pair)."""
    names = list(dict.fromkeys(sequence for sequence, _ in pairs))
    groups = [names.index(sequence) for sequence, _ in pairs]
    return Statistics(names, HFNet.pair_statistics(groups, [pair for _, pair in pairs]))


def repeat(pairs, weights):
    """The pairs of sequences s0, s1, ... as often as each was drawn."""
    return [("drawn", pair) for name, pair in pairs for _ in range(weights[int(name[1:])])]


def test_a_draw_is_a_set_of_pairs():
    """A draw gives the number of the drawn pairs, as if there were no others."""
    pairs = make_pairs(5)
    rng = np.random.default_rng(1)
    pairs.append(("s2", PairScores(*(make_view(rng, 9, 1, matched=False),) * 2, math.inf)))
    pairs.append(("s3", PairScores(make_view(rng, 0, 1), make_view(rng, 4, 1), math.inf)))
    statistics = statistics_of(pairs)
    assert statistics.groups == ["s0", "s1", "s2", "s3", "s4"]
    assert list(statistics.of) == SIX
    draws = draw_weights(5, 20)
    drawn = [[statistic(weights) for statistic in statistics.of.values()] for weights in draws]
    expected = [list(statistics_of(repeat(pairs, w)).values().values()) for w in draws]
    np.testing.assert_allclose(drawn, expected, rtol=1e-12)


def test_intervals_hold_the_numbers():
    pairs = make_pairs(20)
    statistics = statistics_of(pairs)
    found, numbers = statistics.intervals(), statistics.values()
    assert found == statistics.intervals()
    for name, (low, high) in found.items():
        assert low < numbers[name] < high, name
    wide = statistics_of(make_pairs(5)).intervals()
    assert sum(high - low for low, high in wide.values()) > sum(
        high - low for low, high in found.values()
    )


def test_the_interval_of_a_mean_is_that_of_theory(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 4000)
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 400)
    low, high = bootstrap_interval(means(values), 400)
    spread = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], values.mean() + [-spread, spread], atol=0.02)


def test_copies_within_a_sequence_do_not_narrow_its_interval():
    values = np.random.default_rng(0).normal(size=12)
    once = bootstrap_interval(means(values), 12)
    often = bootstrap_interval(mean_statistic(np.repeat(range(12), 50), np.repeat(values, 50)), 12)
    np.testing.assert_allclose(once, often)


def test_sequences_of_different_length_weigh_by_their_pairs():
    statistic = mean_statistic([0, 0, 0, 2], [1, 1, 1, 0])
    assert statistic(np.array([1, 1, 1])) == 0.75
    assert statistic(np.array([1, 0, 2])) == 0.6
    assert math.isnan(statistic(np.array([0, 3, 0])))


def test_average_precision_by_hand():
    # Best first: right, wrong, right; the first point of the curve does not count.
    statistic = average_precision_statistic(
        np.array([1, 0, 0]),
        np.array([True, True, False]),
        np.array([0.3, 0.1, 0.2]),
        np.array([True, True, False]),
    )
    assert statistic(np.array([1, 1])) == pytest.approx(2 / 3 / 2)
    # Right, right, wrong, wrong: one of the first two copies counts.
    assert statistic(np.array([2, 0])) == pytest.approx(1 / 2)
    assert statistic(np.array([0, 2])) == pytest.approx(1 / 2)


def test_one_sequence_has_no_interval():
    for pairs in (make_pairs(1), []):
        found = statistics_of(pairs).intervals()
        assert all(math.isnan(bound) for both in found.values() for bound in both)


def test_numbers_of_each_sequence():
    pairs = make_pairs(3)
    for key, statistic in statistics_of(pairs).of.items():
        expected = [statistics_of(pairs[row : row + 3]).values()[key] for row in (0, 3, 6)]
        np.testing.assert_allclose(by_group(statistic, 3), expected, rtol=1e-12)


def test_area_under_the_recall_by_hand():
    once = np.ones(2, np.int64)
    # Recall rises to 1/2 at 1 px, to 1 at 2 px and stays there until 4 px.
    assert auc_statistic([0, 1], [2.0, 1.0], 4)(once) == pytest.approx((0.25 + 0.75 + 2) / 4)
    assert auc_statistic([0, 1], [np.inf, 9.0], 4)(once) == 0


def trapezoids(errors, threshold):
    """The area as SuperGlue's code finds it."""
    errors = np.sort(errors)
    recall = np.arange(1, len(errors) + 1) / len(errors)
    last = np.searchsorted(errors, threshold)
    x = np.concatenate([[0.0], errors[:last], [threshold]])
    y = np.concatenate([[0.0], recall[:last], [recall[last - 1] if last else 0.0]])
    return np.trapezoid(y, x) / threshold


def test_areas_and_medians_of_drawn_sequences():
    rng = np.random.default_rng(0)
    errors = np.concatenate([rng.exponential(3, 30), np.full(5, np.inf)])
    groups = np.repeat(np.arange(7), 5)
    auc, median = auc_statistic(groups, errors, 5), median_statistic(groups, errors)
    for weights in rng.multinomial(7, np.full(7, 1 / 7), 10):
        drawn = np.repeat(errors, weights[groups])
        assert auc(weights) == pytest.approx(trapezoids(drawn, 5), abs=1e-12)
        assert median(weights) == np.median(drawn)


def means(values):
    """The statistic of one value per sequence, and how many sequences."""
    return mean_statistic(range(len(values)), values)


def test_exact_p_value_by_hand():
    # Of 8 flips, the sum of 1, 2 and 3 is reached by two: none and all.
    found = compare(means([2, 4, 6]), means([1, 2, 3]), 3)
    assert (found["difference"], found["p_value"], found["sequences"]) == (2, 2 / 8, 3)
    assert 1 <= found["low"] <= 2 <= found["high"] <= 3
    # 0.1, 0.2 and -0.3 sum to zero but for rounding: every flip reaches that.
    assert compare(means([0.1, 0.2, 0]), means([0, 0, 0.3]), 3)["p_value"] == 1


def test_drawn_flips_agree_with_all_flips(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = means(rng.normal(0.4, 1, 13)), means(rng.normal(0, 1, 13))
    exact = compare(a, b, 13)["p_value"]
    monkeypatch.setattr(intervals, "EXACT", 0)
    assert compare(a, b, 13)["p_value"] == pytest.approx(exact, abs=0.015)


def test_a_clear_difference_and_none():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=60)
    better = compare(means(base + 0.02 + rng.normal(0, 0.03, 60)), means(base), 60)
    assert better["low"] > 0
    assert 0 < better["p_value"] < 0.01
    same = compare(means(base + rng.normal(0, 0.03, 60)), means(base), 60)
    assert same["low"] < 0 < same["high"]
    assert same["p_value"] > 0.05
    itself = compare(means(base), means(base), 60)
    assert (itself["difference"], itself["low"], itself["high"], itself["p_value"]) == (0, 0, 0, 1)


def test_the_difference_is_that_of_the_table():
    """An average precision of all sequences together is not the mean of theirs."""
    pairs_a, pairs_b = make_pairs(6, seed=1), make_pairs(6, seed=2)
    both = [statistics_of(pairs) for pairs in (pairs_a, pairs_b)]
    found = compare(*(statistics.of["descriptor_ap"] for statistics in both), 6)
    of_a, of_b = (statistics.values()["descriptor_ap"] for statistics in both)
    assert found["difference"] == pytest.approx(of_a - of_b, abs=1e-12)


def test_comparison_leaves_out_what_was_not_measured():
    measured, none = means([1, 5, 2]), mean_statistic([], [])
    assert compare(measured, mean_statistic([0, 1], [0, 3]), 3)["sequences"] == 2
    nothing = compare(measured, none, 3)
    assert nothing["sequences"] == 0
    assert math.isnan(nothing["p_value"])
