"""Place recognition: which photographs of a database show the place of a query.

Photographs are compared by the dot product of their global descriptors, of unit length. Recall@k is
the share of queries with at least one positive among the first k hits (Arandjelovic et al., CVPR
2016). A query without a positive in the database cannot be answered: it is left out and counted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .datasets.base import RetrievalDataset
from .extractors import Extractor
from .figures import RIGHT, WRONG, Drawing
from .statistics import Statistics, intervals, mean_statistic
from .views import load_view

__all__ = [
    "RECALLS",
    "JudgedPlaces",
    "draw_places",
    "judge_places",
    "mark_positives",
    "place_statistics",
    "recall_at",
    "search_nearest",
    "summarize_places",
]

RECALLS = (1, 5, 10, 20)
"""The k of recall@k; the last says how many hits are kept of each query."""

BLOCK = 2**24
"""Similarities that are in memory at a time."""

SHOWN, THUMBNAIL, FRAME = 5, 192, 4
"""Hits beside a query, pixels of a picture's longest side, and of the frame around it."""


@dataclass(frozen=True)
class JudgedPlaces:
    """What one model answered to Q queries.

    Attributes:
        hits: (Q, K) intp, rows of the database, best first; K is 20, or less in a small database.
        right: (Q, K) bool, which of them are positives.
        seconds_per_query: extraction, as the extractor does it (local features included), and
            search; without reading the photograph from the disk.
        global_dim: numbers in a global descriptor.
    """

    places: RetrievalDataset
    hits: np.ndarray
    right: np.ndarray
    seconds_per_query: float
    global_dim: int

    @property
    def index_bytes(self) -> int:
        """What the database's global descriptors take in float32."""
        return len(self.places.database) * self.global_dim * 4


def judge_places(
    places: RetrievalDataset, extractor: Extractor, *, longest: int, advance: Callable[[], None]
) -> JudgedPlaces:
    """Ask one model all queries, with one photograph in memory at a time.

    Args:
        longest: pixels of the longest side that photographs are resized to; 0 leaves them.
        advance: called after each of ``places.images``.

    Raises:
        ValueError: the model gives no global descriptor, or one that is not finite, zero, or not
            as long as the others.
        UnreadablePhotographError: see ``data.images.read_image``.
    """
    rows, seconds = [], []
    for name, path in places.images.items():
        view = load_view(path, longest=longest, channels=extractor.channels)
        start = time.perf_counter()
        row = extractor.extract(view, name).global_descriptor
        seconds.append(time.perf_counter() - start)
        rows.append(_check_descriptor(row, name, rows))
        advance()
    descriptors = np.stack(rows)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    database, queries = np.split(descriptors, [len(places.database)])
    start = time.perf_counter()
    hits = search_nearest(database, queries, RECALLS[-1])
    asked = sum(seconds[len(database) :]) + time.perf_counter() - start
    right = mark_positives(hits, places.positives)
    return JudgedPlaces(places, hits, right, asked / len(queries), descriptors.shape[1])


def search_nearest(database: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """The rows of the largest dot products; the first of equal ones comes first.

    Args:
        database, queries: (N, G) and (Q, G) float32 of unit length.
        count: rows per query; all N where there are fewer.

    Returns:
        (Q, min(count, N)) intp, best first.
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


def recall_at(right: np.ndarray, k: int) -> float:
    """The share of queries with a positive among the first k of their hits, (Q, K) bool."""
    return float(right[:, :k].any(axis=1).mean())


def summarize_places(model: str, judged: JudgedPlaces) -> dict:
    """The model's row of the report: recall@k, the time and the memory that it takes."""
    return {
        "model": model,
        "split": "all",
        **{f"recall@{k}": recall_at(judged.right, k) for k in RECALLS},
        "seconds_per_query": judged.seconds_per_query,
        "index_bytes": judged.index_bytes,
        "global_dim": judged.global_dim,
        "intervals": intervals(place_statistics(judged)),
    }


def place_statistics(judged: JudgedPlaces) -> Statistics:
    """Recall@k over the drawn queries."""
    found = {f"recall@{k}": judged.right[:, :k].any(axis=1)[:, None] for k in RECALLS}
    return Statistics(judged.places.queries, {k: mean_statistic(v) for k, v in found.items()})


def draw_places(model: str, judged: JudgedPlaces, count: int) -> list[Drawing]:
    """Pictures of ``count`` queries, spread evenly: left the query, then its best hits.

    A hit's frame is green where it is a positive, red where it is not.
    """
    places, total = judged.places, len(judged.places.queries)
    picks = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return [
        Drawing(places.queries[q], model, _caption(judged.right[q]), _draw_query(judged, q))
        for q in picks
    ]


def _caption(right: np.ndarray) -> str:
    if not right.any():
        return f"no positive among the first {len(right)} hits"
    return f"the first positive is hit {right.argmax() + 1}"


def _draw_query(judged: JudgedPlaces, query: int) -> np.ndarray:
    places = judged.places
    names = [places.queries[query]] + [places.database[hit] for hit in judged.hits[query, :SHOWN]]
    colours = [(255, 255, 255)] + [RIGHT if r else WRONG for r in judged.right[query, :SHOWN]]
    pictures = [load_view(places.images[n], longest=THUMBNAIL, channels=3).image for n in names]
    slot, height = THUMBNAIL + 3 * FRAME, max(len(picture) for picture in pictures) + 2 * FRAME
    canvas = np.full((height, slot * (SHOWN + 1), 3), 255, np.uint8)
    for number, (picture, colour) in enumerate(zip(pictures, colours, strict=True)):
        h, w = picture.shape[:2]
        left = number * slot
        canvas[: h + 2 * FRAME, left : left + w + 2 * FRAME] = colour
        canvas[FRAME : FRAME + h, left + FRAME : left + FRAME + w] = picture
    return canvas


def _check_descriptor(row: np.ndarray | None, name: str, rows: list[np.ndarray]) -> np.ndarray:
    if row is None:
        raise ValueError(
            f"{name}: the model gives no global descriptor; judge places with netvlad, with a "
            "student trained from a second --store of global descriptors, or with features:FILE.h5 "
            "that holds global_descriptor"
        )
    if rows and len(row) != len(rows[0]):
        raise ValueError(
            f"{name}: a global descriptor of {len(row)} numbers, the others have {len(rows[0])}; "
            "extract all photographs alike"
        )
    if not np.isfinite(row).all() or not row.any():
        raise ValueError(f"{name}: its global descriptor is zero or not finite; extract it anew")
    return row
