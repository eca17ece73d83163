"""The registry of protocols: name -> what is measured on a pair of views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..data.features import Features
from .homography import (
    ESTIMATORS,
    THRESHOLDS,
    MatchedPair,
    match_pair,
    matching_statistics,
    share_right,
    summarize_matching,
)
from .metrics import (
    PairScores,
    homography_accuracy,
    matching_score,
    score_pair,
    summarize,
)
from .statistics import Statistics, pair_statistics

__all__ = ["CURVE_THRESHOLDS", "PROTOCOLS", "Column", "Picture", "Protocol"]

CURVE_THRESHOLDS = [half / 2 for half in range(1, 21)]
"""In pixels, of the report's curves."""


@dataclass(frozen=True)
class Column:
    """One number of the table.

    Attributes:
        title: its heading.
        key: where it stands in a result, "a.b" for ``result["a"]["b"]``.
        less_is_better: of which of two rows is the better one.
        is_ranked: a row can be better by it at all.
        digits: behind the point.
        unit: the table shows multiples of this.
    """

    title: str
    key: str
    less_is_better: bool = False
    is_ranked: bool = True
    digits: int = 3
    unit: float = 1

    def value(self, result: dict) -> float:
        """The number in a result, nan where there was nothing to measure."""
        for part in self.key.split("."):
            if part not in result:
                return np.nan
            result = result[part]
        return result

    def best(self, results: Sequence[dict]) -> float:
        """The best number of these results."""
        values = [value for value in map(self.value, results) if not np.isnan(value)]
        return (min if self.less_is_better else max)(values, default=np.nan)

    def text(self, result: dict) -> str:
        """The number as the table shows it."""
        return self._text(self.value(result))

    def interval(self, result: dict) -> str:
        """Its 95 % interval, empty where there is none."""
        low, high = result.get("intervals", {}).get(self.key, (np.nan, np.nan))
        return "" if np.isnan(low) else f"{self._text(low)}–{self._text(high)}"

    def _text(self, value: float) -> str:
        return "–" if np.isnan(value) else f"{value / self.unit:.{self.digits}f}"


class Picture(NamedTuple):
    """What a picture of a pair shows: matches (K, 2) of rows, which are right (K,), a caption."""

    matches: np.ndarray
    right: np.ndarray
    caption: str


@dataclass(frozen=True)
class Protocol:
    """How pairs of views are compared.

    Attributes:
        about: how features are compared and what the columns mean, for the report.
        columns: of the table.
        score: features of view 0 and view 1 and ``H_0to1`` -> what is known of the pair.
        summarize: what is known of many pairs -> the numbers.
        statistics: (sequence, what is known of a pair), many -> the numbers as functions of how
            often each sequence was drawn.
        picture: what is known of a pair -> what its picture shows.
        curves: what is known of many pairs -> name of a share that rises with the pixels allowed
            -> its values at ``CURVE_THRESHOLDS``.
        shorter_side: pixels that views get at their shorter side; 0 for [evaluate] longest_side.
        num_keypoints, nms_radius: that it is published with; they rule over pipeline.toml, and
            flags over them. None where it leaves them open.
    """

    about: str
    columns: tuple[Column, ...]
    score: Callable[[Features, Features, np.ndarray], Any]
    summarize: Callable[[Sequence], dict]
    statistics: Callable[[Sequence[tuple[str, Any]]], Statistics]
    picture: Callable[[Any], Picture]
    curves: Callable[[Sequence], dict[str, list[float]]]
    shorter_side: int = 0
    num_keypoints: int | None = None
    nms_radius: int | None = None


def _picture_nearest(pair: PairScores) -> Picture:
    view = pair.view1
    if view.matches is None:
        return Picture(np.zeros((0, 2), np.intp), np.zeros(0, bool), "nothing to match")
    rows = np.flatnonzero(view.visible)
    correct = view.matches.correct[rows]
    caption = (
        f"{correct.sum()} of {len(rows)} visible keypoints matched right, homography off by "
        f"{pair.corner_error:.1f} px"
    )
    return Picture(np.stack([view.matches.indices[rows], rows], axis=1), correct, caption)


