"""The six numbers of HF-Net's evaluation of local features (Sarlin et al., CVPR 2019), on HPatches.

``score_pair`` compares the features of two views whose homography is known; each number is a
function of many such ``PairScores``. The arithmetic is that of HF-Net's published code, so that
results can be laid beside its tables:

* matches are nearest neighbours in both directions; the ratio of the two nearest distances removes
  no match, it only ranks matches for ``descriptor_ap``;
* a match is correct below 3 px, a keypoint is repeated up to and including 3 px;
* the homography and the precision-recall curve of descriptors use the matches of view 1's keypoints
  (in HPatches, view 0 is image 1 of a sequence and view 1 one of the others);
* the average precision leaves out the first point of its curve, and breaks ties by input order.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from joblib.externals.loky import get_reusable_executor
from scipy.spatial.distance import cdist
from threadpoolctl import ThreadpoolController

from ..data.features import Features
from ..data.geometry import warp_points
from .ransac import THRESHOLD, find_homography

__all__ = [
    "Matches",
    "PairScores",
    "ViewScores",
    "are_inside",
    "corner_error",
    "descriptor_ap",
    "detector_ap",
    "homography_accuracy",
    "localization_error",
    "match_descriptors",
    "matching_score",
    "repeatability",
    "score_pair",
    "score_scenes",
    "summarize",
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
        ValueError: descriptors in one view only, of different widths, or binary against real ones.
    """
    if (features0.descriptors is None) != (features1.descriptors is None):
        raise ValueError("only one of the two views has descriptors; extract both views alike")
    points0, points1 = features0.keypoints, features1.keypoints
    warped0 = warp_points(points0, H_0to1)
    warped1 = warp_points(points1, np.linalg.inv(H_0to1))
    visible0 = are_inside(warped0, features1.image_size)
    visible1 = are_inside(warped1, features0.image_size)
    offsets0, repeated0 = _nearest_keypoints(warped0, points1)
    offsets1, repeated1 = _nearest_keypoints(warped1, points0)

    matches0 = matches1 = H_0to1_estimated = None
    if len(points0) and len(points1) and features0.descriptors is not None:
        matched = match_descriptors(features0.descriptors, features1.descriptors)
        matches0 = _judge_matches(*matched[0], warped0, visible0, points1)
        matches1 = _judge_matches(*matched[1], warped1, visible1, points0)
        H_0to1_estimated = find_homography(points0[matches1.indices], points1)
    return PairScores(
        ViewScores(features0.scores, visible0, offsets0, repeated0, matches0),
        ViewScores(features1.scores, visible1, offsets1, repeated1, matches1),
        H_0to1_estimated,
        corner_error(H_0to1_estimated, H_0to1, features0.image_size),
    )


def score_scenes(
    scenes: Iterable[Sequence[tuple[Features, Features, np.ndarray]]],
    workers: int,
    score: Callable = score_pair,
) -> Iterator[list]:
    """Score scene by scene in worker processes, while the next scenes are still being made.

    This process is one of the workers: what the others cannot take at once it scores itself,
    without the cost of sending it.

    Args:
        scenes: the arguments of ``score`` for each pair of a scene. They are asked for in the
            caller's thread, one scene at a time, at most two for each other worker ahead.
        workers: processes, with this one. The others start once and stay for later calls.
        score: a function that a module names, for one pair.

    Yields:
        For each scene, in order, what ``score`` returned for its pairs.
    """
    others = workers - 1
    executor = get_reusable_executor(others, timeout=60) if others else None
    jobs: deque[Future] = deque()
    for scene in scenes:
        if sum(not job.done() for job in jobs) < 2 * others:
            jobs.append(executor.submit(_score_scene, score, list(scene)))
        else:
            jobs.append(Future())
            jobs[-1].set_result(_score_scene(score, scene))
        while jobs and jobs[0].done():
            yield jobs.popleft().result()
    for job in jobs:
        yield job.result()


