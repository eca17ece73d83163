"""The six numbers against HF-Net's own, and against numbers worked out by hand.

HF-Net calls image k of a sequence 1 and image 1 of it 2; here they are view 1 and view 0.
"""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from hfnet_distill.data.features import Features
from hfnet_distill.evaluation.intervals import Statistics
from hfnet_distill.evaluation.tasks.hfnet import HFNet, score_pair
from hfnet_distill.evaluation.tasks.homography import find_homography

FULL = ["superpoint", "sift", "orb"]


def summarize(pairs):
    """The six numbers of pairs, each a sequence of its own."""
    groups = list(range(len(pairs)))
    return Statistics(groups, HFNet.pair_statistics(groups, pairs)).values()


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
            np.testing.assert_array_equal(view.indices, recorded["matches"][:, 1])
            np.testing.assert_allclose(view.ratios, recorded["dist"], rtol=0, atol=1e-6)
            np.testing.assert_array_equal(view.visible, recorded["vis"])
            np.testing.assert_array_equal(view.repeated, recorded["correct"])
            error = view.offsets[view.visible & view.repeated].mean()
            assert error == pytest.approx(recorded["loc_error"], abs=1e-6)
        view = pair.view1
        np.testing.assert_array_equal(view.errors[view.visible] < 3, vectors[f"ref/pair{i:02d}/tp"])
        assert (view.offsets[view.visible] < 3).sum() == vectors["ref/num_gt"][i]
        assert summarize([pair])["matching_score"] == pytest.approx(
            vectors["ref/matching_score"][i], abs=1e-6
        )
        assert summarize([pair])["repeatability"] == pytest.approx(
            vectors["ref/repeatability"][i], abs=1e-6
        )
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
    assert pair.view0.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert (pair.view0.errors < 3).tolist() == [True, True, True, True, True, False]
    assert pair.view0.offsets == pytest.approx([0, 1, 0, 0, 0, 5])
    assert pair.view1.offsets == pytest.approx([0, 1, 0, 0, 0, 5])
    numbers = summarize([pair])
    assert numbers["matching_score"] == pytest.approx(5 / 6)
    assert numbers["repeatability"] == pytest.approx(10 / 12)
    assert numbers["localization_error"] == pytest.approx((0 + 1 + 0 + 0 + 0) / 5)
    assert numbers["homography_accuracy"] == 1
    # Five right answers, then a wrong one; the curve's first point is left out: 4 of 5.
    assert numbers["descriptor_ap"] == pytest.approx(4 / 5)
    # Ten right answers, then two wrong ones; twelve relevant; the first is left out.
    assert numbers["detector_ap"] == pytest.approx(9 / 12)


def test_descriptor_ap_with_the_outlier_first():
    # Precision 0, 1/2, 2/3, 3/4, 4/5, 5/6; its maximum from the right is 5/6 everywhere.
    assert summarize([square_and_outlier(outlier_first=True)])["descriptor_ap"] == pytest.approx(
        5 / 6
    )


def test_keypoint_that_leaves_the_other_image_is_not_counted():
    pair = square_and_outlier()
    shifted = score_pair(
        features_at([[10, 10], [95, 10]]),
        features_at([[30, 30], [50, 50]]),
        np.array([[1, 0, 20], [0, 1, 20], [0, 0, 1.0]]),
    )
    assert shifted.view0.visible.tolist() == [True, False]
    assert shifted.view1.visible.tolist() == [True, True]
    assert summarize([shifted])["matching_score"] == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert summarize([pair, shifted])["repeatability"] == pytest.approx((10 / 12 + 2 / 3) / 2)
    assert shifted.corner_error == math.inf
    assert summarize([pair, shifted])["homography_accuracy"] == 1 / 2


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
