"""The judge against HF-Net's own numbers, and against numbers worked out by hand.

HF-Net calls image k of a sequence 1 and image 1 of it 2; here they are view 1 and view 0.
"""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from hfnet_distill.data.features import Features
from hfnet_distill.evaluation.metrics import (
    descriptor_ap,
    detector_ap,
    homography_accuracy,
    localization_error,
    match_descriptors,
    matching_score,
    repeatability,
    score_pair,
    score_scenes,
    summarize,
)
from hfnet_distill.evaluation.ransac import find_homography

FULL = ["superpoint", "sift", "orb"]


def features_of(vectors, name):
    row = list(vectors["image_names"]).index(name)
    if "descriptors" in vectors:
        descriptors = vectors["descriptors"][row].astype(np.float32)
    else:
        descriptors = np.unpackbits(vectors["descriptors_packed_u8"][row], axis=-1).astype(bool)
    height, width = vectors["image_sizes_hw"][row].tolist()
    keypoints, scores = vectors["keypoints"][row], vectors["scores"][row]
    return Features((width, height), keypoints, scores, descriptors)


def score_recorded_pairs(vectors):
    views = zip(vectors["pair_image2"], vectors["pair_image1"], strict=True)
    return [
        score_pair(features_of(vectors, name0), features_of(vectors, name1), H_0to1)
        for (name0, name1), H_0to1 in zip(views, vectors["pair_homography_2to1"], strict=True)
    ]


def check_pairs(pairs, vectors):
    for i, pair in enumerate(pairs):
        for view, number in ((pair.view1, 1), (pair.view0, 2)):
            recorded = {
                key: vectors[f"ref/{key}{number}"][i]
                for key in ("matches", "dist", "vis", "correct", "loc_error")
            }
            np.testing.assert_array_equal(view.matches.indices, recorded["matches"][:, 1])
            np.testing.assert_allclose(view.matches.ratios, recorded["dist"], rtol=0, atol=1e-6)
            np.testing.assert_array_equal(view.visible, recorded["vis"])
            np.testing.assert_array_equal(view.repeated, recorded["correct"])
            error = view.offsets[view.visible & view.repeated].mean()
            assert error == pytest.approx(recorded["loc_error"], abs=1e-6)
        view = pair.view1
        np.testing.assert_array_equal(
            view.matches.correct[view.visible], vectors[f"ref/pair{i:02d}/tp"]
        )
        assert (view.offsets[view.visible] < 3).sum() == vectors["ref/num_gt"][i]
        assert matching_score([pair]) == pytest.approx(vectors["ref/matching_score"][i], abs=1e-6)
        assert repeatability([pair]) == pytest.approx(vectors["ref/repeatability"][i], abs=1e-6)
        error_H = vectors["ref/error_H"][i]
        assert (pair.corner_error < 3) == (error_H < 3)
        if error_H < 50:
            assert pair.corner_error == pytest.approx(error_H, abs=5e-3)


@pytest.mark.parametrize("name", ["superpoint", "orb"])
def test_pairs_of_the_excerpt(excerpt, name):
    vectors = dict(excerpt(f"metrics_{name}"))
    check_pairs(score_recorded_pairs(vectors), vectors)


def check_edge(vectors, ap_tolerance):
    """Three pairs, of which one has a view without keypoints.

    The recorded average precision broke ties in whatever order NumPy's unstable sort left them: up
    to 7e-4 is possible for SIFT and ORB, whose scores or ratios repeat, and nothing for SuperPoint.
    """
    pairs = []
    for names in vectors["ref/edge/pairs"]:
        name1, name0 = names.split("|")
        row = (vectors["pair_image1"] == name1).argmax()
        features1 = features_of(vectors, name1)
        if name1 == vectors["ref/edge/emptied_image"]:
            features1 = replace(
                features1,
                keypoints=features1.keypoints[:0],
                scores=features1.scores[:0],
                descriptors=features1.descriptors[:0],
            )
        pairs.append(
            score_pair(features_of(vectors, name0), features1, vectors["pair_homography_2to1"][row])
        )
    numbers = summarize(pairs)
    for key, recorded, tolerance in (
        ("matching_score", "desc/matching_score", 1e-6),
        ("homography_accuracy", "desc/pose_correctness", 1e-6),
        ("localization_error", "det/localization_error", 1e-6),
        ("repeatability", "det/repeatability", 1e-6),
        ("descriptor_ap", "desc/mAP", ap_tolerance),
        ("detector_ap", "det/mAP", ap_tolerance),
    ):
        assert numbers[key] == pytest.approx(vectors[f"ref/edge/{recorded}"], abs=tolerance), key


