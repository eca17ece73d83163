"""How long a keypoint of a sequence's first view is followed through its other views."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.geometry import warp_points
from ..intervals import Statistic, mean_statistic
from ..report.tables import Column
from . import register_task
from .base import Picture
from .homography import THRESHOLD, HomographyTask

__all__ = ["FollowedPair", "Tracks", "follow_pair"]


@dataclass(frozen=True)
class FollowedPair:
    """What became of view 0's N keypoints in view 1.

    Attributes:
        matches: (K, 2) intp, rows of view 0 and view 1.
        offsets: (K, 2) float64, from where the homography takes a keypoint to its match, in pixels.
        count: N.
    """

    matches: np.ndarray
    offsets: np.ndarray
    count: int

    @property
    def correct(self) -> np.ndarray:
        """(K,) bool, the match errs below ``THRESHOLD``."""
        return np.linalg.norm(self.offsets, axis=1) < THRESHOLD


def follow_pair(features0, features1, H_0to1: np.ndarray, matcher) -> FollowedPair:
    """Match two views and see where the matches should be."""
    matches = matcher(features0, features1)
    warped = warp_points(features0.keypoints[matches[:, 0]], H_0to1)
    return FollowedPair(
        matches, features1.keypoints[matches[:, 1]] - warped, len(features0.keypoints)
    )


@register_task("tracks")
class Tracks(HomographyTask):
    """Track length, what a map is made of, and the bias that averaging does not remove.

    All pairs of a sequence have the same view 0, as in HPatches.
    """

    columns = (
        Column("track length", "track_length"),
        Column("in all views", "complete"),
        Column("bias", "bias", less_is_better=True),
    )
    takes_matcher = True
    score_pair = staticmethod(follow_pair)
    measures = (
        f"{{matches}}, correct below {THRESHOLD:g} px. Of the first view's keypoints that have a "
        "correct match in any other view: in how many views of their sequence they are found, the "
        "first among them, and the share found in all. Bias: length of the mean offset of a pair's "
        "correct matches, in pixels (less is better)"
    )

    @staticmethod
    def pair_statistics(groups, scores: Sequence[FollowedPair]) -> dict[str, Statistic]:
        found, views = {}, defaultdict(lambda: 1)
        for group, pair in zip(groups, scores, strict=True):
            found.setdefault(group, np.zeros(pair.count, np.intp))
            found[group][pair.matches[pair.correct, 0]] += 1
            views[group] += 1
        lengths = [(group, 1 + n) for group, counts in found.items() for n in counts[counts > 0]]
        tracked, length = [group for group, _ in lengths], [n for _, n in lengths]
        offsets = [pair.offsets[pair.correct] for pair in scores]
        biases = [np.linalg.norm(o.mean(0)) if len(o) else math.nan for o in offsets]
        return {
            "track_length": mean_statistic(tracked, length),
            "complete": mean_statistic(tracked, [n == views[g] for g, n in lengths]),
            "bias": mean_statistic(groups, biases),
        }

    def picture(self, score: FollowedPair) -> Picture:
        correct = score.correct
        return Picture(score.matches, correct, f"{correct.sum()} of {len(correct)} matches correct")
