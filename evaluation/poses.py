"""Relative poses: how well matches give the motion of a calibrated camera back.

The motion is estimated by PoseLib (LO-RANSAC) from mutual nearest neighbours, with an epipolar
threshold of 1 pixel of the resized views and a fixed seed. A pair's error is the larger one of two
angles: between the rotations, and between the directions of translation, the latter up to the
sign; infinity without an estimate. AUC@t is the exact area under the share of pairs with an error
up to t degrees, divided by t. Both as of SuperGlue (Sarlin et al., CVPR 2020) and LightGlue.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import poselib

from ..data.features import Features
from ..data.geometry import resize_matrix
from .datasets.base import Camera, PoseDataset, PosePair
from .extractors import Extractor
from .homography import auc_statistic, error_auc
from .matching import match_mutual
from .motions import rotation_angle, to_4x4
from .statistics import Statistics, intervals
from .views import View, load_view

__all__ = [
    "JudgedPoses",
    "estimate_pose",
    "judge_poses",
    "pose_error",
    "pose_statistics",
    "summarize_poses",
]

EPIPOLAR_THRESHOLD = 1.0
THRESHOLDS = (5, 10, 20)
"""In degrees, of AUC."""


@dataclass(frozen=True)
class JudgedPoses:
    """What one model's matches gave for each pair.

    Attributes:
        pairs: those of the dataset.
        errors: (P,) float64, degrees; infinity without an estimate.
        matches: (P,) int64, mutual nearest neighbours.
    """

    pairs: list[PosePair]
    errors: np.ndarray
    matches: np.ndarray


def judge_poses(
    dataset: PoseDataset, extractor: Extractor, *, longest: int, advance: Callable[[], None]
) -> JudgedPoses:
    """Estimate the pose of every pair from one model's matches.

    A photograph's features stay in memory from its first pair to its last.

    Args:
        longest: pixels of the longest side that photographs are resized to; 0 leaves them.
        advance: called after each of ``dataset.images``.

    Raises:
        ValueError: the model gives no descriptors.
    """
    last_use = {n: row for row, pair in enumerate(dataset.pairs) for n in (pair.name0, pair.name1)}
    known: dict[str, tuple[Features, Camera]] = {}
    errors, counts = [], []
    for row, pair in enumerate(dataset.pairs):
        for name in (pair.name0, pair.name1):
            if name not in known:
                view = load_view(dataset.images[name], longest=longest, channels=extractor.channels)
                camera = _resize_camera(dataset.cameras[pair.sequence], view)
                known[name] = extractor.extract(view, name), camera
                advance()
        (features0, camera0), (features1, camera1) = known[pair.name0], known[pair.name1]
        if features0.descriptors is None or features1.descriptors is None:
            raise ValueError(f"{pair.name0}: the model gives no descriptors; poses need matches")
        matches = match_mutual(features0.descriptors, features1.descriptors)
        points0, points1 = features0.keypoints[matches[:, 0]], features1.keypoints[matches[:, 1]]
        T_0to1 = estimate_pose(points0, points1, camera0, camera1)
        errors.append(pose_error(T_0to1, pair.T_0to1))
        counts.append(len(matches))
        known = {name: value for name, value in known.items() if last_use[name] > row}
    return JudgedPoses(dataset.pairs, np.array(errors), np.array(counts))


def _resize_camera(camera: Camera, view: View) -> Camera:
    return Camera(resize_matrix(view.file_size, view.size) @ camera.K, camera.distortion)


def estimate_pose(
    points0: np.ndarray, points1: np.ndarray, camera0: Camera, camera1: Camera
) -> np.ndarray | None:
    """The motion of a camera between two views, its translation of unit length.

    Args:
        points0, points1: (K, 2) float, matched pixels of the two views.
        camera0, camera1: the cameras at the size of the views.

    Returns:
        T_0to1 (4, 4) float64, or None where fewer than 5 matches support one.
    """
    if len(points0) < 5:
        return None
    pose, info = poselib.estimate_relative_pose(
        _undistort(points0, camera0),
        _undistort(points1, camera1),
        _to_poselib(camera0),
        _to_poselib(camera1),
        {"max_epipolar_error": EPIPOLAR_THRESHOLD, "seed": 0},
    )
    return to_4x4(pose.R, pose.t) if info["num_inliers"] >= 5 else None


def _undistort(points: np.ndarray, camera: Camera) -> np.ndarray:
    points = points.astype(np.float64)
    if not camera.distortion.any():
        return points
    return cv2.undistortPoints(points, camera.K, camera.distortion, P=camera.K).reshape(-1, 2)


def _to_poselib(camera: Camera) -> dict:
    (fx, _, cx), (_, fy, cy), _ = camera.K.tolist()
    return {"model": "PINHOLE", "params": [fx, fy, cx, cy]}


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


def summarize_poses(model: str, judged: JudgedPoses) -> dict:
    """The model's row of the report."""
    return {
        "model": model,
        "split": "all",
        **{f"auc@{t}": error_auc(judged.errors, t) for t in THRESHOLDS},
        "median_error_deg": float(np.median(judged.errors)),
        "mean_matches": float(judged.matches.mean()),
        "intervals": intervals(pose_statistics(judged)),
    }


def pose_statistics(judged: JudgedPoses) -> Statistics:
    """Areas and median over the pairs of the drawn sequences."""
    names = list(dict.fromkeys(pair.sequence for pair in judged.pairs))
    sequences = np.array([names.index(pair.sequence) for pair in judged.pairs])
    by_sequence = [judged.errors[sequences == number] for number in range(len(names))]

    def median(weights: np.ndarray) -> float:
        return float(np.median(np.repeat(judged.errors, weights[sequences])))

    areas = {f"auc@{t}": auc_statistic(by_sequence, t) for t in THRESHOLDS}
    return Statistics(names, {**areas, "median_error_deg": median})
