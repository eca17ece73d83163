"""Image retrieval by global descriptors: is one of the first hits a photograph of the same place?

Recall@k is the share of queries with at least one positive among the k photographs of the largest
dot product (Arandjelovic et al., CVPR 2016).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ...errors import InputError
from ..datasets.base import RetrievalDataset
from ..features import ImageFeatures, load_view
from ..intervals import Statistics, mean_statistic
from ..report.pictures import CORRECT, WRONG, Drawing
from ..report.tables import Column
from . import register_task
from .base import Sides, Task

__all__ = ["Hits", "Retrieval", "mark_positives", "search_nearest"]

RECALLS = (1, 5, 10, 20)
"""The k of recall@k; the last says how many hits are kept of each query."""

BLOCK = 2**24
"""Similarities that are in memory at a time."""

SHOWN, THUMBNAIL, FRAME = 5, 192, 4
"""Hits beside a query, pixels of a picture's longest side, and of the frame around it."""


@dataclass(frozen=True)
class Hits:
    """What one model answered to Q queries.

    Attributes:
        rows: (Q, K) intp, rows of the database, best first; K is 20, or less in a small database.
        correct: (Q, K) bool, which of them are positives.
        seconds_per_query: extraction and search, without reading the photograph from the disk.
    """

    rows: np.ndarray
    correct: np.ndarray
    seconds_per_query: float
    global_dim: int


def search_nearest(database: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """The rows of the largest dot products, best first; the first of equal ones comes first.

    Args:
        database, queries: (N, G) and (Q, G) float32 of unit length.

    Returns:
        (Q, min(count, N)) intp.
    """
    count = min(count, len(database))
    hits = np.empty((len(queries), count), np.intp)
    step = max(1, BLOCK // len(database))
    for start in range(0, len(queries), step):
        similarities = queries[start : start + step] @ database.T
        last = np.partition(similarities, -count, axis=1)[:, -count]
        for row, (values, least) in enumerate(zip(similarities, last, strict=True), start):
            kept = np.flatnonzero(values >= least)
            hits[row] = kept[np.argsort(-values[kept], kind="stable")[:count]]
    return hits


def mark_positives(hits: np.ndarray, positives: Sequence[frozenset[int]]) -> np.ndarray:
    """Which hits (Q, K) are among their query's positives; (Q, K) bool."""
    pairs = zip(hits.tolist(), positives, strict=True)
    return np.array([[hit in wanted for hit in row] for row, wanted in pairs])


@register_task("retrieval")
class Retrieval(Task):
    """Recall of global descriptors, with the time and the memory that they take."""

    dataset_type = RetrievalDataset
    unit = "queries"
    about = (
        "a query is found at k where one of the first k hits shows its place; seconds a query for "
        "extraction and search, kilobytes of the database's descriptors"
    )
    legend = (
        'The query on the left, then its best hits: <span class="correct">green</span> shows the '
        'same place, <span class="wrong">red</span> another.'
    )
    columns = (
        *(Column(f"R@{k}", f"recall@{k}") for k in RECALLS),
        Column("s a query", "seconds_per_query", less_is_better=True),
        Column("index kB", "index_bytes", less_is_better=True, digits=0, unit=1e3),
    )

    @property
    def num_steps(self) -> int:
        return len(self.dataset.images)

    def score(self, sides: Sides, advance: Callable[[], None]) -> Hits:
        """Ask all queries.

        Raises:
            InputError: no global descriptor, or one that is zero, not finite or of another length.
        """
        rows, seconds = [], []
        names = [self.dataset.database, self.dataset.queries]
        for side, name in ((s, n) for s, part in zip(sides, names, strict=True) for n in part):
            image = side.read(name)
            rows.append(_check_descriptor(image, name, rows))
            seconds.append(image.seconds)
            advance()
        descriptors = np.stack(rows)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        database, queries = np.split(descriptors, [len(self.dataset.database)])
        start = time.perf_counter()
        hits = search_nearest(database, queries, RECALLS[-1])
        asked = sum(seconds[len(database) :]) + time.perf_counter() - start
        correct = mark_positives(hits, self.dataset.positives)
        return Hits(hits, correct, asked / len(queries), descriptors.shape[1])

    def statistics(self, scored: Hits) -> dict[str, Statistics]:
        queries = range(len(self.dataset.queries))
        recalls = {
            f"recall@{k}": mean_statistic(queries, scored.correct[:, :k].any(axis=1))
            for k in RECALLS
        }
        return {"all": Statistics(self.dataset.queries, recalls)}

    def facts(self, scored: Hits) -> dict[str, float]:
        return {
            "seconds_per_query": scored.seconds_per_query,
            "index_bytes": len(self.dataset.database) * scored.global_dim * 4,  # in float32
            "global_dim": scored.global_dim,
        }

    def draw(
        self, scored: Mapping[str, Hits], sides: Mapping[str, Sides], advance: Callable[[], None]
    ) -> list[Drawing]:
        """Some queries, spread evenly, with their best hits: positives in green frames."""
        queries = self.dataset.queries
        count = min(self.settings.pictures, len(queries))
        drawings = []
        for model, hits in scored.items():
            for query in np.linspace(0, len(queries) - 1, count).round().astype(int):
                correct = hits.correct[query]
                caption = f"no positive among the first {len(correct)} hits"
                if correct.any():
                    caption = f"the first positive is hit {correct.argmax() + 1}"
                image = self._draw_query(hits, query)
                drawings.append(Drawing(queries[query], model, caption, image))
                advance()
        return drawings

    def _draw_query(self, hits: Hits, query: int) -> np.ndarray:
        found = [self.dataset.database[row] for row in hits.rows[query, :SHOWN]]
        paths = [self.dataset.images[name] for name in (self.dataset.queries[query], *found)]
        pictures = [load_view(path, longest_side=THUMBNAIL, channels=3).image for path in paths]
        frames = [(255, 255, 255)]
        frames += [CORRECT if correct else WRONG for correct in hits.correct[query, :SHOWN]]
        slot, height = THUMBNAIL + 3 * FRAME, max(map(len, pictures)) + 2 * FRAME
        canvas = np.full((height, slot * (SHOWN + 1), 3), 255, np.uint8)
        for number, (picture, color) in enumerate(zip(pictures, frames, strict=True)):
            framed = cv2.copyMakeBorder(picture, *[FRAME] * 4, cv2.BORDER_CONSTANT, value=color)
            canvas[: len(framed), number * slot :][:, : framed.shape[1]] = framed
        return canvas


def _check_descriptor(image: ImageFeatures, name: str, rows: list[np.ndarray]) -> np.ndarray:
    row = image.features.global_descriptor
    if row is None:
        raise InputError(
            f"{name}: the model gives no global descriptor; evaluate retrieval with netvlad, with "
            "a student trained from a second --store of global descriptors, or with "
            "features:FILE.h5 that holds global_descriptor"
        )
    if rows and len(row) != len(rows[0]):
        raise InputError(
            f"{name}: a global descriptor of {len(row)} numbers, the others have {len(rows[0])}; "
            "extract all photographs alike"
        )
    if not np.isfinite(row).all() or not row.any():
        raise InputError(f"{name}: its global descriptor is zero or not finite; extract it again")
    return row
