import numpy as np
import pytest

from hfnet_distill.data.keypoints import refine_keypoints, select_keypoints, suppress_non_maxima


def check_reference(vectors, name):
    """HF-Net's export: border of 4, suppression within 4, the best 300."""
    height, width = vectors[f"{name}/image_hw"].tolist()
    points = vectors[f"{name}/raw_keypoints_xy"].astype(np.int64)
    scores, inside = vectors[f"{name}/raw_scores"], vectors[f"{name}/border_mask"]
    kept = suppress_non_maxima(points[inside], scores[inside], (width, height), 4)
    np.testing.assert_array_equal(kept, vectors[f"{name}/nms_keep"])

    score_map = np.zeros((height, width), np.float32)
    score_map[points[:, 1], points[:, 0]] = scores
    keypoints, best = select_keypoints(
        score_map, threshold=0.005, nms_radius=4, border=4, max_num_keypoints=300
    )
    np.testing.assert_array_equal(keypoints, vectors[f"{name}/final_keypoints_xy"])
    np.testing.assert_array_equal(best, vectors[f"{name}/final_scores"])


def test_excerpt(excerpt):
    check_reference(dict(excerpt("metrics_nms")), "v_dogman_1")


@pytest.mark.parametrize("name", ["v_dogman_1", "ox_wall_3"])
def test_full_reference(golden, name):
    check_reference(dict(golden("metrics_nms")), name)


def test_square_window_by_hand():
    # Of the chain 0-1-2-3, each within reach of the next only, the best removes its neighbour,
    # which then removes none; the diagonal neighbour of 3 is in its square, not in its circle.
    points = np.array([[10, 5], [14, 5], [18, 5], [23, 5], [27, 9]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    assert suppress_non_maxima(points, scores, (30, 12), 4).tolist() == [0, 2, 3]
    assert suppress_non_maxima(points, scores, (30, 12), 3).tolist() == [0, 1, 2, 3, 4]
    assert suppress_non_maxima(points, scores, (30, 12), 4, limit=2).tolist() == [0, 2]


def test_order_is_by_score_then_as_given():
    points = np.array([[0, 0], [29, 0], [0, 11], [29, 11], [29, 10]])
    scores = np.array([1, 3, 1, 3, 3])
    assert suppress_non_maxima(points, scores, (30, 12), 2).tolist() == [1, 3, 0, 2]


def test_no_keypoints():
    kept = suppress_non_maxima(np.empty((0, 2), np.float32), np.empty(0, np.float32), (8, 8), 4)
    assert kept.shape == (0,)
    for shape in ((16, 16), (6, 20)):  # nothing above the threshold; nothing but border
        keypoints, scores = select_keypoints(
            np.zeros(shape, np.float32), threshold=0, nms_radius=4, border=4, max_num_keypoints=5
        )
        assert keypoints.shape == (0, 2)
        assert keypoints.dtype == scores.dtype == np.float32


def test_keypoint_outside_the_image_is_refused():
    with pytest.raises(ValueError, match=r"\[30, 2\] lies outside the image of 30x12"):
        suppress_non_maxima(np.array([[3, 3], [30, 2]]), np.ones(2), (30, 12), 4)


def test_selected_keypoints_read_their_scores_from_the_map():
    score_map = np.random.default_rng(1).random((40, 60), np.float32)
    keypoints, scores = select_keypoints(
        score_map, threshold=0.1, nms_radius=3, border=2, max_num_keypoints=None
    )
    x, y = keypoints.astype(int).T
    np.testing.assert_array_equal(score_map[y, x], scores)
    assert (np.diff(scores) <= 0).all()
    assert x.min() >= 2
    assert x.max() <= 57
    assert y.max() <= 37
    apart = np.abs(keypoints[:, None] - keypoints).max(-1) + 99 * np.eye(len(x))
    assert apart.min() > 3


def test_a_keypoint_moves_to_the_centre_of_gravity():
    score_map = np.zeros((20, 30), np.float32)
    score_map[7, 9:12] = [0.25, 0.5, 0.25]
    score_map[7, 9:12] += [0, 0, 0.5]  # a third of the weight lies one pixel to the right
    score_map[0, 0] = 1  # in a corner
    points = np.array([[10, 7], [0, 0], [25, 15]], np.float32)  # the last: no score at all
    refined = refine_keypoints(score_map, points, 2)
    np.testing.assert_allclose(refined, [[10 + 0.5 / 1.5, 7], [0, 0], [25, 15]], atol=1e-6)
