"""The protocol ``matching``: mutual nearest neighbours and the homographies estimated from them.

For each pair of views the descriptors are matched, a match is kept where both choose each other,
and a homography is estimated by OpenCV's RANSAC, by MAGSAC (Barath et al., CVPR 2019) and by
PoseLib.

* The corner error is the mean distance, in pixels of the resized view 1, between the corners of
  view 0 under the estimated and under the true homography; infinity where there is no estimate.
* Accuracy@t is the share of pairs with a corner error below t pixels, AUC@t the area under that
  share as a function of the threshold from 0 to t, divided by t (Sarlin et al., CVPR 2020).
* Every estimator takes 3 pixels as its inlier threshold, a fixed seed and its own defaults beyond.
* Mean matching accuracy@t is the share of a pair's matches whose keypoint of view 1 lies at most t
  pixels from where the homography takes that of view 0, mean over pairs; a pair without a match
  counts 0 (Dusmanu et al., CVPR 2019).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import poselib

from data.geometry import warp_points
from data.records import Features
from evaluation.matching import match_mutual
from evaluation.metrics import corner_error
from evaluation.ransac import THRESHOLD, find_homography
from evaluation.statistics import bootstrap_interval, mean_statistic

__all__ = [
    "ESTIMATORS",
    "MatchedPair",
    "error_auc",
    "match_pair",
    "matching_intervals",
    "summarize_matching",
]

THRESHOLDS = (1, 3, 5)
"""In pixels, of the corner error."""
MATCH_THRESHOLDS = tuple(range(1, 11))
"""In pixels, of mean matching accuracy."""


@dataclass(frozen=True)
class MatchedPair:
    """What the numbers and the pictures need to know of one pair.

    Attributes:
        matches: (K, 2) intp, rows of view 0 and view 1.
        match_errors: (K,) float64, pixels between the match in view 1 and where it should be.
        corner_errors: estimator -> pixels; infinity without an estimate.
    """

    matches: np.ndarray
    match_errors: np.ndarray
    corner_errors: dict[str, float]


def match_pair(features0: Features, features1: Features, H_0to1: np.ndarray) -> MatchedPair:
    """Match the features of two views and estimate the homography between them.

    Args:
        features0, features1: both with descriptors of the same kind.
        H_0to1: (3, 3) float, pixels of ``features0.image_size`` to those of
            ``features1.image_size``.

    Raises:
        ValueError: a view without descriptors, or descriptors of another kind in each.
    """
    if features0.descriptors is None or features1.descriptors is None:
        raise ValueError("matching needs descriptors in both views; extract them, or use hfnet")
    matches = match_mutual(features0.descriptors, features1.descriptors)
    points0, points1 = features0.keypoints[matches[:, 0]], features1.keypoints[matches[:, 1]]
    misses = warp_points(points0, H_0to1) - points1
    estimates = {name: estimate(points0, points1) for name, estimate in ESTIMATORS.items()}
    return MatchedPair(
        matches,
        np.linalg.norm(misses, axis=1),
        {name: corner_error(H, H_0to1, features0.image_size) for name, H in estimates.items()},
    )


def summarize_matching(pairs: Sequence[MatchedPair]) -> dict:
    """``homography.ESTIMATOR.accuracy@Tpx`` and ``auc@Tpx``, ``mean_matching_accuracy.@Tpx``."""
    homography = {}
    for name in ESTIMATORS:
        errors = np.array([pair.corner_errors[name] for pair in pairs])
        homography[name] = {
            **{f"accuracy@{t}px": float((errors < t).mean()) for t in THRESHOLDS},
            **{f"auc@{t}px": error_auc(errors, t) for t in THRESHOLDS},
        }
    shares = [[_share_right(pair, t) for t in MATCH_THRESHOLDS] for pair in pairs]
    return {
        "homography": homography,
        "mean_matching_accuracy": {
            f"@{t}px": float(share)
            for t, share in zip(MATCH_THRESHOLDS, np.mean(shares, axis=0), strict=True)
        },
        "mean_matches": float(np.mean([len(pair.matches) for pair in pairs])),
    }


def matching_intervals(pairs: Sequence[tuple[str, MatchedPair]]) -> dict[str, tuple[float, float]]:
    """95 % intervals of the shares in ``summarize_matching``, by their keys with dots between.

    Args:
        pairs: (sequence, what is known of a pair).
    """
    values = {
        f"homography.{name}.accuracy@{t}px": lambda p, name=name, t=t: p.corner_errors[name] < t
        for name in ESTIMATORS
        for t in THRESHOLDS
    }
    values |= {
        f"mean_matching_accuracy.@{t}px": lambda p, t=t: _share_right(p, t)
        for t in MATCH_THRESHOLDS
    }
    sequences: dict[str, list[MatchedPair]] = {}
    for sequence, pair in pairs:
        sequences.setdefault(sequence, []).append(pair)
    return {
        key: bootstrap_interval(
            mean_statistic([[value(pair) for pair in group] for group in sequences.values()]),
            len(sequences),
        )
        for key, value in values.items()
    }


def _share_right(pair: MatchedPair, threshold: float) -> float:
    return float((pair.match_errors <= threshold).mean()) if len(pair.matches) else 0.0


def error_auc(errors: np.ndarray, threshold: float) -> float:
    """Area under the recall of ``errors`` (N,) from 0 to ``threshold``, divided by it; exact.

    The recall is the step function "share of errors at most t", joined by straight lines from
    (0, 0), as in SuperGlue's published evaluation.
    """
    errors = np.sort(np.asarray(errors, np.float64))
    recall = np.arange(1, len(errors) + 1) / max(len(errors), 1)
    last = int(np.searchsorted(errors, threshold))
    x = np.concatenate([[0.0], errors[:last], [threshold]])
    y = np.concatenate([[0.0], recall[:last], [recall[last - 1] if last else 0.0]])
    return float(np.trapezoid(y, x) / threshold)


def _magsac(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    if len(points0) < 4:
        return None
    return cv2.findHomography(points0, points1, cv2.USAC_MAGSAC, THRESHOLD)[0]


def _poselib(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    if len(points0) < 4:
        return None
    options = {"max_reproj_error": THRESHOLD, "seed": 0}
    H_0to1, info = poselib.estimate_homography(points0, points1, options, {})
    return H_0to1 if info["num_inliers"] >= 4 else None


ESTIMATORS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | None]] = {
    "ransac": find_homography,
    "magsac": _magsac,
    "poselib": _poselib,
}
"""name -> points of view 0 and view 1, (K, 2) each, to H_0to1 (3, 3) or None."""
