"""Tasks on pairs of views with a known homography; the protocols ``matching`` and ``silk``.

Descriptors are matched, and a homography is estimated by OpenCV's RANSAC, by MAGSAC (Barath et al.,
CVPR 2019) and by PoseLib, each with an inlier threshold of 3 pixels, a fixed seed and its own
defaults beyond.

* Accuracy@t is the share of pairs with a ``corner_error`` below t pixels, AUC@t the area under that
  share as a function of the threshold from 0 to t, divided by t (Sarlin et al., CVPR 2020).
* Repeatability@t is the share of visible keypoints that have a keypoint of the other view at most t
  pixels from where the homography takes them, both views together, mean over pairs (DeTone et al.,
  CVPRW 2018).
* Mean matching accuracy@t is the share of a pair's matches whose keypoint of view 1 lies at most t
  pixels from where the homography takes that of view 0, mean over pairs; a pair without a match
  counts 0 (Dusmanu et al., CVPR 2019).

What each protocol fixes, and where others differ, is in ``docs/evaluation.md``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import poselib
from scipy.spatial import cKDTree

from ...data.features import Features
from ...data.geometry import resize_homography, warp_points
from ..datasets.base import HomographyDataset, HomographyPair
from ..features import ImageFeatures
from ..intervals import Statistic, Statistics, auc_statistic, mean_statistic
from ..matching import NEAREST, Matcher
from ..report.pictures import Drawing, draw_keypoints
from ..report.tables import Column
from . import register_task
from .base import PairTask, Picture, ScoredPairs, Sides, read_views

__all__ = [
    "HomographyTask",
    "MatchedPair",
    "Matching",
    "SiLK",
    "are_inside",
    "corner_error",
    "find_homography",
    "match_pair",
    "visible_offsets",
]

THRESHOLD = 3.0
"""In pixels, of an estimator's inliers and of the pictures' correct matches."""
THRESHOLDS = (1, 3, 5)
"""In pixels, of the corner error."""
MATCH_THRESHOLDS = tuple(range(1, 11))
"""In pixels, of mean matching accuracy."""
ESTIMATORS = {"ransac": "RANSAC", "magsac": "MAGSAC", "poselib": "PoseLib"}
"""Name -> title in tables."""


def are_inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which points (N, 2) lie in an image of ``size``, (N,) bool."""
    return ((points >= 0) & (points <= np.array(size) - 1)).all(axis=1)


def corner_error(
    H_0to1_estimated: np.ndarray | None, H_0to1: np.ndarray, size0: tuple[int, int]
) -> float:
    """Mean distance in pixels of view 1 of the corners of view 0, whose (width, height) is
    ``size0``, under two homographies (3, 3); infinity where there is no estimate."""
    if H_0to1_estimated is None:
        return math.inf
    right, bottom = size0[0] - 1, size0[1] - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], np.float64)
    errors = warp_points(corners, H_0to1_estimated) - warp_points(corners, H_0to1)
    return float(np.linalg.norm(errors, axis=1).mean())


def visible_offsets(features0: Features, features1: Features, H_0to1: np.ndarray) -> np.ndarray:
    """Pixels (N,) float64 from the keypoints of view 0 to the nearest one of view 1, infinity where
    it has none; nan for those that view 1 does not see."""
    warped = warp_points(features0.keypoints, H_0to1)
    visible = are_inside(warped, features1.image_size)
    offsets = np.full(len(warped), np.nan)
    offsets[visible] = cKDTree(features1.keypoints).query(warped[visible])[0]
    return offsets


