"""The protocol ``matching``: estimates, corner errors, areas under curves."""

import numpy as np
import pytest

from hfnet_distill.data.features import Features
from hfnet_distill.data.geometry import warp_points
from hfnet_distill.evaluation.intervals import Statistics
from hfnet_distill.evaluation.tasks.homography import (
    ESTIMATORS,
    Matching,
    match_pair,
    visible_offsets,
)

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


def summarize(pairs):
    groups = list(range(len(pairs)))
    return Statistics(groups, Matching.pair_statistics(groups, pairs)).values()


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
    numbers = summarize([right, none])
    assert numbers["homography.magsac.accuracy@1px"] == 0.5
    assert numbers["homography.ransac.auc@5px"] == pytest.approx(0.5, abs=0.01)
    assert numbers["mean_matching_accuracy.@1px"] == 1
    assert numbers["mean_matches"] == 101.5
    assert numbers["repeatability.@1px"] == 1


def test_no_keypoints():
    empty = Features(
        SIZE, np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 16), np.float32)
    )
    pair = match_pair(empty, make_pair()[1], H_0TO1)
    assert pair.matches.shape == (0, 2)
    assert summarize([pair])["mean_matching_accuracy.@3px"] == 0


def test_features_without_descriptors_are_refused():
    view0, view1, _ = make_pair()
    bare = Features(SIZE, view0.keypoints, view0.scores, None)
    with pytest.raises(ValueError, match="needs descriptors in both views"):
        match_pair(bare, view1, H_0TO1)


def test_offsets_of_visible_keypoints_by_hand():
    """A shift by 10: the keypoint at 315 leaves the view, the others land 0 and 2.5 px off."""
    shift = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1.0]])
    scores = np.ones(3, np.float32)
    view0 = Features(SIZE, np.array([[0, 0], [315, 5], [50, 50]], np.float32), scores)
    view1 = Features(SIZE, np.array([[10, 0], [62, 51.5], [200, 9]], np.float32), scores)
    np.testing.assert_allclose(visible_offsets(view0, view1, shift), [0, np.nan, 2.5])
