"""The datasets that ``evaluate`` knows: name -> what it asks of a model, and how it reports it."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from data.config import EvaluateSettings
from evaluation.datasets import HPatches
from evaluation.extractors import Extractor
from evaluation.judge import choose_pairs, draw_pairs, judge, summarize_splits
from evaluation.places import (
    RECALLS,
    Places,
    draw_places,
    judge_places,
    summarize_places,
)
from evaluation.poses import THRESHOLDS, Poses, judge_poses, summarize_poses
from evaluation.protocols import PROTOCOLS, Column
from evaluation.report import Drawing

__all__ = ["SUITES", "Suite"]


class Suite(Protocol):
    """A dataset with what is measured on it; made of its root and the [evaluate] settings.

    Attributes:
        protocol: its name in the report.
        images: so many photographs are shown to each model.
        size: what the dataset holds, by name; part of the report.
        about: a sentence on what was measured and how.
        legend: of the pictures, HTML.
        columns: of the table.
    """

    protocol: str
    images: int
    size: dict[str, int]
    about: str
    legend: str
    columns: tuple[Column, ...]

    def judge(
        self, model: str, extractor: Extractor, advance: Callable[[], None]
    ) -> tuple[list[dict], list[Drawing]]:
        """A model's results, one per split, and its pictures; ``advance`` is called per image."""


class HomographySuite:
    """HPatches, or a dataset in its layout, under one of the protocols."""

    legend = (
        'Image 1 on the left. <span class="right">Green</span>: within 3 px of the true place. '
        '<span class="wrong">Red</span>: wrong. <span class="plain">Yellow</span>: not matched, or '
        "not visible in the other view."
    )

    def __init__(self, root: Path, settings: EvaluateSettings):
        self.dataset, self.settings = HPatches(root, settings.split), settings
        self.protocol = settings.protocol
        self.rules = PROTOCOLS[settings.protocol]
        self.columns = self.rules.columns
        self.images = len(self.dataset.images)
        self.size = {"sequences": len(self.dataset.sequences), "pairs": len(self.dataset.pairs)}
        side = f"{settings.longest_side} pixels" if settings.longest_side else "their own size"
        self.about = (
            f"the best {settings.num_keypoints} keypoints of each image at {side}, "
            f"{self.rules.about}"
        )
        self.pictured = set(choose_pairs(self.dataset, settings.pictures))

    def judge(self, model, extractor, advance):
        judged = judge(
            self.dataset,
            extractor,
            self.rules,
            longest=self.settings.longest_side,
            workers=self.settings.workers,
            pictured=self.pictured,
            advance=advance,
        )
        results = summarize_splits(model, judged, self.settings.num_keypoints, self.settings.split)
        return results, draw_pairs(model, judged)


class PlacesSuite:
    """Place recognition by global descriptors."""

    protocol = "recall"
    about = (
        "a query is found at k where one of the first k hits shows its place; seconds a query for "
        "extraction and search, kilobytes of the database's descriptors"
    )
    legend = (
        'The query on the left, then its best hits: <span class="right">green</span> shows the '
        'same place, <span class="wrong">red</span> another.'
    )
    columns = (
        *(Column(f"R@{k}", f"recall@{k}") for k in RECALLS),
        Column("s a query", "seconds_per_query", less_is_better=True),
        Column("index kB", "index_bytes", less_is_better=True, digits=0, unit=1e3),
    )

    def __init__(self, root: Path, settings: EvaluateSettings):
        self.dataset, self.settings = Places(root), settings
        self.images = len(self.dataset.images)
        self.size = {
            "database": len(self.dataset.database),
            "queries": len(self.dataset.queries),
            "queries without positives": len(self.dataset.skipped),
        }

    def judge(self, model, extractor, advance):
        judged = judge_places(
            self.dataset, extractor, longest=self.settings.longest_side, advance=advance
        )
        drawings = draw_places(model, judged, self.settings.pictures)
        return [summarize_places(model, judged)], drawings


class PosesSuite:
    """Relative poses of calibrated cameras."""

    protocol = "poses"
    about = (
        "mutual nearest neighbours, PoseLib at 1 px; AUC of the larger angle of rotation and "
        "translation, its median in degrees (less is better), and the matches of a pair"
    )
    legend = ""
    columns = (
        *(Column(f"AUC@{t}°", f"auc@{t}") for t in THRESHOLDS),
        Column("median", "median_error_deg", less_is_better=True, digits=2),
        Column("matches", "mean_matches", digits=0),
    )

    def __init__(self, root: Path, settings: EvaluateSettings):
        self.dataset, self.settings = Poses(root), settings
        self.images = len(self.dataset.images)
        self.size = {"sequences": len(self.dataset.sequences), "pairs": len(self.dataset.pairs)}

    def judge(self, model, extractor, advance):
        judged = judge_poses(
            self.dataset, extractor, longest=self.settings.longest_side, advance=advance
        )
        return [summarize_poses(model, judged)], []


SUITES: dict[str, type] = {
    "hpatches": HomographySuite,
    "places": PlacesSuite,
    "poses": PosesSuite,
}