def _score_scene(score: Callable, scene: Sequence[tuple]) -> list:
    # The matrices are so small that more threads would mostly wait for one another.
    with _linear_algebra().limit(limits=1, user_api="blas"):
        return [score(*pair) for pair in scene]


@functools.cache
def _linear_algebra() -> ThreadpoolController:
    return ThreadpoolController()


def match_descriptors(
    descriptors0: np.ndarray, descriptors1: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Nearest neighbours in both directions: L2 for real descriptors, Hamming for binary ones.

    Args:
        descriptors0, descriptors1: (N0, D) and (N1, D), both float or both bool, neither empty.

    Returns:
        ((indices0, ratios0), (indices1, ratios1)): for each row the nearest row of the other side,
        the first of equally near ones, and the ratio as ``Matches`` describes it.

    Raises:
        ValueError: different widths or kinds.
    """
    binary = descriptors0.dtype == np.bool_
    if binary != (descriptors1.dtype == np.bool_) or descriptors0.shape[1] != descriptors1.shape[1]:
        raise ValueError(
            f"cannot match {descriptors0.dtype} descriptors of width {descriptors0.shape[1]} with "
            f"{descriptors1.dtype} ones of width {descriptors1.shape[1]}; extract both views alike"
        )
    # On bits the squared distance is Hamming's, and float32 counts them exactly.
    distances = _squared_distances(
        descriptors0.astype(np.float32 if binary else np.float64),
        descriptors1.astype(np.float32 if binary else np.float64),
    )
    if not binary:
        np.sqrt(distances, out=distances)
    opposite = np.ascontiguousarray(distances.T)
    return _two_nearest(distances), _two_nearest(opposite)


def summarize(pairs: Sequence[PairScores]) -> dict[str, float]:
    """The six numbers over all pairs; nan where no pair could be scored."""
    numbers = (
        matching_score,
        homography_accuracy,
        descriptor_ap,
        localization_error,
        repeatability,
        detector_ap,
    )
    return {number.__name__: number(pairs) for number in numbers}


def matching_score(pairs: Iterable[PairScores], threshold: float = THRESHOLD) -> float:
    """Correct matches over visible keypoints, mean of both directions and of all matched pairs."""

    def score(view: ViewScores) -> float:
        correct = np.count_nonzero(view.matches.errors < threshold)
        return correct / max(np.count_nonzero(view.visible), 1)

    return _mean([(score(p.view0) + score(p.view1)) / 2 for p in pairs if p.is_matched])


def homography_accuracy(pairs: Iterable[PairScores], threshold: float = THRESHOLD) -> float:
    """The share of matched pairs whose estimated homography errs below ``threshold`` pixels."""
    return _mean([p.corner_error < threshold for p in pairs if p.is_matched])


def descriptor_ap(pairs: Iterable[PairScores]) -> float:
    """Average precision of the visible keypoints' matches in view 1, best ratio first.

    Recall is of the visible keypoints of view 1 that have a keypoint of view 0 below 3 px.
    """
    views = [p.view1 for p in pairs if p.is_matched]
    if not views:
        return math.nan
    return _average_precision(
        np.concatenate([v.matches.correct[v.visible] for v in views]),
        np.concatenate([v.matches.ratios[v.visible] for v in views]),
        sum(np.count_nonzero(v.offsets[v.visible] < THRESHOLD) for v in views),
    )


def localization_error(pairs: Iterable[PairScores]) -> float:
    """Mean distance in pixels of visible repeated keypoints; all directions weigh alike."""
    views = [view for p in pairs for view in (p.view1, p.view0)]
    found = [view.offsets[view.visible & view.repeated] for view in views]
    return _mean([offsets.mean() for offsets in found if len(offsets)])


def repeatability(pairs: Iterable[PairScores]) -> float:
    """Repeated over visible keypoints, both directions together; 0 for a pair without keypoints."""

    def repeat(pair: PairScores) -> float:
        views = (pair.view0, pair.view1)
        repeated = sum(np.count_nonzero(v.repeated & v.visible) for v in views)
        return repeated / max(sum(np.count_nonzero(v.visible) for v in views), 1)

    return _mean([0.0 if p.is_empty else repeat(p) for p in pairs])


def detector_ap(pairs: Iterable[PairScores]) -> float:
    """Average precision of visible keypoints as repeated ones, highest score first."""
    views = [view for p in pairs if not p.is_empty for view in (p.view1, p.view0)]
    if not views:
        return math.nan
    repeated = np.concatenate([v.repeated[v.visible] for v in views])
    scores = np.concatenate([v.scores[v.visible] for v in views])
    # Reversed, because HF-Net sorts ascending and then turns the order round, ties included.
    return _average_precision(repeated[::-1], -scores[::-1], len(scores))


def _mean(values: list) -> float:
    return float(np.mean(values)) if values else math.nan


def _average_precision(correct: np.ndarray, ranks: np.ndarray, num_relevant: int) -> float:
    """Area below the precision-recall curve of answers in ascending order of ``ranks``."""
    if num_relevant == 0:
        return 0.0
    found = np.cumsum(correct[np.argsort(ranks, kind="stable")])
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(envelope[1:] * np.diff(found)) / num_relevant)


def are_inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which points (N, 2) lie in an image of ``size``, (N,) bool."""
    return ((points >= 0) & (points <= np.array(size) - 1)).all(axis=1)


def _nearest_keypoints(warped: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each warped keypoint: how far the nearest of ``points`` is, and if it is repeated."""
    if not len(warped) or not len(points):
        return np.full(len(warped), np.inf), np.zeros(len(warped), bool)
    squared = cdist(warped, points, "sqeuclidean")
    rows = np.arange(len(warped))
    nearest = squared.argmin(axis=1)
    offsets = np.sqrt(squared[rows, nearest])
    return offsets, (offsets <= THRESHOLD) & (squared.argmin(axis=0)[nearest] == rows)


def _judge_matches(indices, ratios, warped, visible, points) -> Matches:
    errors = np.linalg.norm(warped - points[indices], axis=1)
    errors[~visible] = np.inf
    return Matches(indices, ratios, errors)


def _squared_distances(rows0: np.ndarray, rows1: np.ndarray) -> np.ndarray:
    """Squared L2 distances (N0, N1) float32 between rows, by one matrix product.

    Computed in float64, equal distances differ by their rounding; float32 makes them equal again,
    as does the floor for distances of zero.
    """
    norms0 = np.einsum("nd,nd->n", rows0, rows0)
    norms1 = np.einsum("nd,nd->n", rows1, rows1)
    squared = (-2 * rows0) @ rows1.T
    squared += norms0[:, None]
    squared += norms1
    squared = squared.astype(np.float32, copy=False)
    floor = 1e-13 * (norms0.max() + norms1.max())
    if squared.min() < floor:  # looking costs a fiftieth of writing
        np.copyto(squared, 0, where=squared < floor)
    return squared


def _two_nearest(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the smallest element of each row, and its ratio to the second smallest.

    The smallest are overwritten.
    """
    rows = np.arange(len(distances))
    indices = distances.argmin(axis=1)
    nearest = distances[rows, indices]
    distances[rows, indices] = np.inf
    second = distances[rows, distances.argmin(axis=1)]
    ratios = np.ones(len(distances), np.float32)
    np.divide(nearest, second, out=ratios, where=(second > 0) & np.isfinite(second))
    return indices, ratios


def corner_error(
    H_0to1_estimated: np.ndarray | None, H_0to1: np.ndarray, size0: tuple[int, int]
) -> float:
    """Mean distance in view 1, in pixels, of view 0's corners under two homographies (3, 3).

    Infinity where there is no estimate; ``size0`` is view 0's (width, height).
    """
    if H_0to1_estimated is None:
        return math.inf
    right, bottom = size0[0] - 1, size0[1] - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], np.float64)
    errors = warp_points(corners, H_0to1_estimated) - warp_points(corners, H_0to1)
    return float(np.linalg.norm(errors, axis=1).mean())
