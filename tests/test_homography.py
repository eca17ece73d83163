"""The protocol ``matching``: estimates, corner errors, areas under curves."""

import numpy as np
import pytest

from hfnet_distill.data.features import Features
from hfnet_distill.data.geometry import warp_points
from hfnet_distill.evaluation.homography import (
    ESTIMATORS,
    auc_statistic,
    error_auc,
    match_pair,
    matching_statistics,
    summarize_matching,
    visible_offsets,
)
from hfnet_distill.evaluation.matching import euclidean_distances, match_mutual, match_nearest

H_0TO1 = np.array([[0.9, 0.1, 12.0], [-0.05, 1.1, -7.0], [1e-4, -2e-4, 1.0]])
SIZE = (320, 240)


def make_pair(count=200, wrong=0, seed=0):
    """Two views of the same keypoints; the first ``wrong`` of view 1 lie anywhere."""
    rng = np.random.default_rng(seed)
    keypoints0 = rng.uniform([0, 0], SIZE, (count, 2)).astype(np.float32)
    keypoints1 = warp_points(keypoints0, H_0TO1).astype(np.float32)
    keypoints1[:wrong] = rng.uniform([0, 0], SIZE, (wrong, 2))
    descriptors = rng.normal(size=(count, 16)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    order = rng.permutation(count)
    scores = np.linspace(1, 0, count, dtype=np.float32)
    view0 = Features(SIZE, keypoints0, scores, descriptors)
    return view0, Features(SIZE, keypoints1[order], scores, descriptors[order]), order


def test_every_estimator_finds_the_homography_among_wrong_matches():
    view0, view1, order = make_pair(wrong=60)
    pair = match_pair(view0, view1, H_0TO1)
    np.testing.assert_array_equal(order[pair.matches[:, 1]], pair.matches[:, 0])
    assert pair.corner_errors.keys() == ESTIMATORS.keys()
    assert max(pair.corner_errors.values()) < 0.1
    assert (pair.match_errors[60:] < 1e-3).all()
    assert (pair.match_errors <= 3).mean() == pytest.approx(0.7, abs=0.02)


def test_numbers_of_known_pairs():
    right = match_pair(*make_pair()[:2], H_0TO1)
    none = match_pair(*make_pair(count=3)[:2], H_0TO1)
    assert set(none.corner_errors.values()) == {np.inf}
    numbers = summarize_matching([right, none])
    assert numbers["homography"]["magsac"]["accuracy@1px"] == 0.5
    assert numbers["homography"]["ransac"]["auc@5px"] == pytest.approx(0.5, abs=0.01)
    assert numbers["mean_matching_accuracy"]["@1px"] == 1
    assert numbers["mean_matches"] == 101.5
    assert numbers["repeatability"]["@1px"] == 1


def test_no_keypoints():
    empty = Features(
        SIZE, np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 16), np.float32)
    )
    pair = match_pair(empty, make_pair()[1], H_0TO1)
    assert pair.matches.shape == (0, 2)
    assert summarize_matching([pair])["mean_matching_accuracy"]["@3px"] == 0


def test_features_without_descriptors_are_refused():
    view0, view1, _ = make_pair()
    bare = Features(SIZE, view0.keypoints, view0.scores, None)
    with pytest.raises(ValueError, match="needs descriptors in both views"):
        match_pair(bare, view1, H_0TO1)


def test_area_under_the_recall_by_hand():
    # Recall rises to 1/2 at 1 px, to 1 at 2 px and stays there until 4 px.
    assert error_auc(np.array([2.0, 1.0]), 4) == pytest.approx((0.25 + 0.75 + 2) / 4)
    assert error_auc(np.array([np.inf, 9.0]), 4) == 0


def test_areas_of_drawn_sequences():
    rng = np.random.default_rng(0)
    errors = [rng.exponential(3, 5) for _ in range(6)] + [np.full(5, np.inf)]
    statistic = auc_statistic(errors, 5)
    for weights in rng.multinomial(7, np.full(7, 1 / 7), 10):
        drawn = [error for group, w in zip(errors, weights, strict=True) for error in [group] * w]
        assert statistic(weights) == pytest.approx(error_auc(np.concatenate(drawn), 5), abs=1e-12)


def test_statistics_of_all_sequences_are_the_numbers():
    pairs = [(f"s{seed}", match_pair(*make_pair(40, 25, seed)[:2], H_0TO1)) for seed in range(4)]
    numbers = summarize_matching([pair for _, pair in pairs])
    for key, statistic in matching_statistics(pairs).of.items():
        value = numbers
        for part in key.split("."):
            value = value[part]
        assert statistic(np.ones(4, np.int64)) == pytest.approx(value, abs=1e-12), key


def test_offsets_of_visible_keypoints_by_hand():
    """A shift by 10: the keypoint at 315 leaves the view, the others land 0 and 2.5 px off."""
    shift = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1.0]])
    scores = np.ones(3, np.float32)
    view0 = Features(SIZE, np.array([[0, 0], [315, 5], [50, 50]], np.float32), scores)
    view1 = Features(SIZE, np.array([[10, 0], [62, 51.5], [200, 9]], np.float32), scores)
    offsets, visible = visible_offsets(view0, view1, shift)
    assert visible.tolist() == [True, False, True]
    np.testing.assert_allclose(offsets, [0, 2.5])


@pytest.mark.parametrize("binary", [False, True])
def test_mutual_neighbours_blockwise(binary, monkeypatch):
    rng = np.random.default_rng(0)
    descriptors0, descriptors1 = rng.normal(size=(70, 24)), rng.normal(size=(90, 24))
    if binary:
        descriptors0, descriptors1 = descriptors0 > 0, descriptors1 > 0
    whole = euclidean_distances(*(d.astype(np.float32) for d in (descriptors0, descriptors1)))
    expected, _ = match_nearest(whole)
    monkeypatch.setattr("hfnet_distill.evaluation.matching.BLOCK", 16)
    np.testing.assert_array_equal(match_mutual(descriptors0, descriptors1), expected)
    with pytest.raises(ValueError, match="cannot match"):
        match_mutual(descriptors0, descriptors1[:, :8])
