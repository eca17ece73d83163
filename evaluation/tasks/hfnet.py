"""The six numbers of HF-Net's evaluation of local features (Sarlin et al., CVPR 2019), on HPatches.

``score_pair`` compares the features of two views whose homography is known; each number is a
function of many such ``PairScores``. The arithmetic is that of HF-Net's published code, so that
results can be laid beside its tables:

* matches are nearest neighbors in both directions; the ratio of the two nearest distances removes
  no match, it only ranks matches for ``descriptor_ap``;
* a match is correct below 3 px, a keypoint is repeated up to and including 3 px;
* the homography and the precision-recall curve of descriptors use the matches of view 1's keypoints
  (in HPatches, view 0 is image 1 of a sequence and view 1 one of the others);
* the average precision leaves out the first point of its curve, and breaks ties by input order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from ...data.features import Features
from ...data.geometry import warp_points
from ...errors import InputError
from ..intervals import Statistic, average_precision_statistic, mean_statistic
from ..matching import match_both_ways
from ..report.tables import Column
from . import register_task
from .base import Picture
from .homography import THRESHOLD, HomographyTask, are_inside, corner_error, find_homography

__all__ = [
    "HFNet",
    "Matches",
    "PairScores",
    "ViewScores",
    "descriptor_ap",
    "detector_ap",
    "homography_accuracy",
    "localization_error",
    "matching_score",
    "repeatability",
    "score_pair",
]


@dataclass(frozen=True)
class Matches:
    """The nearest descriptor of the other view for each of N keypoints.

    Attributes:
        indices: (N,) intp, the row in the other view.
        ratios: (N,) float32, nearest over second nearest distance; 1 where the second is 0 or
            there is none.
        errors: (N,) float64, pixels from the match to where the homography takes the keypoint;
            infinity for a keypoint that is not visible in the other view.
    """

    indices: np.ndarray
    ratios: np.ndarray
    errors: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool, the keypoint is visible and its match errs below ``THRESHOLD``."""
        return self.errors < THRESHOLD


@dataclass(frozen=True)
class ViewScores:
    """One direction of a pair: what became of this view's N keypoints in the other view.

    Attributes:
        scores: (N,) float32, the detector's.
        visible: (N,) bool, the homography takes the keypoint into the other image.
        offsets: (N,) float64, pixels from there to the other view's nearest keypoint.
        repeated: (N,) bool, the two are mutually nearest and at most ``THRESHOLD`` apart.
        matches: None where a view has no keypoints or no descriptors.
    """

    scores: np.ndarray
    visible: np.ndarray
    offsets: np.ndarray
    repeated: np.ndarray
    matches: Matches | None


@dataclass(frozen=True)
class PairScores:
    """All that the numbers and the pictures need to know of one pair.

    Attributes:
        view0, view1: the two directions.
        H_0to1_estimated: (3, 3) float64 from the matches of view 1, or None if RANSAC found none.
        corner_error: mean distance in pixels of view 0's corners under the estimated and the true
            homography; infinity without an estimate.
    """

    view0: ViewScores
    view1: ViewScores
    H_0to1_estimated: np.ndarray | None
    corner_error: float

    @property
    def is_empty(self) -> bool:
        """Whether a view has no keypoints."""
        return len(self.view0.scores) == 0 or len(self.view1.scores) == 0

    @property
    def is_matched(self) -> bool:
        """Whether there were descriptors to match."""
        return self.view0.matches is not None


