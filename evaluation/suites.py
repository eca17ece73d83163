"""The datasets that ``evaluate`` knows: name -> what it asks of a model, and how it reports it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..config import EvaluateSettings
from .datasets.hpatches import HPatches
from .datasets.kitti_tum import KittiTum
from .datasets.retrieval import Retrieval
from .extractors import Extractor
from .figures import Drawing
from .judge import Judged, draw_pairs, judge, summarize_splits
from .places import (
    RECALLS,
    JudgedPlaces,
    draw_places,
    judge_places,
    place_statistics,
    summarize_places,
)
from .poses import (
    THRESHOLDS,
    JudgedPoses,
    judge_poses,
    pose_statistics,
    summarize_poses,
)
from .protocols import PROTOCOLS, Column
from .statistics import Statistics

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
        unit: what models are compared over, in the plural.
        settings: what it sets itself, for the report.
    """

    protocol: str
    images: int
    size: dict[str, int]
    about: str
    legend: str
    columns: tuple[Column, ...]
    unit: str
    settings: dict

    def judge(self, extractor: Extractor, advance: Callable[[], None]) -> Any:
        """What one model gave; ``advance`` is called per image."""

    def summarize(self, model: str, judged: Any) -> list[dict]:
        """A model's results, one per split."""

    def statistics(self, judged: Any) -> dict[str, Statistics]:
        """split -> a model's numbers as functions of the units drawn, to compare models by."""

    def curves(self, judged: Any) -> dict[str, list[float]]:
        """Name of a share -> its values at ``protocols.CURVE_THRESHOLDS``; may be empty."""

    def draw(
        self,
        judged: Mapping[str, Any],
        extractors: Mapping[str, Extractor],
        advance: Callable[[], None],
    ) -> list[Drawing]:
        """The pictures of all models."""


class HomographySuite:
    """HPatches, or a dataset in its layout, under one of the protocols."""

    unit = "sequences"
    legend = (
        'Image 1 on the left. <span class="right">Green</span>: within 3 px of the true place. '
        '<span class="wrong">Red</span>: wrong. <span class="plain">Yellow</span>: not matched, or '
        "not visible in the other view. The pairs are those that the first model matched best and "
        "worst, at most two of a sequence."
    )

    def __init__(self, root: Path, settings: EvaluateSettings):
        self.dataset, self.wanted = HPatches(root, settings.split), settings
        self.protocol = settings.protocol
        self.rules = PROTOCOLS[settings.protocol]
        shorter = self.rules.shorter_side
        self.settings = {"longest_side": None, "shorter_side": shorter} if shorter else {}
        self.columns = self.rules.columns
        self.images = len(self.dataset.images)
        self.size = self.dataset.size
        side = f"{settings.longest_side} pixels" if settings.longest_side else "their own size"
        if shorter:
            side = f"{shorter} pixels of the shorter side"
        self.about = (
            f"the best {settings.num_keypoints} keypoints of each image at {side}, "
            f"{self.rules.about}"
        )

    def judge(self, extractor, advance):
        return judge(
            self.dataset,
            extractor,
            self.rules,
            longest=self.wanted.longest_side,
            workers=self.wanted.workers,
            advance=advance,
        )

    def summarize(self, model: str, judged: Judged):
        return summarize_splits(model, judged, self.wanted.num_keypoints)

    def statistics(self, judged: Judged):
        return {name: self.rules.statistics(found) for name, found in judged.splits().items()}

    def curves(self, judged: Judged):
        return self.rules.curves([scores for _, scores in judged.pairs])

    def draw(self, judged, extractors, advance):
        return draw_pairs(
            self.dataset,
            judged,
            extractors,
            longest=self.wanted.longest_side,
            count=self.wanted.pictures,
            advance=advance,
        )


class PlacesSuite:
    """Place recognition by global descriptors."""

    protocol = "recall"
    unit = "queries"
    settings: ClassVar = {}
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
        self.dataset, self.wanted = Retrieval(root), settings
        self.images = len(self.dataset.images)
        self.size = self.dataset.size

    def judge(self, extractor, advance):
        longest = self.wanted.longest_side
        return judge_places(self.dataset, extractor, longest=longest, advance=advance)

    def summarize(self, model: str, judged: JudgedPlaces):
        return [summarize_places(model, judged)]

    def statistics(self, judged: JudgedPlaces):
        return {"all": place_statistics(judged)}

    def curves(self, judged: JudgedPlaces):
        return {}

    def draw(self, judged, extractors, advance):
        return [
            drawing
            for model, found in judged.items()
            for drawing in draw_places(model, found, self.wanted.pictures)
        ]


class PosesSuite:
    """Relative poses of calibrated cameras."""

    protocol = "poses"
    unit = "sequences"
    settings: ClassVar = {}
    about = (
        "mutual nearest neighbours, PoseLib at 1 px; AUC of the larger angle of rotation and "
        "translation, its median in degrees (less is better), and the matches of a pair"
    )
    legend = ""
    columns = (
        *(Column(f"AUC@{t}°", f"auc@{t}") for t in THRESHOLDS),
        Column("median", "median_error_deg", less_is_better=True, digits=2),
        Column("matches", "mean_matches", is_ranked=False, digits=0),
    )

    def __init__(self, root: Path, settings: EvaluateSettings):
        self.dataset, self.wanted = KittiTum(root), settings
        self.images = len(self.dataset.images)
        self.size = self.dataset.size

    def judge(self, extractor, advance):
        longest = self.wanted.longest_side
        return judge_poses(self.dataset, extractor, longest=longest, advance=advance)

    def summarize(self, model: str, judged: JudgedPoses):
        return [summarize_poses(model, judged)]

    def statistics(self, judged: JudgedPoses):
        return {"all": pose_statistics(judged)}

    def curves(self, judged: JudgedPoses):
        return {}

    def draw(self, judged, extractors, advance):
        return []


SUITES: dict[str, type] = {
    "hpatches": HomographySuite,
    "retrieval": PlacesSuite,
    "kitti_tum": PosesSuite,
}