class HomographyTask(PairTask):
    """A task on pairs of views with a known homography; its pictures show matches.

    Attributes:
        measures: what the columns mean, for the report; ``{matches}`` is what the matcher finds.
    """

    dataset_type = HomographyDataset
    legend = (
        'Image 1 on the left. <span class="correct">Green</span>: within 3 px of the truth. '
        '<span class="wrong">Red</span>: wrong. <span class="plain">Yellow</span>: not matched, or '
        "not visible in the other view. The pairs are those that the first model matched best and "
        "worst, at most two of a sequence."
    )
    curve_thresholds = tuple(half / 2 for half in range(1, 21))

    @property
    def about(self) -> str:
        longest = self.settings.longest_side
        side = f"{longest} pixels" if longest else "their own size"
        if self.shorter_side:
            side = f"{self.shorter_side} pixels of the shorter side"
        best = self.settings.num_keypoints
        measures = self.measures.format(matches=self.matcher.finds)
        return f"the best {best} keypoints of each image at {side}, {measures}"

    def truth(self, pair: HomographyPair, *views: ImageFeatures) -> tuple[np.ndarray]:
        """``H_0to1`` (3, 3) between the resized views."""
        sizes = (size for view in views for size in (view.file_size, view.features.image_size))
        return (resize_homography(pair.H_0to1, *sizes),)

    def pair_curves(
        self, groups: Sequence[int], scores: Sequence, threshold: float
    ) -> dict[str, Statistic]:
        """Name of a share that rises with the pixels allowed -> what it is at so many."""
        return {}

    def curves(self, scored: ScoredPairs) -> dict[str, list[float]]:
        together = np.zeros(len(scored.scores), np.intp)
        found = [
            Statistics(["all"], self.pair_curves(together, scored.scores, t)).values()
            for t in self.curve_thresholds
        ]
        return {name: [values[name] for values in found] for name in found[0]}

    def draw_between(
        self, row: int, scored: Mapping[str, ScoredPairs], sides: Mapping[str, Sides]
    ) -> list[Drawing]:
        """The keypoints of view 0 as the first two models find them, repeated ones in green."""
        pair = self.dataset.pairs[row]
        image = self.load_view(self.dataset.images[pair.name0], 1).image
        keypoints, repeated, captions = [], [], []
        for model in list(scored)[:2]:
            views = read_views(sides[model], pair)
            (H_0to1,) = self.truth(pair, *views)
            offsets = visible_offsets(*(view.features for view in views), H_0to1)
            keypoints.append(views[0].features.keypoints)
            repeated.append(offsets <= THRESHOLD)
            captions.append(
                f"{model}: {len(offsets)} keypoints, {repeated[-1].sum()} of "
                f"{(~np.isnan(offsets)).sum()} visible ones found again in another view"
            )
        title = f"Keypoints: {' beside '.join(list(scored)[:2])}"
        drawn = draw_keypoints(image, keypoints, repeated)
        return [Drawing(title, "", "; ".join(captions), drawn)]


@dataclass(frozen=True)
class MatchedPair:
    """What the numbers and the pictures need to know of one pair.

    Attributes:
        matches: (K, 2) intp, rows of view 0 and view 1.
        match_errors: (K,) float64, pixels between the match in view 1 and where it should be.
        corner_errors: estimator -> ``corner_error``.
        offsets: (V,) float64, ``visible_offsets`` of both views without nan.
    """

    matches: np.ndarray
    match_errors: np.ndarray
    corner_errors: dict[str, float]
    offsets: np.ndarray


def match_pair(
    features0: Features, features1: Features, H_0to1: np.ndarray, matcher: Matcher = NEAREST
) -> MatchedPair:
    """Match the features of two views and estimate the homography between them; ``H_0to1`` (3, 3)
    is the true one.

    Raises:
        InputError: a view without descriptors, or descriptors of another kind in each.
    """
    matches = matcher(features0, features1)
    points0, points1 = features0.keypoints[matches[:, 0]], features1.keypoints[matches[:, 1]]
    misses = warp_points(points0, H_0to1) - points1
    estimates = {name: find_homography(points0, points1, name) for name in ESTIMATORS}
    offsets0 = visible_offsets(features0, features1, H_0to1)
    offsets = np.append(offsets0, visible_offsets(features1, features0, np.linalg.inv(H_0to1)))
    return MatchedPair(
        matches,
        np.linalg.norm(misses, axis=1),
        {name: corner_error(H, H_0to1, features0.image_size) for name, H in estimates.items()},
        offsets[~np.isnan(offsets)],
    )


def find_homography(
    points0: np.ndarray, points1: np.ndarray, estimator: str = "ransac"
) -> np.ndarray | None:
    """The homography of two views from matched pixels (N, 2) float32.

    Returns:
        H_0to1 (3, 3) float64, or None where there is none, as for fewer than four matches.
    """
    if len(points0) < 4:
        return None
    if estimator == "poselib":
        options = {"max_reproj_error": THRESHOLD, "seed": 0}
        H_0to1, info = poselib.estimate_homography(points0, points1, options, {})
        return H_0to1 if info["num_inliers"] >= 4 else None
    cv2.setRNGSeed(0)
    method = {"ransac": cv2.RANSAC, "magsac": cv2.USAC_MAGSAC}[estimator]
    return cv2.findHomography(points0, points1, method, THRESHOLD)[0]


