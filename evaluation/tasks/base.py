"""What a task is: how features are scored, which numbers follow, what the report shows."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import ThreadpoolController

from ...config import EvaluateSettings
from ..datasets.base import Dataset, Pair
from ..features import FeatureFile, ImageFeatures, View, load_view
from ..intervals import Statistic, Statistics
from ..matching import NEAREST, Matcher
from ..report.pictures import Drawing, draw_matches
from ..report.tables import Column

__all__ = ["PairTask", "Picture", "ScoredPairs", "Sides", "Task", "read_views", "score_pairs"]

Sides = tuple[FeatureFile, FeatureFile]
"""The features of view 0 (or the database) and of view 1 (or the queries), mostly the same file."""


class Task:
    """A question that is asked of features; made of a dataset and the [evaluate] settings.

    Attributes:
        dataset_type: what it can be asked of.
        about: a sentence on what is measured and how, for the report.
        legend: of the pictures, HTML.
        unit: what is resampled for intervals and compared over, in the plural.
        curve_thresholds: at which ``curves`` has values, in pixels.
        num_keypoints, nms_radius: that it is published with, or None. They override pipeline.toml,
            and flags override them.
        shorter_side: pixels that views get at their shorter side; 0 for [evaluate] longest_side.
        takes_matcher: whether ``matcher``, set by ``evaluate``, may be other than nearest.
    """

    name: ClassVar[str]
    dataset_type: ClassVar[type[Dataset]]
    about: str
    legend = ""
    columns: Sequence[Column]
    unit = "sequences"
    curve_thresholds: ClassVar[Sequence[float]] = ()
    num_keypoints: ClassVar[int | None] = None
    nms_radius: ClassVar[int | None] = None
    shorter_side: ClassVar[int] = 0
    takes_matcher: ClassVar[bool] = False
    matcher: Matcher = NEAREST

    def __init__(self, dataset: Dataset, settings: EvaluateSettings):
        self.dataset, self.settings = dataset, settings

    @property
    def view_size(self) -> dict[str, int]:
        """The arguments of ``load_view`` that views have their size from, one of them 0."""
        longest = 0 if self.shorter_side else self.settings.longest_side
        return {"longest_side": longest, "shorter_side": self.shorter_side}

    @property
    def num_steps(self) -> int:
        """How often ``score`` advances."""
        raise NotImplementedError

    def load_view(self, path: Path, channels: int) -> View:
        """An image as it is shown to a model with so many channels."""
        return load_view(path, **self.view_size, channels=channels)

    def score(self, sides: Sides, advance: Callable[[], None]) -> Any:
        """What the numbers and the pictures need to know of one model's features."""
        raise NotImplementedError

    def statistics(self, scored: Any) -> dict[str, Statistics]:
        """split -> the numbers, by their keys in a result, "a.b" for ``result["a"]["b"]``."""
        raise NotImplementedError

    def facts(self, scored: Any) -> dict[str, float]:
        """Further numbers of a result, those without an interval."""
        return {}

    def curves(self, scored: Any) -> dict[str, list[float]]:
        """Name of a share that rises with the pixels allowed -> its values."""
        return {}

    def draw(
        self, scored: Mapping[str, Any], sides: Mapping[str, Sides], advance: Callable[[], None]
    ) -> list[Drawing]:
        """The pictures of all models, by their names; ``advance`` is called for each."""
        return []


@dataclass(frozen=True)
class ScoredPairs:
    """What ``PairTask.score_pair`` returned of each pair, and the keypoints of a mean image."""

    scores: list
    mean_keypoints: float


class Picture(NamedTuple):
    """What a picture shows: matches (K, 2) of rows, which of them are correct (K,), a caption."""

    matches: np.ndarray
    correct: np.ndarray
    caption: str