def test_empty_view_of_the_excerpt(excerpt):
    check_edge(dict(excerpt("metrics_orb")), ap_tolerance=7e-4)


@pytest.mark.parametrize("name", FULL)
def test_full_reference(golden, name):
    vectors = dict(golden(f"metrics_{name}"))
    pairs = score_recorded_pairs(vectors)
    check_pairs(pairs, vectors)
    check_edge(vectors, ap_tolerance=1e-6 if name == "superpoint" else 7e-4)
    expected = {
        "matching_score": "desc/matching_score",
        "homography_accuracy": "desc/pose_correctness",
        "descriptor_ap": "desc/mAP_stable_sort",
        "localization_error": "det/localization_error",
        "repeatability": "det/repeatability",
        "detector_ap": "det/mAP_stable_sort",
    }
    recorded = {key: float(vectors[f"ref/agg/{value}"]) for key, value in expected.items()}
    assert summarize(pairs) == pytest.approx(recorded, abs=1e-6)


@pytest.mark.parametrize("name", FULL)
def test_homographies_are_opencvs(golden, name):
    vectors = dict(golden(f"metrics_{name}"))
    for i, (name0, name1) in enumerate(
        zip(vectors["pair_image2"], vectors["pair_image1"], strict=True)
    ):
        rows0 = vectors["ref/matches1"][i][:, 1]
        points0 = features_of(vectors, name0).keypoints[rows0]
        points1 = features_of(vectors, name1).keypoints
        expected, _ = cv2.findHomography(points0, points1, cv2.RANSAC, 3.0)
        np.testing.assert_array_equal(find_homography(points0, points1), expected)


def square_and_outlier(outlier_first=False):
    """Six keypoints moved by (20, 20): the second lands 1 px off, the last 5 px off."""
    keypoints0 = np.array([[0, 0], [75, 0], [75, 75], [0, 75], [40, 40], [20, 60]], np.float32)
    keypoints1 = keypoints0 + 20
    keypoints1[1, 0] += 1
    keypoints1[5, 0] += 5
    scores = np.array([6, 5, 4, 3, 2, 1], np.float32)
    descriptors0 = np.eye(6, 7, dtype=np.float32)
    descriptors1 = descriptors0.copy()
    # Turning descriptors away makes their ratio worse: the outlier's, or all but the outlier's.
    turned = slice(0, 5) if outlier_first else slice(5, 6)
    descriptors1[turned] *= 0.8
    descriptors1[turned, 6] = 0.6
    H_0to1 = np.array([[1, 0, 20], [0, 1, 20], [0, 0, 1.0]])
    size = (100, 100)
    return score_pair(
        Features(size, keypoints0, scores, descriptors0),
        Features(size, keypoints1, scores, descriptors1),
        H_0to1,
    )


def test_numbers_by_hand():
    pair = square_and_outlier()
    assert pair.view0.matches.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert pair.view0.matches.correct.tolist() == [True, True, True, True, True, False]
    assert pair.view0.offsets == pytest.approx([0, 1, 0, 0, 0, 5])
    assert pair.view1.offsets == pytest.approx([0, 1, 0, 0, 0, 5])
    assert matching_score([pair]) == pytest.approx(5 / 6)
    assert repeatability([pair]) == pytest.approx(10 / 12)
    assert localization_error([pair]) == pytest.approx((0 + 1 + 0 + 0 + 0) / 5)
    assert homography_accuracy([pair]) == 1
    # Five right answers, then a wrong one; the curve's first point is left out: 4 of 5.
    assert descriptor_ap([pair]) == pytest.approx(4 / 5)
    # Ten right answers, then two wrong ones; twelve relevant; the first is left out.
    assert detector_ap([pair]) == pytest.approx(9 / 12)


def test_descriptor_ap_with_the_outlier_first():
    # Precision 0, 1/2, 2/3, 3/4, 4/5, 5/6; its maximum from the right is 5/6 everywhere.
    assert descriptor_ap([square_and_outlier(outlier_first=True)]) == pytest.approx(5 / 6)


