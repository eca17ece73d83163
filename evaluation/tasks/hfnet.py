"""The six numbers of HF-Net's evaluation of local features (Sarlin et al., CVPR 2019), on HPatches.

The arithmetic is that of HF-Net's published code, so that results can be laid beside its tables:

* matches are nearest neighbors in both directions; the ratio of the two nearest distances removes
  no match, it only ranks matches for ``descriptor_ap``;
* a match is correct below 3 px, a keypoint is repeated up to and including 3 px;
* the homography and the precision-recall curve of descriptors use the matches of view 1's keypoints
  (in HPatches, view 0 is image 1 of a sequence and view 1 one of the others);
* the average precision leaves out the first point of its curve, and breaks ties by input order.
"""

import math
from collections.abc import Sequence
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

__all__ = ["HFNet", "PairScores", "ViewScores", "score_pair"]


@dataclass(frozen=True)
class ViewScores:
    """One direction of a pair: what became of this view's N keypoints in the other view.

    Attributes:
        scores: (N,) float32, the detector's.
        visible: (N,) bool, the homography takes the keypoint into the other image, which has some.
        offsets: (N,) float64, pixels from there to the other view's nearest keypoint.
        repeated: (N,) bool, the two are mutually nearest and at most ``THRESHOLD`` apart.
        indices: (N,) intp, the row of the nearest descriptor in the other view. This and what
            follows is None where a view has no keypoints or no descriptors.
        ratios: (N,) float32, nearest over second nearest distance of descriptors.
        errors: (N,) float64, pixels from the match to where the homography takes the keypoint;
            infinity for a keypoint that is not visible.
    """

    scores: np.ndarray
    visible: np.ndarray
    offsets: np.ndarray
    repeated: np.ndarray
    indices: np.ndarray | None = None
    ratios: np.ndarray | None = None
    errors: np.ndarray | None = None


@dataclass(frozen=True)
class PairScores:
    """Both directions, and the ``corner_error`` of the homography from the matches of view 1."""

    view0: ViewScores
    view1: ViewScores
    corner_error: float


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
    matched, estimated = ((), ()), None
    if len(features0.keypoints) and len(features1.keypoints) and features0.descriptors is not None:
        matched = match_both_ways(features0.descriptors, features1.descriptors)
        estimated = find_homography(features0.keypoints[matched[1][0]], features1.keypoints)
    return PairScores(
        _score_view(features0, features1, H_0to1, *matched[0]),
        _score_view(features1, features0, np.linalg.inv(H_0to1), *matched[1]),
        corner_error(estimated, H_0to1, features0.image_size),
    )


def _score_view(here: Features, there: Features, H: np.ndarray, *matched) -> ViewScores:
    """One direction, of which ``H`` maps pixels; ``matched``: indices and ratios, or nothing."""
    warped = warp_points(here.keypoints, H)
    offsets, repeated = np.full(len(warped), np.inf), np.zeros(len(warped), bool)
    visible = are_inside(warped, there.image_size) & (len(there.keypoints) > 0)
    if len(warped) and len(there.keypoints):
        squared = cdist(warped, there.keypoints, "sqeuclidean")
        rows, nearest = np.arange(len(warped)), squared.argmin(axis=1)
        offsets = np.sqrt(squared[rows, nearest])
        repeated = (offsets <= THRESHOLD) & (squared.argmin(axis=0)[nearest] == rows)
    if matched:
        errors = np.linalg.norm(warped - there.keypoints[matched[0]], axis=1)
        errors[~visible] = np.inf
        matched = (*matched, errors)
    return ViewScores(here.scores, visible, offsets, repeated, *matched)


# Each number is a function of the pairs, of which ``groups`` says to which sequence each belongs.


def matching_score(
    groups: Sequence[int], pairs: Sequence[PairScores], threshold: float = THRESHOLD
) -> Statistic:
    """Correct matches over visible keypoints, mean of both directions and of all matched pairs."""

    def score(view: ViewScores) -> float:
        return np.count_nonzero(view.errors < threshold) / max(np.count_nonzero(view.visible), 1)

    return mean_statistic(groups, [(score(p.view0) + score(p.view1)) / 2 for p in pairs])