def share_within(groups, errors: Sequence[np.ndarray], threshold: float) -> Statistic:
    """Mean over pairs of the share of errors (K,) up to ``threshold`` pixels, 0 without any."""
    return mean_statistic(groups, [(e <= threshold).mean() if len(e) else 0.0 for e in errors])


@register_task("matching")
class Matching(HomographyTask):
    """Matches, and the homographies that three estimators find from them."""

    estimators = tuple(ESTIMATORS)
    """Of the report's curves."""
    columns = (
        *(
            Column(f"{title} {t} px", f"homography.{name}.accuracy@{t}px")
            for name, title in ESTIMATORS.items()
            for t in THRESHOLDS
        ),
        Column("MMA 3 px", "mean_matching_accuracy.@3px"),
        Column("matches", "mean_matches", is_ranked=False, digits=0),
    )
    takes_matcher = True
    score_pair = staticmethod(match_pair)
    measures = (
        "{matches}; the share of pairs whose homography errs below 1, 3 and 5 px by three "
        "estimators, MMA the share of matches correct to 3 px, and the matches of a pair"
    )

    @staticmethod
    def pair_statistics(groups, scores: Sequence[MatchedPair]) -> dict[str, Statistic]:
        found = {}
        for name in ESTIMATORS:
            errors = np.array([pair.corner_errors[name] for pair in scores])
            for t in THRESHOLDS:
                found[f"homography.{name}.accuracy@{t}px"] = mean_statistic(groups, errors < t)
                found[f"homography.{name}.auc@{t}px"] = auc_statistic(groups, errors, t)
        errors, offsets = [p.match_errors for p in scores], [p.offsets for p in scores]
        for t in MATCH_THRESHOLDS:
            found[f"mean_matching_accuracy.@{t}px"] = share_within(groups, errors, t)
        for t in THRESHOLDS:
            found[f"repeatability.@{t}px"] = share_within(groups, offsets, t)
        found["mean_matches"] = mean_statistic(groups, [len(p.matches) for p in scores])
        return found

    def picture(self, score: MatchedPair) -> Picture:
        correct = score.match_errors <= THRESHOLD
        errors = ", ".join(f"{name} {error:.1f}" for name, error in score.corner_errors.items())
        caption = (
            f"{correct.sum()} of {len(correct)} correct matches, homography off by px: {errors}"
        )
        return Picture(score.matches, correct, caption)

    def pair_curves(self, groups, scores: Sequence[MatchedPair], threshold: float):
        match_errors = [pair.match_errors for pair in scores]
        shares = {
            "correct matches (MMA)": share_within(groups, match_errors, threshold),
            "keypoints repeated": share_within(groups, [p.offsets for p in scores], threshold),
        }
        for name in self.estimators:
            correct = [pair.corner_errors[name] < threshold for pair in scores]
            shares[f"correct homographies, {ESTIMATORS[name]}"] = mean_statistic(groups, correct)
        return shares


@register_task("silk")
class SiLK(Matching):
    """As SiLK's Table 2 (Gleize et al., ICCV 2023) was made."""

    takes_matcher = False
    shorter_side, num_keypoints, nms_radius = 480, 10000, 0
    estimators = ("ransac",)
    columns = (
        *(Column(f"Rep {t} px", f"repeatability.@{t}px") for t in (1, 3)),
        *(Column(f"Homography {t} px", f"homography.ransac.accuracy@{t}px") for t in (1, 3, 5)),
        *(Column(f"AUC {t} px", f"homography.ransac.auc@{t}px") for t in (1, 3, 5)),
        *(Column(f"MMA {t} px", f"mean_matching_accuracy.@{t}px") for t in (1, 3)),
        Column("keypoints", "mean_keypoints", is_ranked=False, digits=0),
        Column("matches", "mean_matches", is_ranked=False, digits=0),
    )
    measures = (
        "mutual nearest neighbors, as in SiLK's Table 2: Rep the share of keypoints repeated to "
        "1 and 3 px, Homography the share of pairs below 1, 3 and 5 px by OpenCV's RANSAC, AUC the "
        "area under it, MMA the share of correct matches, the keypoints of an image and the "
        "matches of a pair"
    )