class PairTask(Task):
    """A task on pairs of views: a pair is scored by itself, in one of several processes."""

    @property
    def num_steps(self) -> int:
        return len(self.dataset.pairs)

    def truth(self, pair: Pair, view0: ImageFeatures, view1: ImageFeatures) -> tuple:
        """What is known to be true of a pair at the size of its views."""
        raise NotImplementedError

    @staticmethod
    def score_pair(features0, features1, *truth) -> Any:
        """What is to be known of a pair; a function that another process can find by its name.

        Where ``takes_matcher``, a ``Matcher`` is its last argument.
        """
        raise NotImplementedError

    @staticmethod
    def pair_statistics(groups: Sequence[int], scores: Sequence) -> dict[str, Statistic]:
        """The numbers of pairs, of which ``groups`` says to which sequence each belongs."""
        raise NotImplementedError

    def picture(self, score: Any) -> Picture | None:
        """What the picture of a pair shows; None for a task without pictures."""
        return None

    def draw_between(
        self, row: int, scored: Mapping[str, ScoredPairs], sides: Mapping[str, Sides]
    ) -> list[Drawing]:
        """Further pictures, of the pair between the best and the worst ones."""
        return []

    def score(self, sides: Sides, advance: Callable[[], None]) -> ScoredPairs:
        counts: dict[tuple, int] = {}
        matcher = (self.matcher,) if self.takes_matcher else ()

        def jobs() -> Iterator[tuple]:
            for pair in self.dataset.pairs:
                views = read_views(sides, pair)
                features0, features1 = (view.features for view in views)
                counts[sides[0].path, pair.name0] = len(features0.keypoints)
                counts[sides[1].path, pair.name1] = len(features1.keypoints)
                yield (features0, features1, *self.truth(pair, *views), *matcher)

        scores = []
        for score in score_pairs(self.score_pair, jobs(), self.settings.workers):
            scores.append(score)
            advance()
        return ScoredPairs(scores, float(np.mean(list(counts.values()))))

    def statistics(self, scored: ScoredPairs) -> dict[str, Statistics]:
        found, pairs = {}, self.dataset.pairs
        for split, sequences in self.dataset.splits().items():
            rows = [row for row, pair in enumerate(pairs) if pair.sequence in sequences]
            names = list(dict.fromkeys(pairs[row].sequence for row in rows))
            groups = [names.index(pairs[row].sequence) for row in rows]
            scores = [scored.scores[row] for row in rows]
            if rows:
                found[split] = Statistics(names, self.pair_statistics(groups, scores))
        return found

    def facts(self, scored: ScoredPairs) -> dict[str, float]:
        return {
            "num_keypoints": self.settings.num_keypoints,
            "mean_keypoints": scored.mean_keypoints,
        }

    def draw(
        self,
        scored: Mapping[str, ScoredPairs],
        sides: Mapping[str, Sides],
        advance: Callable[[], None],
    ) -> list[Drawing]:
        """The matches of the first model's best and worst pairs, for every model."""
        first = next(iter(scored))
        pictures = [self.picture(score) for score in scored[first].scores]
        if not self.settings.pictures or None in pictures:
            return []
        between, chosen = self._choose_pairs(pictures)
        drawings = self.draw_between(between, scored, sides)
        for row, kind in chosen.items():
            pair = self.dataset.pairs[row]
            title = f"{pair.name0} – {Path(pair.name1).name}, among the {kind} of {first}"
            paths = [self.dataset.images[name] for name in (pair.name0, pair.name1)]
            images = [self.load_view(path, 1).image for path in paths]
            for model, found in scored.items():
                points = [view.features.keypoints for view in read_views(sides[model], pair)]
                picture = self.picture(found.scores[row])
                image = draw_matches(*images, *points, picture.matches, picture.correct)
                drawings.append(Drawing(title, model, picture.caption, image))
                advance()
        return drawings

    def _choose_pairs(self, pictures: Sequence[Picture]) -> tuple[int, dict[int, str]]:
        """The row of the median pair by the share of its matches that are correct, and row ->
        "best" or "worst" of others: half of each, no two of one sequence in a half."""
        count = self.settings.pictures
        shares = np.array([p.correct.mean() if len(p.correct) else 0.0 for p in pictures])
        ascending = np.argsort(shares, kind="stable").tolist()
        between, chosen = ascending[len(ascending) // 2], {}
        for kind, order, wanted in (
            ("best", ascending[::-1], (count + 1) // 2),
            ("worst", ascending, count // 2),
        ):
            sequences = set()
            for row in order:
                sequence = self.dataset.pairs[row].sequence
                is_new = row not in (between, *chosen) and sequence not in sequences
                if is_new and len(sequences) < wanted:
                    chosen[row] = kind
                    sequences.add(sequence)
        return between, chosen


def read_views(sides: Sides, pair: Pair) -> list[ImageFeatures]:
    """The features of both views of a pair."""
    return [side.read(name) for side, name in zip(sides, (pair.name0, pair.name1), strict=True)]


def score_pairs(score_pair: Callable, jobs: Iterable[tuple], workers: int) -> Iterator:
    """What ``score_pair`` returns for each of the jobs' arguments, in their order.

    Jobs are asked for as they are needed; with one worker, this process does them.
    """
    if not score_pair.__module__.startswith("hfnet_distill."):
        workers = 1  # other processes could not import a plug-in by its name
    calls = (delayed(_score_one)(score_pair, *job) for job in jobs)
    return Parallel(workers, return_as="generator")(calls)


def _score_one(score_pair: Callable, *arguments) -> Any:
    # The matrices are so small that more threads would mostly wait for one another.
    with _threadpools().limit(limits=1, user_api="blas"):
        return score_pair(*arguments)


_threadpools = functools.cache(ThreadpoolController)
