"""The protocols ``matching`` and ``silk``: mutual nearest neighbours, homographies from them.

For each pair of views the descriptors are matched, a match is kept where both choose each other,
and a homography is estimated by OpenCV's RANSAC, by MAGSAC (Barath et al., CVPR 2019) and by
PoseLib.

* The corner error is the mean distance, in pixels of the resized view 1, between the corners of
  view 0 under the estimated and under the true homography; infinity where there is no estimate.
* Accuracy@t is the share of pairs with a corner error below t pixels, AUC@t the area under that
  share as a function of the threshold from 0 to t, divided by t (Sarlin et al., CVPR 2020).
* Every estimator takes 3 pixels as its inlier threshold, a fixed seed and its own defaults beyond.
* Repeatability@t is the share of visible keypoints that have a keypoint of the other view at most t
  pixels from where the homography takes them, both views together, mean over pairs (DeTone et al.,
  CVPRW 2018).
* Mean matching accuracy@t is the share of a pair's matches whose keypoint of view 1 lies at most t
  pixels from where the homography takes that of view 0, mean over pairs; a pair without a match
  counts 0 (Dusmanu et al., CVPR 2019).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import poselib
from scipy.spatial import cKDTree

from ..data.features import Features
from ..data.geometry import warp_points
from .matching import match_mutual
from .metrics import are_inside, corner_error
from .ransac import THRESHOLD, find_homography
from .statistics import Statistic, Statistics, mean_statistic

__all__ = [
    "ESTIMATORS",
    "MatchedPair",
    "auc_statistic",
    "error_auc",
    "match_pair",
    "matching_statistics",
    "share_right",
    "summarize_matching",
    "visible_offsets",
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
        offsets: see ``visible_offsets``, of both views.
    """

    matches: np.ndarray
    match_errors: np.ndarray
    corner_errors: dict[str, float]
    offsets: np.ndarray


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
    offsets0, _ = visible_offsets(features0, features1, H_0to1)
    offsets1, _ = visible_offsets(features1, features0, np.linalg.inv(H_0to1))
    return MatchedPair(
        matches,
        np.linalg.norm(misses, axis=1),
        {name: corner_error(H, H_0to1, features0.image_size) for name, H in estimates.items()},
        np.concatenate([offsets0, offsets1]),
    )


def visible_offsets(
    features0: Features, features1: Features, H_0to1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far the keypoints of view 0 that view 1 sees are from its nearest keypoint.

    Returns:
        (V,) float64 pixels of view 1, infinity where it has no keypoint, and which rows of view 0
        are visible, (N,) bool.
    """
    warped = warp_points(features0.keypoints, H_0to1)
    visible = are_inside(warped, features1.image_size)
    if not len(features1.keypoints):
        return np.full(visible.sum(), np.inf), visible
    return cKDTree(features1.keypoints).query(warped[visible])[0], visible


def summarize_matching(pairs: Sequence[MatchedPair]) -> dict:
    """``homography.ESTIMATOR.accuracy@Tpx`` and ``auc@Tpx``, ``mean_matching_accuracy.@Tpx``,
    ``repeatability.@Tpx``, ``mean_matches``."""
    homography = {}
    for name in ESTIMATORS:
        errors = np.array([pair.corner_errors[name] for pair in pairs])
        homography[name] = {
            **{f"accuracy@{t}px": float((errors < t).mean()) for t in THRESHOLDS},
            **{f"auc@{t}px": error_auc(errors, t) for t in THRESHOLDS},
        }
    return {
        "homography": homography,
        "mean_matching_accuracy": {
            f"@{t}px": float(np.mean([share_right(pair.match_errors, t) for pair in pairs]))
            for t in MATCH_THRESHOLDS
        },
        "repeatability": {
            f"@{t}px": float(np.mean([share_right(pair.offsets, t) for pair in pairs]))
            for t in THRESHOLDS
        },
        "mean_matches": float(np.mean([len(pair.matches) for pair in pairs])),
    }


def matching_statistics(pairs: Sequence[tuple[str, MatchedPair]]) -> Statistics:
    """The shares and areas of ``summarize_matching``, by their keys with dots between.

    Args:
        pairs: (sequence, what is known of a pair).
    """
    groups: dict[str, list[MatchedPair]] = {}
    for sequence, pair in pairs:
        groups.setdefault(sequence, []).append(pair)
    statistics = {
        f"{name}.@{t}px": mean_statistic(
            [[share_right(getattr(pair, errors), t) for pair in group] for group in groups.values()]
        )
        for name, errors, thresholds in (
            ("mean_matching_accuracy", "match_errors", MATCH_THRESHOLDS),
            ("repeatability", "offsets", THRESHOLDS),
        )
        for t in thresholds
    }
    for name in ESTIMATORS:
        errors = [np.array([p.corner_errors[name] for p in group]) for group in groups.values()]
        for t in THRESHOLDS:
            key = f"homography.{name}"
            statistics[f"{key}.accuracy@{t}px"] = mean_statistic([e < t for e in errors])
            statistics[f"{key}.auc@{t}px"] = auc_statistic(errors, t)
    return Statistics(list(groups), statistics)


def share_right(errors: np.ndarray, threshold: float) -> float:
    """The share of errors (K,) of at most ``threshold``; 0 where there are none."""
    return float((errors <= threshold).mean()) if len(errors) else 0.0


def auc_statistic(errors_by_sequence: Sequence[np.ndarray], threshold: float) -> Statistic:
    """``error_auc`` of the drawn sequences.

    The area below the steps of the recall is a mean, that of an error e being 1 - e / threshold;
    the straight lines that join the steps add half a step as far as the last error.
    """
    below = [errors[errors < threshold] for errors in errors_by_sequence]
    areas = np.array([(1 - errors / threshold).sum() for errors in below])
    last = np.array([errors.max(initial=0) for errors in below])
    counts = np.array([len(errors) for errors in errors_by_sequence])

    def auc(weights: np.ndarray) -> float:
        joined = last[weights > 0].max(initial=0) / (2 * threshold)
        return (weights @ areas + joined) / (weights @ counts)

    return auc


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
