"""The registry of protocols: name -> what is measured on a pair of views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.records import Features
from evaluation.homography import (
    THRESHOLDS,
    MatchedPair,
    match_pair,
    matching_intervals,
    summarize_matching,
)
from evaluation.metrics import PairScores, score_pair, summarize
from evaluation.statistics import intervals

__all__ = ["PROTOCOLS", "Column", "Picture", "Protocol"]


@dataclass(frozen=True)
class Column:
    """One number of the table.

    Attributes:
        title: its heading.
        key: where it stands in a result, "a.b" for ``result["a"]["b"]``.
        less_is_better: of which of two rows is the better one.
        digits: behind the point.
        unit: the table shows multiples of this.
    """

    title: str
    key: str
    less_is_better: bool = False
    digits: int = 3
    unit: float = 1

    def value(self, result: dict) -> float:
        """The number in a result, nan where there was nothing to measure."""
        for part in self.key.split("."):
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
        intervals: (sequence, what is known of a pair), many -> number by key -> (low, high).
        picture: what is known of a pair -> what its picture shows.
    """

    about: str
    columns: tuple[Column, ...]
    score: Callable[[Features, Features, np.ndarray], Any]
    summarize: Callable[[Sequence], dict]
    intervals: Callable[[Sequence[tuple[str, Any]]], dict[str, tuple[float, float]]]
    picture: Callable[[Any], Picture]


def _picture_nearest(pair: PairScores) -> Picture:
    view = pair.view1
    if view.matches is None:
        return Picture(np.zeros((0, 2), np.intp), np.zeros(0, bool), "no keypoints to match")
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
        intervals,
        _picture_nearest,
    ),
    "matching": Protocol(
        "mutual nearest neighbours; the share of pairs whose homography is right to 1, 3 and 5 px "
        "by three estimators, MMA the share of matches right to 3 px, and the matches of a pair",
        (
            *(
                Column(f"{title} {t} px", f"homography.{name}.accuracy@{t}px")
                for name, title in (
                    ("ransac", "RANSAC"),
                    ("magsac", "MAGSAC"),
                    ("poselib", "PoseLib"),
                )
                for t in THRESHOLDS
            ),
            Column("MMA 3 px", "mean_matching_accuracy.@3px"),
            Column("matches", "mean_matches", digits=0),
        ),
        match_pair,
        summarize_matching,
        matching_intervals,
        _picture_mutual,
    ),
}
"""The six numbers of HF-Net's tables keep its published arithmetic; see ``evaluation.metrics``."""
