"""Relative poses: how well matches give the motion of a calibrated camera back.

The motion is estimated by PoseLib (LO-RANSAC) from the matches of the pair, with an epipolar
threshold of 1 pixel of the resized views and a fixed seed. A pair's error is the larger one of two
angles: between the rotations, and between the directions of translation, the latter up to the
sign; infinity without an estimate. AUC@t is the exact area under the share of pairs with an error
up to t degrees, divided by t. Both as of SuperGlue (Sarlin et al., CVPR 2020) and LightGlue.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import poselib

from ...data.features import Features
from ...data.geometry import resize_matrix
from ..datasets.base import Camera, PoseDataset, PosePair, rotation_angle, to_4x4
from ..features import ImageFeatures
from ..intervals import Statistic, auc_statistic, mean_statistic, median_statistic
from ..matching import NEAREST, Matcher
from ..report.tables import Column
from . import register_task
from .base import PairTask, Picture

__all__ = [
    "RelativePose",
    "ScoredPose",
    "epipolar_distances",
    "estimate_pose",
    "pose_error",
    "score_pose",
]

EPIPOLAR_THRESHOLD = 1.0
THRESHOLDS = (5, 10, 20)
"""In degrees, of AUC."""
CORRECT_WITHIN = 3.0
"""In pixels, of epipolar distances; for pictures alone."""


class ScoredPose(NamedTuple):
    """The ``pose_error`` of a pair, its matches (K, 2) and their ``epipolar_distances`` (K,)."""

    error: float
    matches: np.ndarray
    distances: np.ndarray


def score_pose(
    features0: Features,
    features1: Features,
    T_0to1: np.ndarray,
    camera0: Camera,
    camera1: Camera,
    matcher: Matcher = NEAREST,
) -> ScoredPose:
    """Match two views and estimate the motion between them; ``T_0to1`` (4, 4) is the true one, and
    the cameras are those at the size of the views.

    Raises:
        InputError: a view without descriptors.
    """
    matches = matcher(features0, features1)
    points0 = _undistort(features0.keypoints[matches[:, 0]], camera0)
    points1 = _undistort(features1.keypoints[matches[:, 1]], camera1)
    estimated = estimate_pose(points0, points1, camera0.K, camera1.K)
    distances = epipolar_distances(points0, points1, T_0to1, camera0.K, camera1.K)
    return ScoredPose(pose_error(estimated, T_0to1), matches, distances)


def _undistort(points: np.ndarray, camera: Camera) -> np.ndarray:
    points = points.astype(np.float64)
    if not camera.distortion.any() or not len(points):
        return points
    return cv2.undistortPoints(points, camera.K, camera.distortion, P=camera.K).reshape(-1, 2)


def estimate_pose(
    points0: np.ndarray, points1: np.ndarray, K0: np.ndarray, K1: np.ndarray
) -> np.ndarray | None:
    """The motion of a camera between two views, its translation of unit length.

    Args:
        points0, points1: (K, 2) float64, matched pixels of the two views without distortion.
        K0, K1: (3, 3) float64, directions to these pixels.

    Returns:
        T_0to1 (4, 4) float64, or None where fewer than 5 matches support one.
    """
    if len(points0) < 5:
        return None
    pose, info = poselib.estimate_relative_pose(
        points0,
        points1,
        *({"model": "PINHOLE", "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]} for K in (K0, K1)),
        {"max_epipolar_error": EPIPOLAR_THRESHOLD, "seed": 0},
    )
    return to_4x4(pose.R, pose.t) if info["num_inliers"] >= 5 else None


def epipolar_distances(
    points0: np.ndarray, points1: np.ndarray, T_0to1: np.ndarray, K0: np.ndarray, K1: np.ndarray
) -> np.ndarray:
    """Pixels (K,) float64 from matches to their epipolar lines under a motion, the larger one of
    both views; other arguments as of ``estimate_pose``."""
    E = np.cross(np.eye(3), T_0to1[:3, 3]) @ T_0to1[:3, :3]
    F = np.linalg.inv(K1).T @ E @ np.linalg.inv(K0)
    x0, x1 = (np.column_stack([points, np.ones(len(points))]) for points in (points0, points1))
    lines0, lines1 = x1 @ F, x0 @ F.T
    misses = np.abs((x1 * lines1).sum(1))
    slopes = [np.linalg.norm(lines[:, :2], axis=1) for lines in (lines0, lines1)]
    return misses / np.maximum(np.minimum(*slopes), 1e-12)


def pose_error(T_0to1_estimated: np.ndarray | None, T_0to1: np.ndarray) -> float:
    """Degrees between two motions (4, 4): the larger one of rotation and direction of translation.

    The direction counts up to its sign; infinity where there is no estimate.
    """
    if T_0to1_estimated is None:
        return math.inf
    R, t = T_0to1_estimated[:3, :3], T_0to1_estimated[:3, 3]
    turn = float(rotation_angle(R.T @ T_0to1[:3, :3]))
    along, across = abs(t @ T_0to1[:3, 3]), np.linalg.norm(np.cross(t, T_0to1[:3, 3]))
    return max(turn, math.degrees(math.atan2(across, along)))


@register_task("relative_pose")
class RelativePose(PairTask):
    """The area under the recall of pose errors, and their median."""

    dataset_type = PoseDataset
    takes_matcher = True
    columns = (
        *(Column(f"AUC@{t}°", f"auc@{t}") for t in THRESHOLDS),
        Column("median", "median_error_deg", less_is_better=True, digits=2),
        Column("matches", "mean_matches", is_ranked=False, digits=0),
    )
    legend = (
        'View 0 on the left. <span class="correct">Green</span>: matches within 3 px of their '
        'epipolar lines under the true motion. <span class="wrong">Red</span>: others. '
        '<span class="plain">Yellow</span>: not matched. The pairs are those that the first model '
        "matched best and worst, at most two of a sequence."
    )
    score_pair = staticmethod(score_pose)

    @property
    def about(self) -> str:
        return (
            f"{self.matcher.finds}, PoseLib at 1 px; AUC of the larger angle of rotation and "
            "translation, its median in degrees (less is better), and the matches of a pair"
        )

    def truth(self, pair: PosePair, *views: ImageFeatures) -> tuple[np.ndarray, Camera, Camera]:
        """The motion, and the camera at the size of each view."""
        camera = self.dataset.cameras[pair.sequence]
        scales = (resize_matrix(view.file_size, view.features.image_size) for view in views)
        return pair.T_0to1, *(Camera(scale @ camera.K, camera.distortion) for scale in scales)

    @staticmethod
    def pair_statistics(groups, scores: Sequence[ScoredPose]) -> dict[str, Statistic]:
        errors = [score.error for score in scores]
        matches = [len(score.matches) for score in scores]
        return {
            **{f"auc@{t}": auc_statistic(groups, errors, t) for t in THRESHOLDS},
            "median_error_deg": median_statistic(groups, errors),
            "mean_matches": mean_statistic(groups, matches),
        }

    def picture(self, score: ScoredPose) -> Picture:
        correct = score.distances <= CORRECT_WITHIN
        caption = (
            f"{correct.sum()} of {len(correct)} matches near their epipolar lines, pose off by "
            f"{score.error:.1f} degrees"
        )
        return Picture(score.matches, correct, caption)