def score_pair(features0: Features, features1: Features, H_0to1: np.ndarray) -> PairScores:
    """Compare the features of two views of a plane, or of a turning camera.

    Args:
        features0, features1: both with descriptors of the same kind, or without.
        H_0to1: (3, 3) float, pixels of ``features0.image_size`` to those of
            ``features1.image_size``.

    Raises:
        InputError: descriptors in one view only, of different widths, or binary against real ones.
    """
    if (features0.descriptors is None) != (features1.descriptors is None):
        raise InputError("only one of the two views has descriptors; extract both views alike")
    points0, points1 = features0.keypoints, features1.keypoints
    warped0 = warp_points(points0, H_0to1)
    warped1 = warp_points(points1, np.linalg.inv(H_0to1))
    visible0 = are_inside(warped0, features1.image_size)
    visible1 = are_inside(warped1, features0.image_size)
    offsets0, repeated0 = _nearest_keypoints(warped0, points1)
    offsets1, repeated1 = _nearest_keypoints(warped1, points0)

    matches0 = matches1 = H_0to1_estimated = None
    if len(points0) and len(points1) and features0.descriptors is not None:
        matched = match_both_ways(features0.descriptors, features1.descriptors)
        matches0 = _errors_of(*matched[0], warped0, visible0, points1)
        matches1 = _errors_of(*matched[1], warped1, visible1, points0)
        H_0to1_estimated = find_homography(points0[matches1.indices], points1)
    return PairScores(
        ViewScores(features0.scores, visible0, offsets0, repeated0, matches0),
        ViewScores(features1.scores, visible1, offsets1, repeated1, matches1),
        H_0to1_estimated,
        corner_error(H_0to1_estimated, H_0to1, features0.image_size),
    )