def test_keypoint_that_leaves_the_other_image_is_not_counted():
    pair = square_and_outlier()
    shifted = score_pair(
        features_at([[10, 10], [95, 10]]),
        features_at([[30, 30], [50, 50]]),
        np.array([[1, 0, 20], [0, 1, 20], [0, 0, 1.0]]),
    )
    assert shifted.view0.visible.tolist() == [True, False]
    assert shifted.view1.visible.tolist() == [True, True]
    assert matching_score([shifted]) == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert repeatability([pair, shifted]) == pytest.approx((10 / 12 + 2 / 3) / 2)
    assert shifted.H_0to1_estimated is None
    assert shifted.corner_error == math.inf
    assert homography_accuracy([pair, shifted]) == 1 / 2


def features_at(keypoints, descriptors=True):
    n = len(keypoints)
    return Features(
        (100, 100),
        np.array(keypoints, np.float32).reshape(n, 2),
        np.arange(n, 0, -1).astype(np.float32),
        np.eye(n, 4, dtype=np.float32) if descriptors else None,
    )


def test_pair_without_keypoints_counts_for_repeatability_only():
    full, empty = (
        square_and_outlier(),
        score_pair(features_at([[1, 1]]), features_at([]), np.eye(3)),
    )
    alone, both = summarize([full]), summarize([full, empty])
    assert both.pop("repeatability") == alone.pop("repeatability") / 2
    assert both == alone


def test_detector_without_descriptors():
    features = features_at([[10, 10], [50, 50], [20, 70], [80, 30]], descriptors=False)
    numbers = summarize([score_pair(features, features, np.eye(3))])
    assert numbers["repeatability"] == 1
    assert numbers["localization_error"] == 0
    for name in ("matching_score", "homography_accuracy", "descriptor_ap"):
        assert math.isnan(numbers[name])


def test_descriptors_in_one_view_only_are_refused():
    with pytest.raises(ValueError, match="only one of the two views has descriptors"):
        score_pair(features_at([[1, 1]]), features_at([[1, 1]], descriptors=False), np.eye(3))


def test_nothing_to_score():
    assert all(math.isnan(number) for number in summarize([]).values())


def test_equal_descriptors_match_the_first_with_ratio_one():
    descriptors = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    twins = np.repeat(descriptors / np.linalg.norm(descriptors), 37, axis=0)
    (indices, ratios), _ = match_descriptors(twins[:5], twins)
    assert indices.tolist() == [0] * 5
    assert ratios.tolist() == [1] * 5


def test_a_single_candidate_has_no_ratio():
    (indices, ratios), _ = match_descriptors(
        np.eye(3, dtype=np.float32), np.ones((1, 3), np.float32)
    )
    assert indices.tolist() == [0, 0, 0]
    assert ratios.tolist() == [1, 1, 1]


def test_binary_descriptors_use_hamming_distance():
    rows0 = np.array([[1, 1, 1, 1, 0, 0]], bool)
    rows1 = np.array([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0]], bool)
    (indices, ratios), _ = match_descriptors(rows0, rows1)
    assert indices.tolist() == [1]
    assert ratios == pytest.approx([2 / 3])


@pytest.mark.parametrize(
    ("rows0", "rows1"),
    [
        (np.ones((2, 4), np.float32), np.ones((2, 5), np.float32)),
        (np.ones((2, 4), np.float32), np.ones((2, 4), bool)),
    ],
)
def test_unlike_descriptors_are_refused(rows0, rows1):
    with pytest.raises(ValueError, match="extract both views alike"):
        match_descriptors(rows0, rows1)


def test_scenes_in_workers_are_those_in_this_process(excerpt):
    vectors = dict(excerpt("metrics_orb"))
    names = [vectors["pair_image2"][0], vectors["pair_image1"][0]]
    pair = (*(features_of(vectors, n) for n in names), vectors["pair_homography_2to1"][0])
    scenes = [[pair] * (number % 2 + 1) for number in range(8)]
    found = [list(score_scenes(scenes, workers)) for workers in (1, 3)]
    assert [len(scene) for scene in found[1]] == [len(scene) for scene in scenes]
    assert [summarize(scene) for scene in found[0]] == [summarize(scene) for scene in found[1]]