def _picture_mutual(pair: MatchedPair) -> Picture:
    right = pair.match_errors <= 3
    errors = ", ".join(f"{name} {error:.1f}" for name, error in pair.corner_errors.items())
    caption = f"{right.sum()} of {len(right)} matches right, homography off by px: {errors}"
    return Picture(pair.matches, right, caption)


def _curves_nearest(pairs: Sequence[PairScores]) -> dict[str, list[float]]:
    return {
        "visible keypoints matched right": [matching_score(pairs, t) for t in CURVE_THRESHOLDS],
        "homographies right": [homography_accuracy(pairs, t) for t in CURVE_THRESHOLDS],
    }


def _curves_mutual(pairs: Sequence[MatchedPair], estimators=tuple(ESTIMATORS)) -> dict:
    def mean(share: Callable[[MatchedPair, float], float]) -> list[float]:
        return [float(np.mean([share(pair, t) for pair in pairs])) for t in CURVE_THRESHOLDS]

    return {
        "matches right (MMA)": mean(lambda pair, t: share_right(pair.match_errors, t)),
        "keypoints repeated": mean(lambda pair, t: share_right(pair.offsets, t)),
        **{
            f"homographies right, {TITLES[name]}": mean(
                lambda pair, t, name=name: pair.corner_errors[name] < t
            )
            for name in estimators
        },
    }


TITLES = {"ransac": "RANSAC", "magsac": "MAGSAC", "poselib": "PoseLib"}

PROTOCOLS = {
    "hfnet": Protocol(
        "nearest-neighbour matches, 3 px. MS matching score, Homography accuracy, mAP average "
        "precision of descriptors and detector, MLE localization error in pixels (less is better), "
        "Rep repeatability",
        (
            Column("MS", "matching_score"),
            Column("Homography", "homography_accuracy"),
            Column("mAP (Desc)", "descriptor_ap"),
            Column("MLE", "localization_error", less_is_better=True),
            Column("Rep", "repeatability"),
            Column("mAP (Det)", "detector_ap"),
        ),
        score_pair,
        summarize,
        pair_statistics,
        _picture_nearest,
        _curves_nearest,
    ),
    "matching": Protocol(
        "mutual nearest neighbours; the share of pairs whose homography is right to 1, 3 and 5 px "
        "by three estimators, MMA the share of matches right to 3 px, and the matches of a pair",
        (
            *(
                Column(f"{title} {t} px", f"homography.{name}.accuracy@{t}px")
                for name, title in TITLES.items()
                for t in THRESHOLDS
            ),
            Column("MMA 3 px", "mean_matching_accuracy.@3px"),
            Column("matches", "mean_matches", is_ranked=False, digits=0),
        ),
        match_pair,
        summarize_matching,
        matching_statistics,
        _picture_mutual,
        _curves_mutual,
    ),
    "silk": Protocol(
        "mutual nearest neighbours, as in SiLK's Table 2: Rep the share of keypoints repeated to "
        "1 and 3 px, Homography the share of pairs right to 1, 3 and 5 px by OpenCV's RANSAC, AUC "
        "the area under it, MMA the share of matches right, the keypoints of an image and the "
        "matches of a pair",
        (
            *(Column(f"Rep {t} px", f"repeatability.@{t}px") for t in (1, 3)),
            *(Column(f"Homography {t} px", f"homography.ransac.accuracy@{t}px") for t in (1, 3, 5)),
            *(Column(f"AUC {t} px", f"homography.ransac.auc@{t}px") for t in (1, 3, 5)),
            *(Column(f"MMA {t} px", f"mean_matching_accuracy.@{t}px") for t in (1, 3)),
            Column("keypoints", "mean_keypoints", is_ranked=False, digits=0),
            Column("matches", "mean_matches", is_ranked=False, digits=0),
        ),
        match_pair,
        summarize_matching,
        matching_statistics,
        _picture_mutual,
        partial(_curves_mutual, estimators=("ransac",)),
        shorter_side=480,
        num_keypoints=10000,
        nms_radius=0,
    ),
}
"""The six numbers of HF-Net's tables keep its published arithmetic; see ``evaluation.metrics``.
What each protocol fixes, and where others differ, is in ``docs/protocols.md``."""