def homography_accuracy(
    groups: Sequence[int], pairs: Sequence[PairScores], threshold: float = THRESHOLD
) -> Statistic:
    """The share of matched pairs whose estimated homography errs below ``threshold`` pixels."""
    return mean_statistic(groups, [pair.corner_error < threshold for pair in pairs])


def descriptor_ap(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Average precision of the visible keypoints' matches in view 1, best ratio first.

    Recall is of the visible keypoints of view 1 that have a keypoint of view 0 below 3 px.
    """
    views = [pair.view1 for pair in pairs]
    answers = [(v.errors < THRESHOLD, v.ratios, v.offsets < THRESHOLD) for v in views]
    return average_precision_statistic(*_pool(groups, views, answers).T)


def localization_error(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Mean distance in pixels of visible repeated keypoints; all directions weigh alike."""

    def locate(view: ViewScores) -> float:
        offsets = view.offsets[view.visible & view.repeated]
        return offsets.mean() if len(offsets) else math.nan

    views = [view for pair in pairs for view in (pair.view1, pair.view0)]
    return mean_statistic(np.repeat(groups, 2), [locate(view) for view in views])


def repeatability(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Repeated over visible keypoints, both directions together; 0 for a pair without keypoints."""

    def repeat(pair: PairScores) -> float:
        views = (pair.view0, pair.view1)
        repeated = sum(np.count_nonzero(view.repeated & view.visible) for view in views)
        return repeated / max(sum(np.count_nonzero(view.visible) for view in views), 1)

    return mean_statistic(groups, [repeat(pair) for pair in pairs])


def detector_ap(groups: Sequence[int], pairs: Sequence[PairScores]) -> Statistic:
    """Average precision of visible keypoints as repeated ones, highest score first."""
    views = [view for pair in pairs for view in (pair.view1, pair.view0)]
    answers = [(view.repeated, -view.scores, np.ones(len(view.scores))) for view in views]
    # Reversed, because HF-Net sorts ascending and then turns the order round, ties included.
    return average_precision_statistic(*_pool(np.repeat(groups, 2), views, answers)[::-1].T)


def _pool(groups: Sequence[int], views: Sequence[ViewScores], answers: Sequence[tuple]):
    """The arguments of ``average_precision_statistic`` for all visible keypoints, in columns."""
    pooled = [np.zeros((0, 4))]
    for group, view, columns in zip(groups, views, answers, strict=True):
        rows = np.column_stack([np.full(len(view.visible), group), *columns])
        pooled.append(rows[view.visible])
    return np.concatenate(pooled)


def _matched(groups: Sequence[int], pairs: Sequence[PairScores]):
    """The groups, and the pairs, of those that had descriptors to match."""
    kept = [row for row, pair in enumerate(pairs) if pair.view0.indices is not None]
    return [groups[row] for row in kept], [pairs[row] for row in kept]


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
        matched = _matched(groups, scores)
        return {
            "matching_score": matching_score(*matched),
            "homography_accuracy": homography_accuracy(*matched),
            "descriptor_ap": descriptor_ap(*matched),
            "localization_error": localization_error(groups, scores),
            "repeatability": repeatability(groups, scores),
            "detector_ap": detector_ap(groups, scores),
        }

    def picture(self, score: PairScores) -> Picture:
        view = score.view1
        if view.indices is None:
            return Picture(np.zeros((0, 2), np.intp), np.zeros(0, bool), "nothing to match")
        rows = np.flatnonzero(view.visible)
        correct = view.errors[rows] < THRESHOLD
        caption = (
            f"{correct.sum()} of {len(rows)} visible keypoints matched correctly, homography off "
            f"by {score.corner_error:.1f} px"
        )
        return Picture(np.stack([view.indices[rows], rows], axis=1), correct, caption)

    def pair_curves(self, groups, scores: Sequence[PairScores], threshold: float):
        matched = _matched(groups, scores)
        return {
            "visible keypoints matched correctly": matching_score(*matched, threshold),
            "correct homographies": homography_accuracy(*matched, threshold),
        }
