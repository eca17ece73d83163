import numpy as np
import pytest
import references
import torch

from hfnet_distill.data.keypoints import (
    KeypointChoice,
    refine_keypoints,
    sum_scores,
    thin_keypoints,
)

PLAIN = {"threshold": 0.0, "nms_radius": 4, "border": 4, "max_num_keypoints": None}


def find(score_map, **settings):
    """Of one score map, in NumPy."""
    choice = KeypointChoice(**PLAIN | settings)
    ((keypoints, scores),) = choice(torch.from_numpy(score_map)[None])
    return keypoints.numpy(), scores.numpy()


def check_reference(vectors, name):
    """HF-Net's export: border of 4, suppression within 4, the best 300."""
    height, width = vectors[f"{name}/image_hw"].tolist()
    points = vectors[f"{name}/raw_keypoints_xy"].astype(np.int64)
    scores, inside = vectors[f"{name}/raw_scores"], vectors[f"{name}/border_mask"]
    kept = references.suppress_non_maxima(points[inside], scores[inside], (width, height), 4)
    np.testing.assert_array_equal(kept, vectors[f"{name}/nms_keep"])

    score_map = np.zeros((height, width), np.float32)
    score_map[points[:, 1], points[:, 0]] = scores
    keypoints, best = find(score_map, threshold=0.005, max_num_keypoints=300)
    np.testing.assert_array_equal(keypoints, vectors[f"{name}/final_keypoints_xy"])
    np.testing.assert_array_equal(best, vectors[f"{name}/final_scores"])
    choice = KeypointChoice(0.005, 4, 4, 300)
    kept = thin_keypoints(points, scores, (width, height), choice)
    np.testing.assert_array_equal(points[kept], vectors[f"{name}/final_keypoints_xy"])


def test_excerpt(excerpt):
    check_reference(dict(excerpt("metrics_nms")), "v_dogman_1")


@pytest.mark.parametrize("name", ["v_dogman_1", "ox_wall_3"])
def test_full_reference(golden, name):
    check_reference(dict(golden("metrics_nms")), name)


@pytest.mark.parametrize("levels", [3, 30, 10**6])
def test_equal_to_the_greedy_rule_also_on_plateaus(levels):
    rng = np.random.default_rng(levels)
    for _ in range(40):
        height, width = rng.integers(1, 50, 2)
        score_map = (rng.integers(0, levels, (height, width)) / levels).astype(np.float32)
        settings = {
            "threshold": float(rng.choice([0, 0.3])),
            "nms_radius": int(rng.integers(0, 6)),
            "border": int(rng.integers(0, 5)),
            "max_num_keypoints": rng.choice([None, 1, 5, 50]),
        }
        keypoints, scores = find(score_map, **settings)
        want_keypoints, want_scores = references.find_keypoints(score_map, **settings)
        np.testing.assert_array_equal(keypoints, want_keypoints)
        np.testing.assert_array_equal(scores, want_scores)


def test_a_batch_is_its_images():
    score_maps = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    score_maps[1] /= 1000  # the best of one image are no measure for another
    choice = KeypointChoice(**{**PLAIN, "max_num_keypoints": 7})
    found = choice(score_maps)
    for row, (keypoints, scores) in enumerate(found):
        ((want_keypoints, want_scores),) = choice(score_maps[row : row + 1])
        assert torch.equal(keypoints, want_keypoints)
        assert torch.equal(scores, want_scores)


def test_square_window_by_hand():
    # Of the chain 0-1-2-3, each within reach of the next only, the best removes its neighbor,
    # which then removes none; the diagonal neighbor of 3 is in its square, not in its circle.
    points = np.array([[10, 5], [14, 5], [18, 5], [23, 5], [27, 9]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)

    def thin(radius, limit=None):
        choice = KeypointChoice(0, radius, 0, limit)
        return thin_keypoints(points, scores, (30, 12), choice).tolist()

    assert thin(4) == [0, 2, 3]
    assert thin(3) == [0, 1, 2, 3, 4]
    assert thin(4, limit=2) == [0, 2]


def test_order_is_by_score_then_row_by_row():
    points = np.array([[0, 0], [29, 0], [0, 11], [29, 11], [29, 10]])
    scores = np.array([1, 3, 1, 3, 3], np.float32)
    assert thin_keypoints(points, scores, (30, 12), KeypointChoice(0, 2, 0, None)).tolist() == [
        *(1, 4, 0, 2)
    ]


def test_of_keypoints_on_one_pixel_the_best_stays():
    points = np.array([[5.4, 5], [4.6, 5], [5, 5], [30, 5], [-1, 2]])  # two are outside
    scores = np.array([1, 2, 2, 9, 9], np.float32)
    assert thin_keypoints(points, scores, (30, 12), KeypointChoice(0, 0, 0, None)).tolist() == [1]


def test_no_keypoints():
    empty = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    assert thin_keypoints(*empty, (8, 8), KeypointChoice(0, 4, 0, 5)).shape == (0,)
    for shape in ((16, 16), (6, 20)):  # nothing above the threshold; nothing but border
        keypoints, scores = find(np.zeros(shape, np.float32), max_num_keypoints=5)
        assert keypoints.shape == (0, 2)
        assert keypoints.dtype == scores.dtype == np.float32


def test_a_keypoint_moves_to_the_center_of_gravity():
    score_map = torch.zeros(20, 30)
    score_map[7, 9:12] = torch.tensor([0.25, 0.5, 0.75])  # half a pixel's weight too much
    score_map[0, 0] = 1  # in a corner
    points = torch.tensor([[10.0, 7], [0, 0], [25, 15]])  # the last: no score at all
    refined = refine_keypoints(score_map, points, 2)
    np.testing.assert_allclose(refined, [[10 + 0.5 / 1.5, 7], [0, 0], [25, 15]], atol=1e-6)


def test_ranked_by_what_a_few_pixels_hold_together():
    score_map = torch.zeros(1, 20, 30)
    score_map[0, 10, 5] = 0.6  # the highest pixel
    score_map[0, 10, 15:17] = torch.tensor([0.5, 0.45])
    assert sum_scores(score_map, 1)[0, 10, 15] == pytest.approx(0.95)
    ((keypoints, scores),) = KeypointChoice(0, 4, 0, 2, rank_radius=1, refine_radius=2)(score_map)
    assert scores.tolist() == pytest.approx([0.95, 0.6])
    assert keypoints[0].tolist() == pytest.approx([15 + 0.45 / 0.95, 10], abs=1e-5)
