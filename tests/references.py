"""Slow and plain versions of what the package does fast, to compare with."""

import numpy as np


def suppress_non_maxima(keypoints, scores, size, radius, *, limit=None):
    """The rows that greedy non-maximum suppression keeps, by descending score.

    From the highest score to the lowest, as given where scores are equal, a keypoint that still
    stands removes all others in the square of ``2 * radius + 1`` pixels around it.
    """
    pixels = np.rint(keypoints).astype(int).reshape(-1, 2)
    free = np.ones((size[1], size[0]), bool)
    kept = []
    for row in np.argsort(-scores, kind="stable"):
        x, y = pixels[row]
        if free[y, x]:
            free[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = False
            kept.append(row)
    return np.array(kept[:limit], int)


def find_keypoints(score_map, *, threshold, nms_radius, border, max_num_keypoints):
    """What ``data.keypoints.KeypointChoice`` finds of one score map (H, W)."""
    height, width = score_map.shape
    inside = np.zeros((height, width), bool)
    inside[border : max(height - border, 0), border : max(width - border, 0)] = True
    y, x = np.nonzero(inside & (score_map > threshold))
    points, scores = np.stack([x, y], 1), score_map[y, x]
    kept = suppress_non_maxima(points, scores, (width, height), nms_radius, limit=max_num_keypoints)
    return points[kept], scores[kept]