def _nearest_keypoints(warped: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each warped keypoint: how far the nearest of ``points`` is, and if it is repeated."""
    if not len(warped) or not len(points):
        return np.full(len(warped), np.inf), np.zeros(len(warped), bool)
    squared = cdist(warped, points, "sqeuclidean")
    rows = np.arange(len(warped))
    nearest = squared.argmin(axis=1)
    offsets = np.sqrt(squared[rows, nearest])
    return offsets, (offsets <= THRESHOLD) & (squared.argmin(axis=0)[nearest] == rows)


def _errors_of(indices, ratios, warped, visible, points) -> Matches:
    errors = np.linalg.norm(warped - points[indices], axis=1)
    errors[~visible] = np.inf
    return Matches(indices, ratios, errors)


def matching_score(
    groups: Sequence[int], pairs: Sequence[PairScores], threshold: float = THRESHOLD
) -> Statistic:
    """Correct matches over visible keypoints, mean of both directions and of all matched pairs.

    Args:
        groups: of the six numbers: to which sequence each pair belongs.
    """

    def score(view: ViewScores) -> float:
        correct = np.count_nonzero(view.matches.errors < threshold)
        return correct / max(np.count_nonzero(view.visible), 1)

    found = [
        (group, (score(pair.view0) + score(pair.view1)) / 2)
        for group, pair in _matched(groups, pairs)
    ]
    return mean_statistic(*_columns(found))


def homography_accuracy(
    groups: Sequence[int], pairs: Sequence[PairScores], threshold: float = THRESHOLD
) -> Statistic:
    """The share of matched pairs whose estimated homography errs below ``threshold`` pixels."""
    found = [(group, pair.corner_error < threshold) for group, pair in _matched(groups, pairs)]
    return mean_statistic(*_columns(found))


def descriptor_ap(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Average precision of the visible keypoints' matches in view 1, best ratio first.

    Recall is of the visible keypoints of view 1 that have a keypoint of view 0 below 3 px.
    """
    views = [(group, pair.view1) for group, pair in _matched(groups, pairs)]
    relevant = np.zeros(max(groups, default=0) + 1, np.int64)
    for group, view in views:
        relevant[group] += np.count_nonzero(view.offsets[view.visible] < THRESHOLD)
    return average_precision_statistic(
        _concatenate([np.full(v.visible.sum(), group) for group, v in views], np.intp),
        _concatenate([v.matches.correct[v.visible] for _, v in views], bool),
        _concatenate([v.matches.ratios[v.visible] for _, v in views], np.float32),
        relevant,
    )


def localization_error(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Mean distance in pixels of visible repeated keypoints; all directions weigh alike."""
    views = [(g, view) for g, p in zip(groups, pairs, strict=True) for view in (p.view1, p.view0)]
    repeated = [(group, view.offsets[view.visible & view.repeated]) for group, view in views]
    return mean_statistic(
        *_columns([(g, offsets.mean()) for g, offsets in repeated if len(offsets)])
    )


def repeatability(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Repeated over visible keypoints, both directions together; 0 for a pair without keypoints."""

    def repeat(pair: PairScores) -> float:
        views = (pair.view0, pair.view1)
        repeated = sum(np.count_nonzero(v.repeated & v.visible) for v in views)
        return repeated / max(sum(np.count_nonzero(v.visible) for v in views), 1)

    return mean_statistic(groups, [0.0 if pair.is_empty else repeat(pair) for pair in pairs])


def detector_ap(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Average precision of visible keypoints as repeated ones, highest score first."""
    views = [
        (group, view)
        for group, pair in zip(groups, pairs, strict=True)
        if not pair.is_empty
        for view in (pair.view1, pair.view0)
    ]
    groups_of = _concatenate([np.full(v.visible.sum(), group) for group, v in views], np.intp)
    repeated = _concatenate([v.repeated[v.visible] for _, v in views], bool)
    scores = _concatenate([v.scores[v.visible] for _, v in views], np.float32)
    relevant = np.bincount(groups_of, minlength=max(groups, default=0) + 1)
    # Reversed, because HF-Net sorts ascending and then turns the order round, ties included.
    return average_precision_statistic(groups_of[::-1], repeated[::-1], -scores[::-1], relevant)


def _matched(
    groups: Sequence[int], pairs: Sequence[PairScores]
) -> Iterator[tuple[int, PairScores]]:
    """The pairs that had descriptors to match, with their groups."""
    return ((group, p) for group, p in zip(groups, pairs, strict=True) if p.is_matched)


def _columns(rows: list[tuple]) -> tuple[list, list]:
    """Groups and values of (group, value) rows."""
    return [group for group, _ in rows], [value for _, value in rows]


def _concatenate(arrays: list[np.ndarray], dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])


@register_task("hfnet")
class HFNet(HomographyTask):
    """HF-Net's six numbers."""

    columns = (
        Column("MS", "matching_score"),
        Column("Homography", "homography_accuracy"),
        Column("mAP (Desc)", "descriptor_ap"),
        Column("MLE", "localization_error", less_is_better=True),
        Column("Rep", "repeatability"),
        Column("mAP (Det)", "detector_ap"),
    )
    measures = (
        "nearest-neighbor matches, 3 px. MS matching score, Homography accuracy, mAP average "
        "precision of descriptors and detector, MLE localization error in pixels (less is better), "
        "Rep repeatability"
    )
    score_pair = staticmethod(score_pair)

    @staticmethod
    def pair_statistics(groups, scores: Sequence[PairScores]) -> dict[str, Statistic]:
        numbers = (
            matching_score,
            homography_accuracy,
            descriptor_ap,
            localization_error,
            repeatability,
            detector_ap,
        )
        return {number.__name__: number(groups, scores) for number in numbers}

    def picture(self, score: PairScores) -> Picture:
        view = score.view1
        if view.matches is None:
            return Picture(np.zeros((0, 2), np.intp), np.zeros(0, bool), "nothing to match")
        rows = np.flatnonzero(view.visible)
        correct = view.matches.correct[rows]
        caption = (
            f"{correct.sum()} of {len(rows)} visible keypoints matched correctly, homography off "
            f"by {score.corner_error:.1f} px"
        )
        return Picture(np.stack([view.matches.indices[rows], rows], axis=1), correct, caption)

    def pair_curves(self, groups, scores: Sequence[PairScores], threshold: float):
        return {
            "visible keypoints matched correctly": matching_score(groups, scores, threshold),
            "correct homographies": homography_accuracy(groups, scores, threshold),
        }
